"""Single kernels that others timed beside what is projected of them."""

import pandas as pd
import pytest

from mmchar.projection.efficiency import Efficiency
from mmchar.projection.evidence.kernels import decoder_beside_projected, kernels_beside_projected
from mmchar.provenance import REFERENCE
from mmchar.study.drawing.projection_plots import decoder_by_kernel, kernels_beside


@pytest.fixture(scope="module")
def kernels():
    return kernels_beside_projected()


@pytest.fixture(scope="module")
def decoder():
    return decoder_beside_projected()


def test_every_timed_kernel_is_there_with_what_surrounds_it(kernels):
    said = pd.read_csv(REFERENCE / "kernel_times.csv")
    assert (kernels["kind"].isin(["matrix product", "attention", "convolution"])).sum() == len(said)
    assert (kernels["kind"] == "convolution: bias").sum() == (said["bias_us"] > 0).sum()
    assert said["source"].str.contains(r"@[0-9a-f]{7}").all()


def test_a_convolution_is_the_product_of_its_shapes(kernels):
    # 1 x 96 x 6 x 258 x 258 under 96 x 96 x 3 x 3 x 3: 4 x 256 x 256 positions, 130.46 GFLOP; a bias of 25.2e6 numbers
    one = kernels[kernels["sizes"] == "1x96x6x258x258 * 96x96x3x3x3"].set_index("kind")
    bias = one.loc["convolution: bias"]
    assert bias["measured_s"] == pytest.approx(76.94e-6)
    numbers = 96 * 4 * 256 * 256
    assert bias["projected_s"] == pytest.approx(numbers / (Efficiency().one_by_one * 66.9e12 / 256))
    copied = 2 * 2 * (96 * 6 * 258 * 258 + 96 * 96 * 27 + numbers)
    layout_s = copied / (3352e9 * Efficiency().layout)
    assert one.loc["convolution: layout copies", "projected_s"] == pytest.approx(layout_s, rel=2e-3)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("matrix product", 0.15), ("convolution: layout copies", 0.15), ("convolution: bias", 0.3), ("attention", 0.3)],
)
def test_half_of_the_kernels_of_a_kind_are_within_reach(kernels, kind, most):
    here = kernels[kernels["kind"] == kind]
    assert (here["projected_s"] / here["measured_s"] - 1).abs().median() < most


def test_attention_from_hopper_on_is_as_fast_as_kernels_are(kernels):
    # 4 x 12 heads x 32,256^2 x 128 = 6.39 TFLOP in 17.76 ms, of which Wan2.1 calls 300
    one = kernels[(kernels["gpu"] == "h100-sxm") & (kernels["sizes"] == "1 x 12 x 32256 x 32256 x 128")]
    assert one["measured_s"].item() == pytest.approx(17.76e-3, rel=1e-3)
    assert one["projected_s"].item() == pytest.approx(one["measured_s"].item(), rel=0.05)


def test_shares_of_the_decoder_are_those_of_its_kernels(decoder):
    share = decoder.set_index("kind")[["measured_s", "projected_s"]]
    assert 1e3 * share["measured_s"].sum() == pytest.approx(85.1, abs=0.1)
    assert share["projected_s"].sum() == pytest.approx(share["measured_s"].sum(), rel=0.15)
    share = 100 * share / share.sum()
    assert (share["projected_s"] - share["measured_s"]).abs().max() < 5
    assert share.loc["group norm: statistics", "projected_s"] > 45


def test_figures_show_every_kernel_and_hatch_what_was_measured(kernels, decoder):
    ax = kernels_beside(kernels)
    assert len(ax.collections[0].get_offsets()) == len(kernels)
    bars = decoder_by_kernel(decoder)
    hatched = [patch for patch in bars.patches if patch.get_hatch()]
    assert len(hatched) == len(decoder) and len(bars.patches) == 2 * len(decoder)
    assert sum(patch.get_width() for patch in hatched) == pytest.approx(1e3 * decoder["measured_s"].sum())
