"""The fit finds what made the data, keeps to its priors without data, and never sees the model it is judged on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mmchar.projection.communication import Interconnect
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence import calibration
from mmchar.projection.evidence.calibration import PRIORS, fit, leave_out
from mmchar.projection.evidence.cases import cases, predict, published_cases
from mmchar.projection.evidence.rows import REQUIRED

EXPECTED = calibration._rates({name: expected for name, (expected, _) in PRIORS.items()})
TRUTH = replace(EXPECTED, kernels=replace(EXPECTED.kernels, fill_depth=250.0, flash_mma=6.1, fed=200.0))


def made_up(model: str, batch: int, gpus: int, **more: object) -> dict[str, object]:
    row = {"model": model, "gpu": "h100-sxm", "gpus": gpus, "ulysses": gpus, "ring": 1, "batch": batch, "steps": 20}
    return row | {"height": 1024, "width": 1024, "frames": 1, "latency_s": 1000.0} | more


@pytest.fixture(scope="module")
def made():
    """Cases of two models whose latency and energy a known set of rates made: made up, not measured."""
    configurations = ((1, 1), (8, 1), (1, 4))
    models = ("pixart-sigma-1024", "sd3.5-medium")
    rows = [made_up(model, batch, gpus) for model in models for batch, gpus in configurations]
    ready, problems = cases(pd.DataFrame(rows))
    assert not problems and set(REQUIRED) < set(rows[0])
    out = []
    for case in ready:
        told = predict(case, TRUTH, replace(Power(), memory=0.6))
        asked = case.asked | {"latency_s": told["predicted_s"], "energy_j": told["predicted_j"]}
        out.append(replace(case, asked=asked))
    return out


def errors(made, found):
    return np.abs([predict(case, found.rates, found.power)["latency_error"] for case in made])


def test_a_fit_explains_what_known_rates_made(made, monkeypatch):
    monkeypatch.setattr(calibration, "NOISE", 0.03)  # with the usual one, two models weigh less than kernels do
    before = np.abs([predict(case, EXPECTED, Power())["latency_error"] for case in made])
    found = fit(made)
    after = errors(made, found)
    assert (after**2).sum() < (before**2).sum() / 3  # two models alone do not overrule the priors
    energy = [predict(case, found.rates, found.power)["energy_error"] for case in made]
    assert np.median(np.abs(energy)) < 0.05


def test_parameters_that_no_measurement_touches_stay_as_expected(made):
    found = fit(made)
    for name in ("joules_12nm", "flash", "fed_convolution"):  # no GPU before Hopper
        assert getattr(found.rates.kernels, name) == pytest.approx(PRIORS[name][0])
        assert found.spread[name] == pytest.approx(PRIORS[name][1])
    assert found.spread["fed"] < PRIORS["fed"][1]


def test_a_model_left_out_is_predicted_by_the_others_only(made, monkeypatch):
    seen = []
    monkeypatch.setattr(
        calibration, "fit", lambda some, priors: seen.append({c.asked["model"] for c in some}) or fit(made)
    )
    table = leave_out(made, beside=made[:1])
    assert seen == [{"sd3.5-medium"}, {"pixart-sigma-1024"}]
    assert list(table["model"]) == ["pixart-sigma-1024"] * 3 + ["sd3.5-medium"] * 3
    assert {"predicted_s", "latency_error", "energy_error"} <= set(table.columns)


def test_nothing_to_fit_and_nothing_to_leave_out_are_one_line(made):
    with pytest.raises(ValueError, match="nothing to fit to"):
        fit([])
    with pytest.raises(ValueError, match="leaving a model out needs .* and there is pixart-sigma-1024 alone"):
        leave_out(made[:2])
    with pytest.raises(ValueError, match="leaving a gpu out"):
        leave_out(made, by="gpu")
    with pytest.raises(ValueError, match="choose one of model, family, gpu"):
        leave_out(made, by="year")


def test_a_gpu_left_out_is_predicted_by_the_others_only(made, monkeypatch):
    elsewhere = [replace(case, gpu=get_gpu("a100-80gb"), asked=case.asked | {"gpu": "a100-80gb"}) for case in made[:2]]
    seen = []
    monkeypatch.setattr(calibration, "fit", lambda some, priors: seen.append({c.gpu.name for c in some}) or fit(made))
    table = leave_out([*made, *elsewhere], by="gpu")
    assert seen == [{"a100-80gb"}, {"h100-sxm"}]
    assert list(table["gpu"]) == ["h100-sxm"] * 6 + ["a100-80gb"] * 2


@pytest.mark.slow
def test_published_speeds_are_cases_of_their_own_configuration():
    found = {(c.asked["model"], c.gpu.name, c.execution): c for c in published_cases(["flux.1-dev", "llama-2-7b"])}
    assert ("flux.1-dev", "a100-80gb", "compiled") in found
    assert found["llama-2-7b", "a100-80gb", "eager"].asked["fitted"] == "host"  # shown, and no part of a fit
    llama = found["llama-2-7b", "a100-80gb", "compiled"]
    assert llama.asked["latency_s"] == pytest.approx(255 / 104.9)  # 256 new tokens, the first from the prefill
    assert llama.asked["part"] == "decode" and llama.asked["family"] == "autoregressive"


def test_the_rates_we_ship_are_within_their_priors():
    for name, (expected, spread) in PRIORS.items():
        where = Interconnect() if name.startswith("messages.") else Efficiency()
        assert abs(np.log(getattr(where, name.removeprefix("messages.")) / expected)) < 2 * spread, name
