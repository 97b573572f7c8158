"""A fit to one's own measurements, the file it leaves, and what projections make of it. Measurements are made up."""

import json

import numpy as np
import pandas as pd
import pytest

import mmchar
from mmchar.cli.main import main
from mmchar.projection.communication import Interconnect
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.efficiency_file import EfficiencyFile, Range, read_efficiency, write_efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.calibration import POWER_PRIORS, PRIORS, shipped_priors
from mmchar.projection.evidence.cases import cases, predict
from mmchar.projection.evidence.errors import errors_by_kind, write_errors
from mmchar.projection.evidence.together import Together
from mmchar.projection.evidence.validation import predicted
from mmchar.projection.roofline import Rates
from mmchar.projection.uncertainty import projection_errors

ROWS = [("pixart-sigma-1024", 1), ("pixart-sigma-1024", 4), ("stable-diffusion-1.5", 1), ("stable-diffusion-1.5", 4)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A file of a GPU on which all takes a fifth longer than we project, and its cases."""
    rows = pd.DataFrame(ROWS, columns=["model", "batch"]).assign(gpu="a100-80gb", latency_s=1000.0)
    ready, _ = cases(rows)
    rows["latency_s"] = 1.2 * predicted(ready)["predicted_s"]
    path = tmp_path_factory.mktemp("rows") / "mine.csv"
    rows.to_csv(path, index=False)
    return path, cases(rows)[0]


def test_many_cases_at_once_take_what_each_takes(measured):
    _, ready = measured
    elsewhere, _ = cases(
        pd.DataFrame(
            [
                {"model": "pixart-sigma-1024", "gpu": "h100-sxm", "gpus": 4, "ulysses": 2, "ring": 2, "latency_s": 9},
                {"model": "pixart-sigma-1024", "gpu": "h100-sxm", "dtype": "float32", "latency_s": 9},
                {"model": "pixart-sigma-1024", "gpu": "h100-sxm", "execution": "compiled", "latency_s": 9},
            ]
        )
    )
    every = [*ready, *elsewhere]
    alone = [predict(case, Rates(), Power())["predicted_s"] for case in every]
    assert Together(every).seconds(Rates()) == pytest.approx(alone, rel=1e-12)


def test_what_we_ship_is_expected_of_ones_own_gpu():
    rates, powers = shipped_priors()
    assert rates.keys() == PRIORS.keys() and powers.keys() == POWER_PRIORS.keys()
    assert rates["bandwidth"] == (Efficiency().bandwidth, PRIORS["bandwidth"][1])
    assert rates["messages.pair"][0] == Interconnect().pair and powers["memory"][0] == Power().memory


def test_fit_from_a_shell_and_what_takes_the_file(measured, tmp_path, capsys):
    path, ready = measured
    out = tmp_path / "mine.json"
    assert main(["fit", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "as shipped: 16.7 %" in said and "each model by a fit to the others" in said
    found = read_efficiency(out)
    assert np.median(np.abs(predicted(ready, found.rates, found.power)["latency_error"])) < 0.12  # of 0.167
    assert found.n == 4 and found.gpus == ["a100-80gb"] and len(found.rows_sha256) == 64 and "torch" in found.software
    assert vars(found.messages) == pytest.approx(vars(Interconnect()))  # nothing was measured of these
    assert found.power == Power()
    assert set(found.spread) == set(PRIORS) and all(found.spread[name] <= PRIORS[name][1] + 1e-9 for name in PRIORS)

    assert main(["validate", str(path), "--efficiency", str(out), "--json"]) == 0
    (whole,) = (row for row in json.loads(capsys.readouterr().out)["summary"] if row["on"] == "any")
    assert whole["mdape_latency"] < 12
    asked = ["project", "pixart-sigma-1024", "--gpu", "a100-80gb", "--json"]
    assert main([*asked, "--efficiency", str(out)]) == 0
    own = json.loads(capsys.readouterr().out)
    timed = mmchar.project("pixart-sigma-1024", gpu="a100-80gb", attention="flash", efficiency=found.rates)
    assert own["time_s"] == pytest.approx((timed["time_s"] * timed["repeats"]).sum())
    assert main(asked) == 0
    assert own["time_s"] > json.loads(capsys.readouterr().out)["time_s"]


def test_the_range_is_that_of_ones_own_measurements_where_they_are_enough():
    errors = Range(low=-0.2, high=0.25, median_absolute=0.1, n=5, how="each model by a fit to the others")
    found = EfficiencyFile(errors=errors).time_range(10.0)
    assert found["low_s"] == 8 and found["high_s"] == 12.5 and "your own" in found["kind"]
    assert EfficiencyFile().time_range(10.0) is None
    few = Range(low=-0.2, high=0.25, median_absolute=0.1, n=4, how="")
    assert EfficiencyFile(errors=few).time_range(10.0) is None


def test_a_file_may_say_less_and_comes_back_as_it_was(tmp_path):
    path = tmp_path / "some.json"
    path.write_text('{"efficiency": {"bandwidth": 0.5}, "power": {"idle": 0}}')
    found = read_efficiency(path)
    assert found.efficiency == Efficiency(bandwidth=0.5) and found.power.idle == 0
    assert read_efficiency(write_efficiency(tmp_path / "again.json", found)) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("x", "JSON is malformed"),
        ("[1]", "Expected `object`, got `array`"),
        ('{"efficency": {}}', "unknown field `efficency`"),
        ('{"efficiency": {"bandwith": 0.5}}', "efficiency has no 'bandwith'; did you mean 'bandwidth'?"),
        ('{"efficiency": {"bandwidth": "0.5"}}', "Expected `float`, got `str` - at `$.efficiency.bandwidth`"),
        ('{"efficiency": {"bandwidth": 0}}', "efficiency.bandwidth=0.0 is not a number above 0"),
        ('{"efficiency": {"bandwidth": -1}}', "bandwidth=-1.0 is not a number"),
        ('{"efficiency": 3}', "Expected `object`, got `int` - at `$.efficiency`"),
        ('{"power": {"idle": -1}}', "power.idle=-1.0 is not a number of 0 or more"),
        ('{"messages": {"latency_s": null}}', "Expected `float`, got `null`"),
        ('{"efficiency": {"bandwidth": 1e999}}', "out of range"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, capsys, text, reason):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert main(["project", "pixart-sigma-1024", "--gpu", "h100-sxm", "--efficiency", str(path)]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


def test_errors_by_kind_are_written_in_the_place_of_the_same_source(measured, tmp_path):
    _, ready = measured
    found = errors_by_kind(ready)
    kinds = found.set_index(["family", "execution", "gpu", "gpus"])
    assert sorted(set(kinds.index)) == [
        (family, execution, "a100-80gb", "one")
        for family in ("U-Net image", "diffusion transformer")
        for execution in ("any", "eager")
    ]
    assert set(found["quantity"]) == {"latency"} and (found["n"] == 2).all() and set(found["left_out"]) == {"model"}
    table = write_errors(tmp_path / "errors.csv", ready, source="published_speeds.csv")
    others = projection_errors().query("source != 'published_speeds.csv'")
    assert len(table) == len(found) + len(others) and len(others) > 0


def test_validate_wants_one_thing_to_validate(capsys, measured):
    path, _ = measured
    for asked in ([], [str(path), "--published"]):
        assert main(["validate", *asked]) == 2
        assert "--published" in capsys.readouterr().err
    assert main(["validate", str(path), "--leave-out", "model", "--efficiency", "x.json"]) == 2
    assert "leave out --efficiency" in capsys.readouterr().err
