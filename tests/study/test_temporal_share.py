"""Temporal attention's share: expectations, exponents and shares by hand, assumptions against sums by stage."""

import pandas as pd
import pytest

from mmchar import Request, count, measure
from mmchar.study.questions import temporal_share as over

GPU, CASCADE = "a100-80gb", "make-a-video"


@pytest.fixture(scope="module")
def timed():
    return {CASCADE: over.by_kernel(count(CASCADE, tiny=True), gpu=GPU)}


def test_expectations_by_hand():
    found = over.expected_by_level([1024, 64], frames=16).set_index("positions")
    assert found["spatial / temporal FLOP"].tolist() == [32, 2]  # 1024 / (2 * 16), 64 / (2 * 16)
    # 1024^2 * 16 / (2 * 1024 * 128^2) and, in one tile, 128^2 * 16 / (2 * 64 * 128^2)
    assert found["the same in whole tiles"].tolist() == [0.5, 0.125]
    assert found["frames of equal FLOP"].tolist() == [512, 32]


def test_requests_of_a_sweep_hold_both_lines_and_refuse_other_models():
    asked = over.sweep_requests(CASCADE, [8, 32], [64, 128])
    assert list(asked) == [(8, 64), (32, 64), (16, 64), (16, 128)]
    assert asked[16, 128].height == 2 * asked[16, 64].height
    between = (asked[32, 64].frames - asked[8, 64].frames) / 24  # 32 - 8 key frames
    assert asked[8, 64].frames == 7 * between + 1
    with pytest.raises(ValueError, match="scaled_model='svd-xt' has no key-frame stage; choose make-a-video"):
        over.key_frames("svd-xt", 8, 64)


def test_an_ideal_kernel_changes_cores_only_and_wastes_no_tile(timed):
    fused, ideal = timed[CASCADE]["flash"], timed[CASCADE]["ideal"]
    core, temporal = fused["attention"] != "", fused["attention"] == "temporal"
    assert fused["time_s"][~core].equals(ideal["time_s"][~core]) and core.any()
    assert (ideal["time_s"] < fused["time_s"])[temporal].all()
    least_s = fused["flop"] / 312e12  # the A100's bf16 peak
    assert (ideal["time_s"] > least_s)[core].all()


def test_assumptions_agree_with_sums_by_stage(timed):
    by_stage = over.cores_by_stage(timed, gpu=GPU)
    read = over.under_assumptions(timed, gpu=GPU).set_index(["stages", "how"])["share"]
    for kernel, column in (("flash", "time_fused_s"), ("eager", "time_eager_s"), ("ideal", "time_ideal_s")):
        sums = by_stage.groupby("attention")[column].sum()
        assert read["all stages", f"{kernel}, core"] == pytest.approx(100 * sums["temporal"] / sums.sum())
        first = over.temporal_part(by_stage).loc[(CASCADE, over.STAGE), column]
        assert read["key frames", f"{kernel}, core"] == pytest.approx(first)
    assert read["all, less longest", "flash, core"] > read["all stages", "flash, core"]


def test_flops_grow_with_the_powers_that_are_expected():
    asked = over.sweep_requests(CASCADE, [8, 32], [16, 32])
    scaling = over.scaled(CASCADE, asked, gpu=GPU, dtype="bfloat16", tiny=True, progress=False)
    found = over.exponents(scaling)
    assert found["exponent"].tolist() == pytest.approx(found["expected"].tolist(), abs=1e-9) and len(found) == 4
    ratio = over.temporal_over_spatial(scaling)
    equal = over.frames_of_equal_flop(ratio, side=16)
    at = ratio.set_index(["frames", "side"])["temporal / spatial, flop"]
    assert at[8, 16] == pytest.approx(8 / equal) and at[32, 16] == pytest.approx(32 / equal)
    figure = over.scaling_panels(scaling, title="scaled")
    assert [len(ax.lines) for ax in figure.axes] == [2] * 6


def test_shares_of_measured_cores_by_hand():
    rows = [("spatial", 1, 4.0, 2.0, 9.0), ("temporal", 2, 1.0, 3.0, 1.0), ("temporal", 4, 1.0, 1.0, 0.5)]
    cores = pd.DataFrame(rows, columns=["attention", "calls", "eager_s", "fused_s", "copy_s"])
    found = over.core_shares(cores).set_index("case")
    # eager 2 + 4 of 10 s; fused 6 + 4 of 12 s; with copies, 2 * 1 + 4 * 0.5 more, 14 of 16 s
    assert found["share"].tolist() == pytest.approx([60, 1000 / 12, 1400 / 16])
    assert found["total_s"].tolist() == [10, 12, 16]


def test_sites_are_of_the_published_stage_and_a_part_of_its_batch():
    whole, half = (over.core_sites(CASCADE, part=part, tiny=True) for part in (1, 2))
    assert set(whole["attention"]) == {"spatial", "temporal"}
    assert half["batch"].max() == whole["batch"].max() // 2


def test_a_measured_stage_is_read_once():
    table = measure(CASCADE, over.key_frames(CASCADE, 16, 8), tiny=True, stages=[over.STAGE], samples=1, progress=False)
    found = over.scaled_down_shares({"flash": table}).set_index("case")
    cores_s = table.loc[table["attention"].isin(["spatial", "temporal"]), "time_s"].sum()
    assert found.at["scaled down, flash, core", "total_s"] == pytest.approx(cores_s)  # not times its repeats


def test_what_was_learned_is_read_from_the_tables(timed):
    by_stage = over.cores_by_stage(timed, gpu=GPU)
    measured = pd.DataFrame({"time_kind": ["measured", "measured", "projected"], "share": [10.0, 20.0, 99.0]})
    text = over.learned(by_stage, measured, model=CASCADE, equal=200.4, gpu=GPU)
    flop = by_stage[by_stage["stage"] == over.STAGE].set_index("attention")["flop"]
    assert f"does {flop['spatial'] / flop['temporal']:.1f}x fewer FLOPs" in text
    assert "at 200 key frames. Measured: 10 to 20 % of" in text


def test_a_matrix_for_each_kernel(timed):
    figure = over.assumption_panels(over.under_assumptions(timed, gpu=GPU), title="shares")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["flash kernel", "eager kernel", "ideal kernel"]


def test_rows_of_key_frames_are_those_of_the_whole_generation():
    whole = count(CASCADE, tiny=True)
    whole = whole[whole["stage"] == over.STAGE].reset_index(drop=True)
    alone = over._key_frame_rows(CASCADE, Request(), "bfloat16", True).reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole, check_categorical=False)
    assert set(whole["repeats"]) == {2}  # of the scaled-down variant's steps
