"""What changes with a request: sizes, tokens, beams, tasks, guidance; by hand, and against other counts."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mmchar import Request, count
from mmchar.projection.roofline import project
from mmchar.study.drawing import length_plots
from mmchar.study.questions import over_requests as over

GPU = "a100-80gb"
UNET, SPEECH = "stable-diffusion-1.5", "seamless-m4t-v2-large-t2tt"


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def sizes():
    return over.by_size([UNET], [256, 512], gpu=GPU, tiny=True)


@pytest.fixture(scope="module")
def beams():
    return {f"{number} beams": count(SPEECH, Request(beams=number), tiny=True) for number in (5, 1)}


def test_convolution_grows_with_the_area_and_similarity_with_its_square(sizes):
    small, large = sizes.itertuples()
    assert large.convolution_flop == 4 * small.convolution_flop
    assert 4 * small.attention_flop < large.attention_flop <= 16 * small.attention_flop  # cross attention grows by 4
    assert large.similarity_bytes == 16 * small.similarity_bytes
    assert large.step_eager_bytes >= large.similarity_bytes and large.step_bytes < large.step_eager_bytes
    assert large.attention_fused_s < large.attention_eager_s
    assert large.decoder_bytes > small.decoder_bytes > 0


def test_sizes_are_those_of_the_table(sizes):
    table = count(UNET, Request(height=512, width=512), tiny=True)
    rows = table[(table["stage"] == "denoise") & (table["attention"] != "")]
    assert sizes["attention_flop"][1] == (rows["flop"] * rows["repeats"]).sum()
    items = (rows["batch"] * rows["heads"] * rows["q_len"] * rows["kv_len"]).max()
    assert sizes["similarity_bytes"][1] == 2 * items  # bfloat16


def test_a_crossover_by_hand():
    data = pd.DataFrame({"x": [1.0, 10.0, 1000.0], "square": [1.0, 100.0, 1e6], "line": [30.0, 300.0, 30000.0]})
    assert over.crossover(data, "x", "square", "line") == pytest.approx(30)  # x^2 = 30 x
    assert pd.isna(over.crossover(data, "x", "line", "square"))


def test_crossovers_are_found_by_model(sizes):
    two = pd.concat([sizes, sizes.assign(model="other", attention_flop=[0.5, 2.0], convolution_flop=1.0)])
    found = over.crossovers(two).set_index("model")["FLOP"]
    assert list(found.index) == [UNET, "other"]
    assert found["other"] == pytest.approx((256 * 512) ** 0.5)  # half below and half above, on logarithmic axes


def test_a_read_serves_every_position_once():
    tables = {
        "llama-2-7b": count("llama-2-7b", Request(prompt_tokens=32, new_tokens=5), tiny=True),
        UNET: count(UNET, Request(steps=4, guidance=1.0), tiny=True),
        SPEECH: count(SPEECH, Request(beams=3), tiny=True),
    }
    use = over.weight_use(tables, least=0).set_index(["model", "stage"])
    assert use.loc[("llama-2-7b", "decode"), ["reads", "uses"]].tolist() == [4, 1]  # the first token is the prefill's
    assert use.at[("llama-2-7b", "prefill"), "reads"] == 1
    assert 1 < use.at[("llama-2-7b", "prefill"), "uses"] <= 32  # the head sees the last position only
    assert use.at[(SPEECH, "decode"), "uses"] == 3
    assert use.at[(UNET, "denoise"), "reads"] == 5  # its scheduler asks the network once more than there are steps


def test_reordering_moves_what_the_pipeline_was_seen_to_select(beams):
    traffic = over.traffic_by_token(beams)
    moved = traffic[traffic["what"] == "cache, moved to its beams"]
    assert set(moved["case"]) == {"5 beams"}
    table = beams["5 beams"]
    seen = table[(table["stage"] == "pipeline") & (table["op"] == "index_select")]
    # each of those calls reads its five indices too
    indices = int((5 * 8 * seen["calls"]).sum())
    assert moved["value"].sum() == pytest.approx((seen["read_bytes"] + seen["write_bytes"]).sum() - indices, rel=1e-3)


def test_a_cache_grows_by_a_token_of_keys_and_values():
    table = count("llama-2-7b", Request(prompt_tokens=32, new_tokens=5), tiny=True)
    traffic = over.traffic_by_token({"llama": table}).set_index(["what", "token"])["value"]
    (width,) = set((table["heads"] * table["head_dim"])[table["attention"] == "causal"])
    layers = int(table.loc[(table["stage"] == "prefill") & (table["attention"] == "causal"), "calls"].sum())
    per_token = layers * 2 * width * 2  # keys and values, 2 bytes
    assert traffic["cache, read by attention", 1] == 33 * per_token
    assert traffic["cache, read by attention", 4] == 36 * per_token


def test_lengths_say_whose_they_are_and_fit_the_models():
    from mmchar import get_spec

    lengths = over.lengths_by_task()
    assert set(lengths["task"]) == {"T-T", "I-T", "IT-T", "T-I", "S-S", "S-T", "T-S", "H-A"}
    assert set(lengths["kind"]) == {"counted", "second-hand", "not found"} and lengths["source"].notna().all()
    unknown = lengths["kind"] == "not found"
    assert lengths.loc[unknown, ["field", *over.ENDS]].isna().all(axis=None)
    known = lengths[~unknown]
    assert known[["field", "unit", "mean", "units_per_one"]].notna().all(axis=None)
    both = known.dropna(subset=["min", "max"])
    assert (both["min"] < both["mean"]).all() and (both["mean"] < both["max"]).all()
    for model, request in over.task_requests(lengths)[["model", "request"]].itertuples(index=False):
        assert get_spec(model).resolve(Request(**request))


def test_lengths_become_requests_and_where_there_is_none_the_zoos():
    found = over.task_requests(over.lengths_by_task())
    human = found[found["task"] == "T-T codellama-34b, HumanEval"].set_index("end")["request"]
    assert human["mean"] == {"prompt_tokens": 157, "new_tokens": 66}  # 156.51 and 65.88 tokens
    speech = found[found["task"] == "S-T seamless-m4t-v2-large-s2tt, FLEURS"].set_index("end")["request"]
    assert speech["max"] == {"audio_s": 20, "new_tokens": 74}  # 368 characters: / 18 a second, / 5 a token
    assert found.loc[found["model"] == "hstu-24l-1024-8k", ["end", "request"]].to_numpy().tolist() == [["zoo", {}]]
    assert found.loc[found["task"].str.startswith("I-T"), "end"].tolist() == ["mean"]


def test_times_of_a_task_are_parts_of_its_generation():
    lengths = [{"prompt_tokens": 8, "new_tokens": 3}, {"prompt_tokens": 8, "new_tokens": 9}, {}]
    models = ["llama-2-7b", "llama-2-7b", "hstu-ml20m-large"]
    asked = pd.DataFrame({"task": models, "model": models, "end": ["min", "max", "zoo"], "request": lengths})
    short, long, ranked = over.times_by_task(asked, gpu=GPU, tiny=True).itertuples()
    assert short.first_s == long.first_s  # the same prompt
    assert short.decode_share < long.decode_share and long.generation_s > short.generation_s
    timed = project(count("llama-2-7b", Request(**lengths[1]), tiny=True), gpu=GPU)
    by_stage = (timed["time_s"] * timed["repeats"]).groupby(timed["stage"].astype(str)).sum()
    assert long.first_s == pytest.approx(by_stage["prefill"])
    assert long.decode_share == pytest.approx(100 * by_stage["decode"] / by_stage.sum())
    assert ranked.decode_share == 0 and 0 < ranked.first_s <= ranked.generation_s


def test_tasks_are_drawn_from_shortest_to_longest():
    ends = [("a", "min", 1.0), ("a", "mean", 2.0), ("a", "max", 4.0), ("b", "zoo", 3.0)]
    data = pd.DataFrame(ends, columns=["task", "end", "first_s"]).assign(generation_s=5.0, decode_share=50.0)
    first, _, share = length_plots.task_times(data).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert "projected" in first.get_xlabel() and first.get_xscale() == "log" and share.get_xscale() == "linear"
    (lines,) = [drawn for drawn in first.collections if hasattr(drawn, "get_segments")]
    assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[1.0, 4.0], [3.0, 3.0]]
    with pytest.raises(ValueError, match="figure needs column decode_share"):
        length_plots.task_times(data.drop(columns="decode_share"))


def test_guidance_and_steps_are_told_apart():
    changes = [{"guidance": None}, {"guidance": 1.0}, {"steps": 3}, {}]
    found = over.asked_again([UNET], changes, gpu=GPU, tiny=True)
    assert found["case"].tolist() == [
        f"{UNET}, guided",
        f"{UNET}, not guided",
        f"{UNET}, guided",
    ]  # the last is the first
    usual, alone, more = found["value"]
    assert alone < usual < more
    with pytest.raises(ValueError, match="batch"):
        over.asked_again([UNET], [{"batch": 0}], gpu=GPU, tiny=True)


def test_figures_draw_what_is_in_the_tables(sizes, beams):
    figure = length_plots.size_panels(sizes, over.WORK)
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["attention cores", "convolution"]
    assert list(first.lines[0].get_ydata()) == pytest.approx(list(sizes["attention_flop"] / 1e12))
    assert len(second.lines) == 3 and "projected" in second.get_ylabel()
    memory = length_plots.size_panels(pd.concat([sizes, sizes.assign(model="other")]), over.MEMORY)
    assert [ax.get_title() for ax in memory.axes] == [UNET, "other"]
    assert [ax.get_legend() is None for ax in memory.axes] == [True, False]
    use = over.weight_use({UNET: count(UNET, tiny=True)})
    ax = length_plots.weight_use(use)
    assert ax.collections[0].get_offsets()[0].tolist() == pytest.approx([use["reads"][0], use["uses"][0]])
    ax = length_plots.token_traffic(over.traffic_by_token(beams))
    assert max(ax.lines[0].get_ydata()) < 1 and "GB" in ax.get_ylabel()
    asked = over.asked_again([UNET], [{"batch": 1}, {"batch": 2}, {"steps": 1}], gpu=GPU, tiny=True)
    left, right = length_plots.request_panels(asked).axes
    assert list(left.lines[0].get_xdata()) == [1, 2] and list(right.lines[0].get_xdata()) == sorted(
        asked["steps"].unique()
    )


def test_a_timeline_holds_what_eager_attention_adds():
    table = count(UNET, tiny=True)
    data = over.timeline(table)
    assert len(data) == len(table) and (data["live_eager_bytes"] >= data["live_bytes"]).all()
    step = table["stage"] == "denoise"
    assert data.loc[step, "live_eager_bytes"].max() > data.loc[step, "live_bytes"].max()
    assert data["live_bytes"].max() == table["live_bytes"].max()
