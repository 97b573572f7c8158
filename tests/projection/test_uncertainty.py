"""A projection's range is that of its kind, and says so where nothing like it was measured."""

import pandas as pd
import pytest

import mmchar
from mmchar.projection.uncertainty import kind_of, projection_errors, time_range


def denoiser(convolution_flop, **attrs):
    rows = [
        ("denoise", "Convolution", convolution_flop),
        ("denoise", "Linear", 100),
        ("decode_image", "Convolution", 900),
    ]
    table = pd.DataFrame(rows, columns=["stage", "category", "flop"]).assign(repeats=2)
    table.attrs = attrs
    return table


@pytest.mark.parametrize(
    ("convolution_flop", "gpus", "kind"),
    [
        (0, 1, "diffusion transformer on one GPU"),
        (2, 1, "diffusion transformer on one GPU"),  # an embedding of patches does not make it a U-Net
        (2, 4, "diffusion transformer on several GPUs"),
        (80, 1, "U-Net"),
    ],
)
def test_the_denoiser_says_the_kind(convolution_flop, gpus, kind):
    assert kind_of(denoiser(convolution_flop, gpus=gpus)) == kind


def test_the_range_turns_the_errors_around():
    errors = projection_errors()
    one = errors[(errors["kind"] == "U-Net") & (errors["quantity"] == "latency")].iloc[0]
    found = time_range(denoiser(80), 10.0)
    # predicted / measured - 1 = high means that the measured time was predicted / (1 + high)
    assert found["low_s"] == pytest.approx(10 / (1 + one["high"]))
    assert found["high_s"] == pytest.approx(10 / (1 + one["low"]))
    assert found["low_s"] < 10 < found["high_s"]


def test_what_was_never_measured_gets_the_widest_range_and_says_so():
    table = mmchar.count("llama-2-7b", tiny=True)
    found, errors = time_range(table, 10.0), projection_errors()
    assert "nothing like it was measured" in found["kind"]
    widest = (1 / (1 + errors["low"]) - 1 / (1 + errors["high"])).max()
    assert found["high_s"] - found["low_s"] == pytest.approx(10 * widest)


def test_every_error_names_how_many_and_how():
    errors = projection_errors()
    assert (errors["low"] < errors["high"]).all() and (errors["n"] > 0).all() and (errors["how"].str.len() > 5).all()
