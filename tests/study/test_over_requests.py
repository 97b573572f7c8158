"""What changes with a request: sizes, tokens, beams, tasks, guidance; by hand, and against other counts."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mmchar import Request, count
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


def test_lengths_by_task_are_the_caches():
    llama = count("llama-2-7b", Request(prompt_tokens=32, new_tokens=5), tiny=True)
    found = over.lengths_by_task({"T-T": llama}).set_index("what")
    columns = ["task", "shortest", "median", "longest"]
    assert found.loc["prompt", columns].tolist() == ["T-T", 32, 32, 32]
    assert found.loc["each generated token", columns].tolist() == ["T-T", 33, 34.5, 36]


def test_every_task_of_the_second_paper_is_in_the_zoo():
    from mmchar import get_spec

    assert [get_spec(name).name for name in over.TASKS.values()] == list(over.TASKS.values())


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
    ax = length_plots.task_lengths(over.lengths_by_task(beams))
    assert [label.get_text() for label in ax.get_yticklabels()] == list(beams)
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
