"""Fewer steps: schedulers' calls by hand, times that are affine in calls against counts, caches, bad input."""

import pandas as pd
import pytest

from mmchar import count, project
from mmchar.study.questions import fewer_steps
from mmchar.study.questions.fewer_steps import (
    VARIANTS,
    at_calls,
    cached_gains,
    call_costs,
    half_remains,
    scheduler_calls,
)

GPU, SD, PIXART = "a100-80gb", "stable-diffusion-1.5", "pixart-sigma-1024"


def test_calls_of_the_library_s_schedulers():
    names = ["DDIM", "PNDM", "PNDM, Runge-Kutta first", "Heun"]
    found = scheduler_calls([5, 6], names).pivot(index="scheduler", columns="steps", values="calls")
    assert found.loc["DDIM"].tolist() == [5, 6]
    assert found.loc["PNDM"].tolist() == [6, 7]  # one of its steps is done twice
    assert found.loc["PNDM, Runge-Kutta first"].tolist() == [14, 15]  # 3 steps of 4 calls, and the others
    assert found.loc["Heun"].tolist() == [9, 11]  # 2 n - 1


@pytest.mark.parametrize(("name", "calls"), [(SD, 8), (PIXART, 7)])  # of 7 steps; PNDM makes one more
def test_time_is_affine_in_calls(name, calls):
    costs = call_costs(name, gpu=GPU, tiny=True)
    timed = project(count(name, steps=7, tiny=True), gpu=GPU)
    total = (timed["time_s"] * timed["repeats"]).sum()
    found = at_calls(costs, calls)
    assert found["time_s"].sum() == pytest.approx(total, rel=0.002)
    own = timed["stage"].astype(str) == "denoise"
    denoiser = found.set_index("part").at["denoiser", "time_s"]
    assert denoiser == pytest.approx((timed["time_s"] * timed["repeats"])[own].sum(), rel=1e-9)
    assert found["share"].sum() == pytest.approx(100)
    assert (found["low_s"] < found["total_s"]).all() and (found["total_s"] < found["high_s"]).all()


def test_defaults_and_guidance():
    guided, free = (call_costs(SD, gpu=GPU, guidance=guidance, tiny=True) for guidance in (None, 1.0))
    assert (guided.attrs["steps"], guided.attrs["calls"]) == (2, 3)
    assert free.at["denoiser", "call_s"] <= guided.at["denoiser", "call_s"] * (1 + 1e-12)  # rounding
    assert guided.at["decoder", "fixed_s"] == pytest.approx(free.at["decoder", "fixed_s"])


def test_half_by_hand():
    costs = pd.DataFrame(
        {"fixed_s": [1.0, 0.5, 7.0], "call_s": [0.0, 4.0, 0.0]}, index=["encoder", "denoiser", "decoder"]
    )
    assert half_remains(costs) == (1 + 7 - 0.5) / 4
    costs.attrs = {"model": "m", "low": 1, "high": 1}
    assert at_calls(costs, 2)["remains"].iloc[0] == pytest.approx(100 * 8 / 16.5)
    assert half_remains(costs.loc[["denoiser"]]) == 0


def test_gains_of_fewer_calls_are_over_a_model_s_first_way():
    ways = [(SD, "5", 5, None), (PIXART, "5", 5, None), (SD, "2", 2, None)]
    found = fewer_steps.fewer_calls(ways, gpu=GPU, tiny=True).drop_duplicates("label").set_index("label")
    assert found["gain"].iloc[:2].tolist() == [1, 1]
    sd = found.loc[[f"{SD}: 5", f"{SD}: 2"], "total_s"]
    assert found.at[f"{SD}: 2", "gain"] == pytest.approx(sd.iloc[0] / sd.iloc[1]) and found["gain"].max() > 1.5
    assert all(calls >= 1 for _, _, calls, _ in VARIANTS)


@pytest.mark.parametrize("kind", ["first-block", "teacache"])
def test_a_cache_gains_at_most_what_its_hits_say(kind):
    found = cached_gains(count(PIXART, steps=10, tiny=True), kind, [0.5], gpu=GPU)
    assert found["hit_rate"].tolist() == [0, 0.5] and found["gain"].iloc[0] == 1
    assert 1 < found["gain"].iloc[1] < 2 and found["remains"].iloc[1] > found["remains"].iloc[0]


def test_bad_input_ends_in_one_line():
    with pytest.raises(ValueError, match="unknown scheduler 'Foo'; choose among DDIM, Euler"):
        scheduler_calls([4], ["Foo"])
    with pytest.raises(ValueError, match="llama-2-7b has no single number of denoising steps; choose e.g. sdxl"):
        call_costs("llama-2-7b", gpu=GPU)
    with pytest.raises(ValueError, match="deepfloyd-if has no single number of denoising steps"):
        call_costs("deepfloyd-if", gpu=GPU)
    with pytest.raises(ValueError, match="stable-diffusion-1.5 is no list of blocks"):
        cached_gains(count(SD, tiny=True), "teacache", [0.5], gpu=GPU)


def test_what_remains_is_drawn_by_model_and_guidance():
    rows = fewer_steps.curve(SD, 1.0, [1, 4], gpu=GPU, tiny=True)
    assert rows["guidance"].tolist() == ["none", "none"] and rows["remains"].is_monotonic_decreasing
    ax = fewer_steps.remains_by_calls(rows)
    assert ax.get_xscale() == "log" and "%" in ax.get_ylabel()
    with pytest.raises(ValueError, match="figure needs column guidance"):
        fewer_steps.remains_by_calls(rows.drop(columns="guidance"))
    gains = cached_gains(count(PIXART, steps=10, tiny=True), "teacache", [0.5], gpu=GPU)
    assert "%" in fewer_steps.gain_by_hits(gains).get_xlabel()
