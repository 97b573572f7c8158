"""Sequence lengths: levels and exponents by hand, two routes, growth by step, and what is refused."""

import pandas as pd
import pytest

from mmchar import count
from mmchar.models.loading import get_spec
from mmchar.study.questions import sequence_length as question

GPU, SD, LLAMA = "a100-80gb", "stable-diffusion-1.5", "llama-2-7b"


@pytest.fixture(scope="module")
def tables():
    return {name: count(name, tiny=True) for name in (LLAMA, SD)}


@pytest.fixture(scope="module")
def lengths(tables):
    return question.all_lengths(tables, item_bytes=2)


def test_levels_by_hand():
    found = question.levels_by_hand(512, item_bytes=2)
    assert found["tokens"].tolist() == [4096, 1024, 256, 64]  # (512 / 8)^2 and a quarter each
    assert found["longer than the next level (x)"].tolist()[:3] == [4, 4, 4]
    assert found["similarity per head (bytes)"].iloc[0] == 2 * 4096**2


def test_both_routes_give_the_same_lengths(tables):
    found = question.two_routes(tables, tiny=True)
    assert found["model"].tolist() == [LLAMA, SD] and found["equal"].all()
    other = question.two_routes({SD: tables[SD].assign(q_len=tables[SD]["q_len"] + 1)}, tiny=True)
    assert other["equal"].tolist() == [False]


def test_calls_of_a_generation_and_the_largest_matrix(tables, lengths):
    table = tables[SD][tables[SD]["attention"] != ""]
    assert lengths.loc[lengths["model"] == SD, "calls"].sum() == (table["calls"] * table["repeats"]).sum()
    largest = question.largest_matrices(lengths, gpu=GPU).set_index("model").loc[SD]
    assert largest["similarity_bytes"] == (2 * table["batch"] * table["heads"] * table["q_len"] * table["kv_len"]).max()
    assert largest["share_of_gpu_memory"] == pytest.approx(largest["similarity_bytes"] / 80e9, rel=0.1)


def test_the_heaviest_stage_has_most_pairs_of_queries():
    rows = [("a", "prefill", 8, 1), ("a", "decode", 1, 63), ("b", "one", 2, 1), ("b", "other", 1, 5)]
    table = pd.DataFrame(rows, columns=["model", "stage", "q_len", "calls"]).assign(batch=1, heads=1)
    assert question.heaviest_stages(table) == [("a", "prefill"), ("b", "other")]  # 64 > 63, 5 > 4


def test_a_step_goes_down_and_up_again(tables, lengths):
    series = question.in_a_step(tables, lengths)
    assert set(series["model"]) == {SD} and list(series["part"].unique()) == ["down", "middle", "up"]
    middle = series.loc[series["part"] == "middle", "q_len"].min()
    assert middle == series["q_len"].min() and series["q_len"].iloc[0] == series["q_len"].max()
    assert len(question.step_panels(series).axes) == 1
    others = question.in_a_step({LLAMA: tables[LLAMA]}, lengths[lengths["model"] == LLAMA])
    assert set(others["part"]) == {"all"}  # no model that is drawn by default


def test_growth_of_either_way_of_decoding():
    steps = pd.DataFrame({"model": "m", "stage": ["decode"] * 3 + ["parallel_decode_base"] * 2}).assign(
        longest=[5, 6, 7, 9, 9]
    )
    found = question.growth(steps).set_index("way")
    assert found.loc["decode", ["least", "most"]].tolist() == [1, 1] and found["good"].all()
    assert found.loc["parallel_decode", ["expected", "most"]].tolist() == [0, 0]
    assert question.growth(steps.assign(longest=[5, 6, 8, 9, 9]))["good"].tolist() == [True, False]
    assert question.growth(steps.head(0)).empty


def test_lengths_follow_the_area_of_the_image():
    spec = get_spec("stable-diffusion-2.1")
    found = question.by_side(spec, [512, 1024])
    assert found.groupby("side")["share"].sum().tolist() == pytest.approx([100, 100])
    small, large = (rows.sort_values("q_len") for _, rows in found.groupby("side"))
    assert large["q_len"].tolist() == [4 * length for length in small["q_len"]]
    assert large["calls"].tolist() == small["calls"].tolist()


def test_exponents_of_the_image_side():
    spec = get_spec("stable-diffusion-2.1")
    memory = question.similarity_by_side(spec, [512, 1024, 2048], item_bytes=2)
    powers = question.exponents(memory).set_index("what")
    assert powers["good"].all() and len(powers) == 4
    assert powers.at["all cross calls of a step", "exponent of the image side"] == pytest.approx(2)
    cubic = memory.assign(bytes=memory["side"] ** 3)
    assert question.exponents(cubic)["good"].tolist() == [False, False, True, False]  # only of all calls is 3 expected
    guided = question.with_guides(memory, gpu=GPU, dtype="bfloat16").pivot(index="side", columns="what", values="bytes")
    heads = guided["largest single call"] / guided["closed form: one head, outermost level"]
    assert heads.tolist() == [10, 10, 10]  # 5 heads of 64 in 320 channels; with and without guidance
    ax = question.memory_curves(question.with_guides(memory, gpu=GPU, dtype="bfloat16"))
    assert "all calls of a step" not in {text.get_text() for text in ax.get_legend().texts}


def test_four_is_agreed_with_to_a_half():
    read = pd.DataFrame({"m": [4.4, 16.0], "n": [1.0, 3.9]}, index=["first", "second"])
    assert question.agrees_with_four(read).tolist() == [True, False]


def test_what_was_learned_of_models_that_do_not_denoise(tables):
    lengths = question.all_lengths({LLAMA: tables[LLAMA]}, item_bytes=2)
    read = question.readings({LLAMA: tables[LLAMA]}, lengths)
    assert read.empty
    powers = pd.DataFrame({"what": ["all"], "power": [3.5], "expected": [4], "good": [True]})
    text = question.learned(read, powers, question.largest_matrices(lengths, gpu=GPU))
    assert "no denoiser among these models" in text and "3.50 (all)" in text and LLAMA in text


def test_bad_input_is_refused_before_any_work():
    with pytest.raises(ValueError, match="size_model='llama-2-7b' is autoregressive; choose a latent diffusion model"):
        question.sized_model(LLAMA, [512])
    with pytest.raises(ValueError, match="500"):
        question.sized_model(SD, [512, 500])
