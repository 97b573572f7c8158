"""Shares by operator: sums, what is outside attention, what decides, and readings of the paper, by hand."""

import pandas as pd
import pytest

from mmchar import count, project
from mmchar.study.questions import operator_breakdown as question

GPU, PHENAKI, SD = "a100-80gb", "phenaki-1.8b", "stable-diffusion-1.5"


@pytest.fixture(scope="module")
def tables():
    return {name: count(name, tiny=True) for name in (PHENAKI, SD)}


@pytest.fixture(scope="module")
def assumed(tables):
    return question.assumed_shares(tables, gpu=GPU, tiny=True)


def test_which_scaled_down_models_are_measured():
    names = ["llama-2-7b", "llama-2-13b", SD, "make-a-video"]
    assert question.to_measure("one per family", names) == ["llama-2-7b", SD]
    assert question.to_measure("", names) == []
    assert question.to_measure(f"{SD},llama-2-7b", names) == ["llama-2-7b", SD]


def test_shares_of_a_run_add_up_and_their_seconds_are_those_of_the_projection(tables):
    shares = question.projected_shares(tables, gpu=GPU)
    assert shares.groupby("run")["share"].sum().tolist() == pytest.approx([100] * 4)
    timed = project(tables[SD], gpu=GPU, attention="eager")
    shown = question.in_percent(shares)
    assert shown.at[(SD, "eager"), "total_s"] == pytest.approx((timed["time_s"] * timed["repeats"]).sum())
    assert list(shown.index.get_level_values("model").unique()) == [PHENAKI, SD]


def test_flops_stand_above_times_without_what_computes_nothing(tables):
    shares = question.projected_shares(tables, gpu=GPU)
    upper, lower = question.flop_and_time(shares, gpu=GPU).axes
    bars = [{bar.get_label() for bar in ax.containers} for ax in (upper, lower)]
    assert "Data movement" in bars[1] and bars[0] < bars[1]
    assert upper.get_legend() is None and {text.get_text() for text in lower.get_legend().texts} == bars[1]


def test_linear_outside_attention_leaves_no_projection_of_attention(tables):
    table = tables[PHENAKI]
    rows = question.outside_attention(table)
    assert set(table.loc[rows, "category"]) == {"Linear"}
    inside = table[(table["category"] == "Linear") & ~rows]["module"].astype(str)
    cores = table.loc[table["attention"] != "", "module"].astype(str).unique()
    assert len(inside) and all(any(name.startswith(core) for core in cores) for name in inside)


def test_assumptions_move_a_share_from_what_is_projected(tables, assumed):
    wide = question.by_setting(assumed)
    timed = project(tables[SD], gpu=GPU, attention="flash")
    time_s = timed["time_s"] * timed["repeats"]
    share = 100 * time_s[timed["category"] == "Convolution"].sum() / time_s.sum()
    assert wide.at[("Convolution", SD), "as projected"] == pytest.approx(share)
    linear = wide.loc[("Linear", PHENAKI)]
    assert linear["whole modules"] < linear["as projected"] < linear["no waiting for the host"]
    assert wide.loc[("Convolution", SD)].isna().sum() == 2  # whole modules are of transformers only


def test_what_decides_is_what_moves_most():
    rows = [("m", "Linear", "as projected", 50.0), ("m", "Linear", "a", 40.0), ("m", "Linear", "b", 65.0)]
    shares = pd.DataFrame(rows, columns=["model", "category", "setting", "share"])
    assert question.decisive(shares).at[("Linear", "m"), "decides"] == "b"
    projected = pd.DataFrame({"model": "m", "category": ["Linear", "Attention"], "flop": [3, 1], "attention": "flash"})
    line = "- **m**, Linear: 50 % of time, 75 % of FLOPs; from 40 % (a) to 65 % (b)"
    assert question.learned(shares, projected) == line


def test_the_largest_share_of_each_reading_is_held_to_within_a_quarter():
    rows = [
        (SD, "Convolution", "as projected", 54.0),  # 44 * 1.25 = 55
        ("stable-diffusion-2.1", "Convolution", "as projected", 30.0),
        ("imagen", "Convolution", "as projected", 56.0),
        (PHENAKI, "Linear", "whole modules", 36.0),  # 49 * 0.75 = 36.75
    ]
    found = question.largest_shares(pd.DataFrame(rows, columns=["model", "category", "setting", "share"]))
    assert found["model"].tolist() == [SD, "imagen", PHENAKI]
    assert found["near"].tolist() == [True, False, False]
    assert found["said"].tolist() == [44, 44, 49] and found["claim"].tolist() == ["c001", "c001", "c002"]


def test_speeds_are_off_by_a_factor_whichever_is_larger():
    published = pd.DataFrame(
        {"unit": ["s", "s", "tokens/s"], "execution": ["eager"] * 3, "published": [2.0, 1.0, 5.0]}
    ).assign(projected=[1.0, 4.0, 5.0])
    assert question.judged_speeds(published)["times"].tolist() == [2, 4]  # LLaMA on a slow host is not judged


def test_a_panel_per_category_with_the_papers_value(assumed):
    upper, lower = question.sensitivity_panels(assumed, gpu=GPU).axes
    assert "up to 44 %" in upper.get_title() and "up to 49 %" in lower.get_title()
    assert upper.get_title().startswith("Convolution") and lower.get_title().startswith("Linear")
    drawn = {text.get_text() for text in lower.get_legend().texts}
    assert upper.get_legend() is None and set(assumed["setting"]) < drawn
