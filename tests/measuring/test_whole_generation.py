"""A generation from end to end: when it is timed, what its stages leave of it, and what is in doubt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mmchar
from mmchar.measuring import target, timing, whole_generation
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.profiling import summarize_measured
from mmchar.measuring.timing import Measurement
from mmchar.measuring.whole_generation import generation_doubts, generation_facts, time_generation

PLAN = [SimpleNamespace(name="prefill", repeats=1), SimpleNamespace(name="decode", repeats=9)]


def timed(*samples):
    return Measurement(samples, 1, "cpu", "small generation")


def test_the_stages_leave_a_rest():
    facts = generation_facts(timed(2.0, 2.5, 3.0), {"prefill": 0.5, "decode": 0.2}, PLAN)
    # 0.5 + 9 * 0.2 = 2.3; 2.5 - 2.3 = 0.2; quartiles 2.25 and 2.75
    assert facts.pop("samples") == [2.0, 2.5, 3.0]
    assert facts == pytest.approx({"median_s": 2.5, "iqr_s": 0.5, "sum_of_stages_s": 2.3, "rest_s": 0.2})
    assert generation_facts(timed(2.0), {"prefill": 0.5, "decode": 0.2}, PLAN)["iqr_s"] is None


def test_without_all_stages_there_is_no_rest():
    facts = generation_facts(timed(2.0, 2.1), {"prefill": 0.5}, PLAN)
    assert (facts["sum_of_stages_s"], facts["rest_s"]) == (None, None)
    assert generation_doubts(timed(2.0, 2.1), facts) == []


def test_stages_that_add_up_to_more_than_the_whole_are_in_doubt():
    steady = timed(2.0, 2.0, 2.0)
    assert generation_doubts(steady, generation_facts(steady, {"prefill": 0.3, "decode": 0.2}, PLAN)) == []  # 2.1 s
    (line,) = generation_doubts(steady, generation_facts(steady, {"prefill": 1.2, "decode": 0.2}, PLAN))
    assert line == "small generation: its stages add up to 1.50x the whole"
    uneven = timed(1.0, 2.0, 3.0)
    (line,) = generation_doubts(uneven, generation_facts(uneven, {"prefill": 0.2, "decode": 0.1}, PLAN))
    assert "WARNING: IQR/median is 50%" in line


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize(("seconds", "runs", "warmup"), [(59.0, 6, 2), (61.0, 1, 0)])
def test_a_long_generation_is_timed_once(clock, seconds, runs, warmup):
    ran = []

    def work():
        ran.append(torch.is_inference_mode_enabled())
        clock.now += seconds

    found = time_generation(work, device="cpu", samples=4, warmup=2, label="film")
    assert ran == [True] * runs, "2 warm-ups and 4 samples, or the first alone"
    assert found.samples_s == (seconds,) * max(1, runs - 2) and (found.warmup, found.label) == (warmup, "film")


def test_a_tiny_generation_is_timed_and_the_rest_is_a_row():
    table = mmchar.measure("clip-vit-l-14", tiny=True, samples=3, progress=False)
    facts = table.attrs["generation"]
    runs = table.groupby("stage", observed=True)["repeats"].max()
    total = sum(table.attrs["median_s"][stage] * int(runs[stage]) for stage in table.attrs["median_s"])
    assert facts["sum_of_stages_s"] == pytest.approx(total)
    assert facts["rest_s"] == pytest.approx(np.median(facts["samples"]) - total) and len(facts["samples"]) == 3
    rest = table[table["stage"] == "pipeline"]
    assert rest["time_s"].tolist() == pytest.approx([facts["rest_s"]] if facts["rest_s"] > 0 else [])
    assert set(rest["op"]) <= {whole_generation.REST} and set(rest["category"]) <= {"Uncounted"}
    summary = summarize_measured(table)
    assert summary["generation"] == facts and summary["time_s"] == pytest.approx(total)
    assert "pipeline" not in {row["stage"] for row in summary["stages"]}, "it is none of the stages"


def test_the_row_of_the_rest_has_the_columns_of_the_table():
    row = whole_generation.rest_row("sd", 0.25)
    assert list(row.columns) == [*mmchar.counting.operator_table.COLUMNS, "ran"]
    (found,) = row.to_dict("records")
    assert (found["model"], found["stage"], found["component"], found["repeats"]) == ("sd", "pipeline", "pipeline", 1)
    assert (found["time_s"], found["time_kind"], found["flop"], found["kernels"]) == (0.25, "measured", 0, 0)


@pytest.mark.parametrize("more", [{"stages": ["prefill"]}, {"levers": Levers(layer_skip=2, acceptance=0.5)}])
def test_a_part_of_a_generation_is_no_whole_one(more):
    table = mmchar.measure("llama-2-7b", tiny=True, new_tokens=3, samples=1, progress=False, **more)
    assert table.attrs["generation"] is None and "pipeline" not in set(table["stage"])


def broken(*_args):
    def work():
        raise IndexError("no such\ntoken")

    return work


def test_a_generation_that_fails_says_so_and_leaves_the_stages_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(target, "_zoo_generation", broken)
    asked = {"tiny": True, "new_tokens": 3, "samples": 1, "progress": False}
    says = "llama-2-7b generation failed on cpu in float32: IndexError: no such token"
    with pytest.raises(ValueError, match=says):
        mmchar.measure("llama-2-7b", **asked)
    table = mmchar.measure("llama-2-7b", keep_going=True, **asked)
    assert table.attrs["failed"] == {"pipeline": says} and table.attrs["generation"] is None
    assert set(table["stage"]) == {"prefill", "decode"}
    assert mmchar.measure("llama-2-7b", whole=False, **asked).attrs["failed"] == {}
