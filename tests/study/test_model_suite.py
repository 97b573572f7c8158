"""The suite's table against its operator tables, and its checks by hand."""

import pandas as pd
import pytest

from mmchar import count, get_gpu, use_backend
from mmchar.models.loading import zoo_names
from mmchar.study.questions import model_suite as question

GPU, DTYPE, SD, LLAMA = "a100-80gb", "bfloat16", "stable-diffusion-1.5", "llama-2-7b"


@pytest.fixture(scope="module")
def tables():
    return {name: count(name, dtype=DTYPE, tiny=True) for name in (LLAMA, SD)}


@pytest.fixture(scope="module")
def stages(tables):
    return question.stage_costs(tables, gpu=GPU)


@pytest.fixture(scope="module")
def suite(tables, stages):
    return question.suite(tables, stages, gpu=GPU, dtype=DTYPE)


def test_stages_add_up_to_generations(tables, stages, suite):
    assert stages.groupby("model")["share"].sum().tolist() == pytest.approx([100, 100])
    found = suite.set_index("model")
    for name, table in tables.items():
        assert found.at[name, "flop"] == (table["flop"] * table["repeats"]).sum()
    assert found["intensity"].tolist() == pytest.approx((found["flop"] / found["bytes"]).tolist())


def test_memory_is_weights_and_the_most_that_is_alive(tables, suite):
    row = suite.set_index("model").loc[SD]
    weights = 2 * sum(tables[SD].attrs["params"].values())  # bytes of bfloat16
    assert row["weights_bytes"] == weights and row["fits"]
    assert row["peak_bytes"] == weights + tables[SD]["live_bytes"].max()
    assert row["peak_eager_bytes"] == weights + use_backend(tables[SD], "eager")["live_bytes"].max()


def test_published_and_built_parameters(tables):
    built = question.published_and_built(tables, tiny=True)
    assert built[["model", "component"]].to_numpy().tolist()[0] == [LLAMA, "lm"]
    known = built.dropna(subset="published")
    assert (known["difference %"] == 100 * (known["built"] / known["published"] - 1)).all()
    rows = pd.DataFrame({"component": ["a", "b", "c"], "difference %": [3.0, -3.0, 1.0], "reason": ["why", "", ""]})
    assert question.unexplained(rows) == "b" and question.unexplained(rows.head(1)) == "none"


def test_a_stage_above_either_roof_is_found():
    sheet = get_gpu(GPU)
    peak, ridge = sheet.peak(DTYPE), sheet.ridge_flop_per_byte(DTYPE)
    under = pd.DataFrame({"intensity": [ridge / 2, 2 * ridge], "flop_s": [peak / 2, peak]})
    assert question.above_roofs(under, gpu=GPU, dtype=DTYPE) == 0
    assert question.above_roofs(under.assign(flop_s=1.01 * under["flop_s"]), gpu=GPU, dtype=DTYPE) == 2


def test_ratios_by_hand():
    rows = [
        ("autoregressive", "decode", 1.0),
        ("autoregressive", "prefill", 250.0),
        ("latent_diffusion", "denoise", 500),
    ]
    stages = pd.DataFrame(rows, columns=["family", "stage", "intensity"])
    models = pd.DataFrame({"family": ["autoregressive", "latent_diffusion"], "intensity": [2.0, 300.0]})
    assert list(question.intensity_ratios(stages, models).values()) == [150, 500, 2]
    assert question.decode_intensity(stages).tolist() == [1]


def test_the_whole_generation_is_drawn_as_one_more_stage(stages, suite):
    found = question.points(stages, suite)
    assert (found["stage"] == "all").sum() == 2 and len(found) == len(stages) + 2


def test_what_was_learned(stages, suite):
    text = question.learned(stages, suite, gpu=GPU, dtype=DTYPE)
    assert f"{LLAMA}" in text and "Do not fit a100-80gb (80 GB): none; with eager attention also none." in text
    cramped = suite.assign(fits=[True, False], peak_eager_bytes=10**12)
    text = question.learned(stages, cramped, gpu=GPU, dtype=DTYPE)
    assert f"(80 GB): {SD}; with eager attention also {LLAMA}." in text


def test_the_papers_eight_models_are_in_the_zoo():
    assert len(set(question.OF_PAPER)) == 8 and set(question.OF_PAPER) <= set(zoo_names())
