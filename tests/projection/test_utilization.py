"""Model FLOPs utilization: FLOPs over what the GPU could have done in the time, projected and measured."""

import numpy as np
import pandas as pd
import pytest
from test_roofline import linear, table

import mmchar
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.parallel.layout import parallelize
from mmchar.projection.summary import summarize
from mmchar.projection.utilization import add_mfu, at_peak_s, mfu

A100, T4 = get_gpu("a100-80gb"), get_gpu("t4")  # 312e12 and 19.5e12 FLOP/s in bfloat16 and float32, TF32 156e12


def test_flops_over_seconds_and_peak_by_stage():
    # 2 * 1000^3 FLOP * 5 = 1e10; at 312e12 they take 32.05 us, and in 100 us that is 32 %
    made = table(linear(1000, 1000, 1000, stage="denoise", repeats=5), {"stage": "pipeline", "write_bytes": 8})
    found = mfu(made, pd.Series({"denoise": 100e-6, "pipeline": 1.0}), A100)
    assert found["denoise"] == pytest.approx(1e10 / (100e-6 * 312e12))
    assert found["pipeline"] == 0
    assert mfu(made, pd.Series({"denoise": 100e-6}), A100, gpus=4)["denoise"] == pytest.approx(found["denoise"] / 4)
    assert np.isnan(mfu(made, pd.Series({"denoise": 0.0}), A100)["denoise"])


def test_each_operator_has_the_peak_of_its_own_type():
    convolution = {"category": "Convolution", "flop": 156 * 10**12, "dtype": "float32"}
    made = table(
        {"stage": "a", "category": "Linear", "flop": 312 * 10**12},
        {"stage": "a", "category": "Linear", "flop": 195 * 10**11, "dtype": "float32"},
        {"stage": "b", **convolution},
    )
    assert at_peak_s(made, A100).to_dict() == {"a": pytest.approx(2.0), "b": pytest.approx(1.0)}  # TF32
    assert at_peak_s(made[made["stage"] == "b"], T4)["b"] == pytest.approx(156 / 8.1)  # a T4 has none


def test_a_projection_says_it_of_each_stage_and_of_all():
    timed = mmchar.project("flux.1-dev", gpu="h100-sxm")
    found = summarize(timed)
    for stage in found["stages"]:
        rows = timed[timed["stage"] == stage["stage"]]
        flop = int((rows["flop"] * rows["repeats"]).sum())
        assert stage["mfu"] == pytest.approx(flop / (stage["total_s"] * 989.4e12))
    flop = int((timed["flop"] * timed["repeats"]).sum())
    assert found["mfu"] == pytest.approx(flop / (found["time_s"] * 989.4e12))
    assert 0.3 < found["mfu"] < 1


def test_what_several_gpus_all_do_counts_once():
    whole = mmchar.count("flux.1-dev")
    shared = mmchar.project(parallelize(whole, ulysses=4), gpu="h100-sxm")
    flop = int((whole["flop"] * whole["repeats"]).sum())
    found = summarize(shared, whole=whole)
    assert found["mfu"] == pytest.approx(flop / (4 * found["time_s"] * 989.4e12))
    alone = summarize(shared)
    assert alone["mfu"] is None and {row["mfu"] for row in alone["stages"]} == {None}


def test_a_measured_stage_has_it_on_a_gpu_that_we_know():
    made = table(linear(1000, 1000, 1000, stage="denoise", repeats=5))  # 1e10 FLOP
    measured = {"stages": [{"stage": "denoise", "median_s": 20e-6, "repeats": 5}]}
    add_mfu(measured, made, "NVIDIA TITAN V")
    assert "mfu" not in measured["stages"][0]
    add_mfu(measured, made, "NVIDIA A100-SXM4-80GB")
    assert measured["stages"][0]["mfu"] == pytest.approx(1e10 / (100e-6 * 312e12))
