"""A table as a trace: what viewers need of it (order, nesting), and that it says what it leaves out."""

import json

import pytest

import mmchar
from mmchar.measuring.recorded.json_parts import read_parts
from mmchar.tables.perfetto import perfetto, write_perfetto

SD = "stable-diffusion-1.5"


@pytest.fixture(scope="module")
def counted():
    return mmchar.count(SD, steps=4, tiny=True)


@pytest.fixture(scope="module")
def projected(counted):
    return mmchar.project(counted, gpu="a100-80gb")


def slices(trace, track):
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["cat"] == track]


def check(trace):
    """Sorted by time; on each track every slice lies in the one around it or begins after it has ended."""
    for track in ("stages", "modules", "operators"):
        around = []
        events = slices(trace, track)
        assert events and [event["ts"] for event in events] == sorted(event["ts"] for event in events)
        for event in events:
            start, end = round(event["ts"] * 1e3), round((event["ts"] + event["dur"]) * 1e3)
            assert event["dur"] >= 0 and {"name", "pid", "tid", "args"} <= set(event)
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1], (track, event)
            if end > start:
                around.append(end)
    assert len({event["tid"] for event in trace["traceEvents"] if event["ph"] == "X"}) == 3


def test_stages_follow_each_other_and_are_as_long_as_all_their_executions(projected):
    trace = perfetto(projected)
    check(trace)
    want = (projected["time_s"] * projected["repeats"]).groupby(projected["stage"], observed=True, sort=False).sum()
    stages = [event for event in slices(trace, "stages") if "executions" in event["args"]]
    assert [event["name"] for event in stages] == list(want.index)
    assert [event["dur"] for event in stages] == pytest.approx(list(want * 1e6), abs=0.002)
    end = 0.0
    for event in stages:
        assert event["ts"] == pytest.approx(end, abs=0.002)
        end = event["ts"] + event["dur"]


def test_one_execution_is_drawn_and_the_rest_is_one_slice_that_says_so(projected):
    trace = perfetto(projected)
    denoise = projected[projected["stage"] == "denoise"]
    runs = int(denoise["repeats"].max())
    folded = {"encode_text": "1 of 2 executions", "denoise": f"{runs - 1} of {runs} executions"}
    assert trace["otherData"]["folded"] == folded, "prompt and negative prompt, steps"
    (rest,) = [event for event in slices(trace, "stages") if event["name"] == f"{runs - 1} more executions"]
    assert rest["dur"] == pytest.approx(1e6 * (runs - 1) * denoise["time_s"].sum(), rel=1e-6)
    assert len(slices(trace, "operators")) == len(projected)


def test_modules_are_nested_by_their_paths_around_their_operators(projected):
    trace = perfetto(projected)
    core = next(event for event in slices(trace, "operators") if event["args"].get("attention") == "cross")
    open_then = [
        event["name"]
        for event in slices(trace, "modules")
        if event["ts"] <= core["ts"] and core["ts"] + core["dur"] <= event["ts"] + event["dur"] + 1e-6
    ]
    assert open_then == ["unet", *core["args"]["module"].split(".")]
    assert core["args"]["q_len"] and core["args"]["flop"] and core["name"] == "scaled_dot_product_attention"


def test_a_counted_table_is_drawn_by_its_flop(counted):
    trace = perfetto(counted)
    check(trace)
    assert trace["otherData"]["time_kind"] == "counted" and "GFLOP" in trace["otherData"]["durations"]
    drawn = sum(event["dur"] for event in slices(trace, "operators"))
    assert drawn == pytest.approx(counted["flop"].sum() / 1e9, abs=1e-3 * len(counted))


def test_a_growing_cache_is_bounded():
    table = mmchar.count("parti-350m", tiny=True)
    trace = perfetto(table)
    check(trace)
    first = table[table["step"] == 0]
    assert len(slices(trace, "operators")) == len(first) < len(table)
    runs = int((table["step"] + table["repeats"])[table["stage"] == "decode"].max())
    assert trace["otherData"]["folded"]["decode"] == f"{runs - 1} of {runs} executions"
    middle = table[table["stage"] == "decode"].assign(step=31)  # as measured: the middle step stands for all
    runs = int(middle["repeats"].max())
    assert perfetto(middle)["otherData"]["folded"]["decode"] == f"{runs - 1} of {runs} executions"


def test_the_file_is_read_by_what_reads_traces(projected, tmp_path):
    path = write_perfetto(tmp_path / "t.json", projected)
    parts = list(read_parts(path))
    assert [value for key, value in parts if key == "traceEvents"] == json.loads(path.read_text())["traceEvents"]
    assert dict(parts)["otherData"]["gpu"] == "a100-80gb"
    with pytest.raises(ValueError, match="cannot write"):
        write_perfetto(tmp_path / "t.json" / "below.json", projected)
