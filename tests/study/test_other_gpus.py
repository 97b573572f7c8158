"""Projections beside published speeds and on other GPUs: ratios, cost, assumptions and texts, by hand."""

import pandas as pd
import pytest

from mmchar import count
from mmchar.study.questions import other_gpus as of

SD, LLAMA = "stable-diffusion-1.5", "llama-2-7b"


@pytest.fixture(scope="module")
def tables():
    return {name: count(name, dtype="float16", tiny=True) for name in (SD, LLAMA)}


def test_ratios_are_of_times_whatever_the_unit():
    beside = of.speeds_beside([LLAMA, SD])
    rate = beside["unit"].str.endswith("/s")
    assert rate.any() and not rate.all()
    faster = beside["projected"].astype(float) > beside["published"].astype(float)
    assert ((beside["ratio"] < 1) == (faster == rate)).all()  # a larger rate and a smaller time are both too fast
    assert of.spread_by_kind(beside)["size"].sum() == len(beside)


def test_cost_is_time_and_every_gpu_has_a_row(tables):
    found = of.everywhere(tables, dollars_per_gpu_hour=7.2)
    assert len(found) == 2 * len(of.GPUS) and set(found["gpu"]) == set(of.GPUS)
    assert found["dollars"].tolist() == pytest.approx((found["time_s"] / 500).tolist())  # 3600 / 7.2
    assert f"{SD} on b200" in set(found["label"])


def test_half_of_an_assumption_changes_what_hangs_on_it(tables):
    found = of.halved_one_by_one(tables, gpu="h100-sxm").set_index(["model", "halved"])["change_percent"]
    assert len(found) == 2 * len(of.HALVED)
    # scaled-down models do nothing but wait: half of a dispatch takes a third to half of the time away
    assert -50.001 <= found[LLAMA, "dispatch_s"] < -30
    assert (found.drop(index="dispatch_s", level="halved") >= -1e-9).all()


def test_a_newer_gpu_may_be_slower_by_the_slack_only():
    wide = pd.DataFrame({"a100-80gb": [3.0, 1.0], "h100-sxm": [2.0, 1.005], "b200": [2.0, 1.0]})
    assert of.never_slower(wide) and not of.never_slower(wide, slack=1.0)


def test_shares_of_a_decoder_by_hand():
    decoder = pd.DataFrame({"measured_s": [6.0, 3.0, 1.0], "projected_s": [10.0, 8.0, 2.0]})
    assert of.most_off(decoder) == pytest.approx(10)  # 60, 30, 10 % and 50, 40, 10 %
    kernels = pd.DataFrame({"kind": "gemm", "gpu": "a", "measured_s": [1.0, 2.0], "projected_s": [2.0, 2.0]})
    assert of.kernel_ratios(kernels).at[("gemm", "a"), "mean"] == 1.5


def test_what_was_learned():
    rows = [("m", "fed", 5.0), ("m", "dispatch_s", -40.0), ("n", "fed", 9.0), ("n", "dispatch_s", -1.0)]
    decides = pd.DataFrame(rows, columns=["model", "halved", "change_percent"])
    places = pd.DataFrame({"model": ["m", "m", "n"], "gpu": ["a", "b", "a"], "energy_j": [2e3, 1e3, 3e3]})
    text = of.learned(decides, places.assign(kilojoule=places["energy_j"] / 1e3))
    assert "**m** hangs most on `dispatch_s`: halving it changes the time by -40 %" in text
    assert "**n** hangs most on `fed`: halving it changes the time by +9 %" in text
    assert text.endswith("Least energy per generation: m on b (1 kJ), n on a (3 kJ).")
