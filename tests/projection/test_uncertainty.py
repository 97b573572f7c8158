"""A projection's range is that of its family, execution and GPU, and says so where too little like it was measured."""

import pandas as pd
import pytest

import mmchar
from mmchar.projection import uncertainty
from mmchar.projection.uncertainty import error_range, family_of, projection_errors, time_range


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
    ("convolution_flop", "frames", "part", "family"),
    [
        (0, None, "whole", "diffusion transformer"),
        (2, 16, "whole", "diffusion transformer"),  # an embedding of patches does not make it a U-Net
        (80, None, "whole", "U-Net image"),
        (80, 16, "denoise", "U-Net video"),
        (80, None, "decode_image", "image decoder"),
        (80, None, "encode_text", "encode_text"),
    ],
)
def test_the_denoiser_says_the_family(convolution_flop, frames, part, family):
    assert family_of(denoiser(convolution_flop, request={"frames": frames}), part) == family


def test_decoding_is_a_family_of_its_own():
    assert family_of(mmchar.count("llama-2-7b", tiny=True)) == "autoregressive"


@pytest.fixture
def errors(monkeypatch):
    """Made up errors of a few kinds."""
    rows = [
        ("U-Net image", "eager", "a100-80gb", "one", -0.1, 0.2, 9),
        ("U-Net image", "eager", "a100-80gb", "one", -0.3, 0.4, 7),  # another source, of fewer
        ("U-Net image", "compiled", "a100-80gb", "one", -0.9, 0.9, 4),  # too few
        ("U-Net image", "any", "a100-80gb", "one", -0.2, 0.3, 20),
        ("U-Net image", "any", "any", "one", -0.25, 0.35, 30),
        ("any", "any", "any", "one", -0.6, 0.5, 90),
        ("diffusion transformer", "eager", "h100-sxm", "several", -0.05, 0.7, 50),
        ("autoregressive", "eager", "t4", "one", -0.2, -0.1, 5),
    ]
    names = ["family", "execution", "gpu", "gpus", "low", "high", "n"]
    table = pd.DataFrame(rows, columns=names).assign(quantity="latency")
    monkeypatch.setattr(uncertainty, "projection_errors", lambda: table)


@pytest.mark.parametrize(
    ("family", "execution", "gpu", "several", "low", "high", "n", "why"),
    [
        ("U-Net image", "eager", "a100-80gb", False, -0.1, 0.2, 9, ""),
        ("U-Net image", "compiled", "a100-80gb", False, -0.2, 0.3, 20, "too little of U-Net image .* in compiled mode"),
        ("U-Net image", "eager", "b200", False, -0.6, 0.5, 156, "on one b200: the widest"),
        ("U-Net image", "eager", "a100-80gb", True, -0.6, 0.5, 156, "on several a100-80gb: the widest"),
        ("diffusion transformer", "eager", "h100-sxm", True, -0.05, 0.7, 50, ""),
        ("autoregressive", "eager", "t4", False, -0.2, 0.0, 5, ""),  # the projection itself is in its range
        ("U-Net video", "eager", "h100-sxm", False, -0.6, 0.7, 211, "too little of U-Net video .* anywhere"),
    ],
)
def test_the_most_specific_kind_with_enough_decides(errors, family, execution, gpu, several, low, high, n, why):
    import re

    found = error_range(family, execution=execution, gpu=gpu, several=several)
    assert (found["low"], found["high"], found["n"]) == (low, high, n)
    assert re.search(why, found["why"]) if why else found["why"] == ""


def test_the_range_turns_the_errors_around(errors):
    found = time_range(denoiser(80, gpu="a100-80gb", execution="eager"), 10.0)
    # predicted / measured - 1 = high means that the measured time was predicted / (1 + high)
    assert found["low_s"] == pytest.approx(10 / 1.2) and found["high_s"] == pytest.approx(10 / 0.9)
    assert found["kind"] == "U-Net image, eager execution, one a100-80gb" and found["n"] == 9


def test_every_error_says_of_how_many_and_of_what():
    errors = projection_errors()
    assert (errors["low"] <= errors["high"]).all() and (errors["n"] > 0).all()
    assert set(errors["left_out"]) == {"model", "gpu"} and (errors["source"].str.len() > 5).all()
    assert not errors.duplicated(["family", "execution", "gpu", "gpus", "quantity", "source"]).any()
