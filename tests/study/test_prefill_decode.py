"""Gains from a fused kernel: cases, sums by stage and model against a second route, ratios and analogy by hand."""

import pandas as pd
import pytest

from mmchar import Request, count, project
from mmchar.study import claims
from mmchar.study.questions import prefill_decode as question

GPU, SD, LLAMA = "a100-80gb", "stable-diffusion-1.5", "llama-2-7b"


@pytest.fixture(scope="module")
def compared():
    return question.gains({name: count(name, tiny=True) for name in (LLAMA, SD)}, gpu=GPU)


def test_a_sweep_varies_the_side_of_models_that_denoise_only():
    cases = question.sweep_cases([SD, "parti-20b"], batches=[1, 4], sides=[256, 512])
    assert cases[:4] == [(SD, 256, 1), (SD, 256, 4), (SD, 512, 1), (SD, 512, 4)]
    assert cases[4:] == [("parti-20b", 256, 1), ("parti-20b", 256, 4)]
    with pytest.raises(ValueError, match="500"):
        question.sweep_cases([SD], batches=[1], sides=[500])


def test_gains_of_a_model_are_those_of_whole_tables(compared):
    found = question.by_model(compared)
    assert list(found.index) == [LLAMA, SD]
    table = count(SD, tiny=True)
    eager, flash = (project(table, gpu=GPU, attention=kernel, execution="compiled") for kernel in ("eager", "flash"))
    for what, only in (("end to end", False), ("attention", True)):
        gain = claims.speedup_by_model(flash, eager, attention_only=only)[SD]
        assert found.at[SD, f"{what}, compiled"] == pytest.approx(gain)


def test_stages_have_the_lengths_of_their_attention(compared):
    found = question.by_stage(compared).set_index(["model", "stage"])
    decode, prefill = found.loc[(LLAMA, "decode")], found.loc[(LLAMA, "prefill")]
    assert decode["q_min"] == decode["q_max"] == 1 and decode["kv_max"] > decode["kv_min"] > prefill["q_max"]
    assert prefill["q_min"] == prefill["kv_max"] and decode["intensity_fused"] < 1 < prefill["intensity_fused"]
    assert 1 <= found.at[(SD, "denoise"), "stage_gain"] <= found.at[(SD, "denoise"), "gain"]


def test_gains_by_length_are_of_the_models_asked_for(compared):
    found = question.by_length(compared, [SD])
    assert set(found["model"]) == {SD} and not found.duplicated(["stage", "attention", "q_len"]).any()
    assert found["speedup"].tolist() == pytest.approx((found["time_eager_s"] / found["time_fused_s"]).tolist())


def test_ratios_are_of_every_pair_in_every_reading():
    readings = ["end to end, eager", "end to end, compiled", "attention, eager", "attention, compiled"]
    found = pd.DataFrame([[1.0, 1.0, 2.0, 1.0], [1.5, 2.0, 3.0, 4.0]], index=[LLAMA, SD], columns=readings)
    ratios = question.pairs(found, [LLAMA, SD])
    assert ratios["reading"].tolist() == readings and ratios["ratio"].tolist() == [1.5, 2, 1.5, 4]
    axes = [ax for ax in question.pair_panels(ratios).axes if ax.get_title()]
    framed = [sum(not patch.get_fill() for patch in ax.patches) for ax in axes]
    assert framed == [1, 1, 1, 0]  # 4 is beyond what the paper says


def test_a_sweep_agrees_with_the_gains_of_the_same_request():
    swept = question.sweep([(SD, 128, 4)], gpu=GPU, dtype="bfloat16", tiny=True)
    table = count(SD, Request(batch=4, height=128, width=128), dtype="bfloat16", tiny=True)
    found = question.by_model(question.gains({SD: table}, gpu=GPU)).loc[SD]
    assert swept["end to end"].iloc[0] == pytest.approx(found["end to end, eager"])
    assert swept["attention"].iloc[0] == pytest.approx(found["attention, eager"])
    titles = [ax.get_title() for ax in question.sweep_panels(swept).axes]
    assert {"end to end", "attention"} <= set(titles)


def test_the_analogy_by_hand():
    stages = pd.DataFrame({"stage": ["decode", "denoise_64"], "intensity_fused": [8.0, 200.0]})
    models = pd.DataFrame({"family": ["encoder_decoder"], "attention, compiled": [1.3]})
    found = question.analogy(stages, models).set_index("name")
    assert found["got"].tolist() == [8, 25, 1.3] and found["good"].tolist() == [True, False, False]
    assert len(question.analogy(stages.head(1), models.head(0))) == 1  # what none of the models can show is left out


def test_what_the_data_sheet_says():
    found = question.on_sheet(gpu=GPU, dtype="bfloat16").set_index("case")
    assert found.at["prefill", "intensity_fused"] == 256 and found.at["decode step", "intensity_fused"] < 1
    assert question.sheet_curve(gpu=GPU, dtype="bfloat16")["q_len"].iloc[-1] == 2**14


def test_what_was_learned(compared):
    rows = [("decode", "causal", 1, 1.25), ("denoise", "self", 256, 2.5)]
    measured = pd.DataFrame(rows, columns=["stage", "attention", "q_len", "speedup"])
    text = question.learned(question.by_model(compared), measured, [LLAMA, SD])
    assert "decode 1.25x at 1 query" in text and "denoising 2.50x at 256" in text
