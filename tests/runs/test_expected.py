"""What a point is expected to need and to take: more for more work, and only for the stages it runs."""

import pytest
from msgspec.structs import replace

from mmchar.runs.campaign.expected import correction, expected, stage_s, why_skipped
from mmchar.runs.campaign.grids import Point

SD = Point("stable-diffusion-1.5", tiny=True)
ONE = {"flop": 50e9, "read_bytes": 4e9, "write_bytes": 4e9, "calls": 1000.0}


def test_seconds_of_a_stage_by_hand():
    # 50 GFLOP at 50 GFLOP/s, 8 GB at 8 GB/s, 1000 calls of 10 us: 2.01 s;
    # 1 warm-up, 5 samples, 3 profiled, 1 for memory
    assert stage_s(SD, ONE) == pytest.approx(10 * 2.01 + 3 * 1000 * 0.5e-3)


def test_compiling_costs_and_more_for_more_operators():
    eager = stage_s(SD, ONE)
    compiled = stage_s(replace(SD, levers={"execution": "compiled-full"}), ONE)
    assert compiled == pytest.approx(eager + 3 + 20)  # 1000 operators of 20 ms
    assert stage_s(replace(SD, levers={"execution": "graphs"}), ONE) < compiled


def test_only_the_stages_that_run_are_expected():
    whole, text = expected(SD), expected(replace(SD, stages=("encode_text",)))
    assert text["expect_s"] < whole["expect_s"]
    assert text["weight_bytes"] < whole["weight_bytes"]  # the other networks are not built
    assert text["weight_bytes"] < text["need_bytes"] < whole["need_bytes"]


def test_more_work_is_expected_to_take_and_need_more():
    one, four = expected(SD), expected(replace(SD, request={"batch": 4}))
    assert four["expect_s"] > one["expect_s"] and four["need_bytes"] > one["need_bytes"]


@pytest.mark.parametrize(("ratios", "factor"), [([], 1.0), ([3.0], 3.0), ([2.0, 0.5, 4.0], 2.0), ([99.0], 5.0)])
def test_the_correction_is_the_median_ratio_within_limits(ratios, factor):
    assert correction(ratios) == factor


def test_what_is_too_large_is_known_without_counting():
    machine = {"capability": [9, 0], "memory_bytes": {"cpu": 10**12, "cuda": 80 * 10**9}}
    assert "138 GB in bfloat16" in why_skipped(Point("llama-2-70b", device="cuda", dtype="bfloat16"), machine)
    assert why_skipped(Point("llama-2-7b", device="cuda", dtype="bfloat16"), machine) == ""
