"""The ladder of diffusion: bounds by hand, levers judged, levers measured on a CPU, what was published, bad input."""

import pandas as pd
import pytest

from mmchar.study.questions import diffusion_ladder as of

SD, SDXL = "stable-diffusion-1.5", "sdxl-base-1.0"


def test_bounds_by_hand():
    rows = pd.DataFrame({"category": ["Linear", "Convolution"], "flop": [3e12, 5e12], "repeats": [10, 2]})
    (row,) = of.bounds({"m": rows}, {"m": ("h100-sxm", 10)}).to_dict("records")
    # 3 * 10 + 5 * 2 = 40 TFLOP, 30 of them linear, which fp8 does in half the time: 1 / (1 - 0.75 + 0.75 / 2)
    assert (row["TFLOP"], row["Linear (% of FLOP)"]) == (40, 75)
    assert row["8 bit at most (x)"] == pytest.approx(1.6, rel=1e-3)
    assert row["at peak (s)"] == pytest.approx(40 / 989.4, rel=1e-3)  # data sheet: 989 TFLOP/s, dense
    assert row["bf16 / TF32 peak (x)"] == pytest.approx(2, rel=1e-3)


def test_cases_are_checked_before_anything_runs():
    assert of.checked_cases([SDXL], ["l40s"], [7]) == {SDXL: ("l40s", 7)}
    for name, gpu, steps, problem in (
        ("dit-xl-2-256", "l40s", [7], "no ladder for 'dit-xl-2-256'"),
        (SDXL, "v100-32gb", [7], "v100-32gb has no bfloat16; use float16"),
        (SDXL, "l40s", [7, 8], "have 1, 1 and 2 entries; give as many of each"),
    ):
        with pytest.raises(ValueError, match=problem):
            of.checked_cases([name], [gpu], steps)


def test_gains_are_judged_over_all_models():
    rows = [("a", "compile", 1.2), ("b", "compile", 2.6), ("a", "graphs", 1.0), ("b", "graphs", 1.1)]
    rows += [(name, "half the steps", 2.0) for name in "ab"]
    rows += [(name, lever, 0.5) for name in "ab" for lever in ("float32", "eager attention")]
    found = of.judged_gains(pd.DataFrame(rows, columns=["model", "lever", "gain"])).set_index("name")
    assert found["good"].to_dict() == {
        "gain of half the steps": True,
        "gain of compile alone": False,  # 2.6 of 1 to 2.5
        "gain of graphs alone": True,
        "gain of float32 alone": True,
        "gain of eager attention alone": True,
    }
    assert found.at["gain of compile alone", "got"] == "1.20 to 2.60x"


def test_ways_are_measured_over_all_steps():
    found = of.measured_ways([SD], samples=2, few=True, progress=False)
    assert found["rung"].tolist() == ["eager fp32", "SDPA fp32"]
    assert (found["value"] == found["median_s"] * 3).all()  # PNDM: 2 steps, 3 calls
    assert found["gain over SDPA fp32"].iloc[1] == 1


def test_what_was_learned_and_published():
    rows = [("m", "bf16", 4.0, "projected", 1.0), ("m", "compile", 2.0, "projected", 2.0)]
    rows += [("m", "bf16", 6.0, "published", None), ("m", "compile", 1.5, "published", None)]
    climbed = pd.DataFrame(rows, columns=["model", "rung", "value", "time_kind", "gain"])
    assert of.published_gains(climbed)["gain"].tolist() == [1, 4]
    levers = pd.DataFrame({"model": ["m", "n"], "lever": "compile", "gain": [1.1, 1.5]})
    text = of.learned(climbed, levers, {"m": ("a100-80gb", 30)}, gpu="t4")
    assert "- **m** on a100-80gb: 4 s to 2 s (compile), 2.00x, projected." in text
    assert "Published: 6 s to 1.5 s, 4.00x." in text
    assert text.endswith("Compilation alone gives 1.10x (m) to 1.50x (n) on t4.")
