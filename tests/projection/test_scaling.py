"""Projections across GPUs and on several of them, as the notebooks show them."""

import matplotlib as mpl
import pytest

import mmchar
from mmchar.projection.scaling import on_gpus, on_several
from mmchar.projection.uncertainty import TRANSFORMER, error_range
from mmchar.study.drawing import projection_plots as draw

mpl.use("agg")
FLUX = "flux.1-dev"


@pytest.fixture(scope="module")
def everywhere():
    return on_gpus({FLUX: mmchar.count(FLUX, dtype="bfloat16")}, ["t4", "a100-80gb", "h100-sxm"])


@pytest.fixture(scope="module")
def ways():
    return on_several(FLUX, None, [{}, {"ulysses": 2}, {"ring": 2}, {"ulysses": 5}], gpu="h100-sxm")


def test_each_gpu_that_has_the_type_has_a_row_with_its_own_projection(everywhere):
    assert everywhere["gpu"].tolist() == ["a100-80gb", "h100-sxm"]  # a T4 has no bfloat16
    timed = mmchar.project(mmchar.count(FLUX), gpu="h100-sxm", attention="flash")
    assert everywhere["time_s"][1] == pytest.approx((timed["time_s"] * timed["repeats"]).sum())
    for row in everywhere.itertuples():  # the range of its own kind, which may lie on one side of what is projected
        said = error_range(TRANSFORMER, execution="eager", gpu=row.gpu)
        low_s, high_s = (row.time_s / (1 + said[end]) for end in ("high", "low"))
        assert (row.low_s, row.high_s) == pytest.approx((low_s, high_s))
        assert row.low_s <= row.time_s <= row.high_s and row.low_s < row.high_s
    assert everywhere[["compute", "memory", "launch"]].sum(axis=1).tolist() == pytest.approx([100, 100])


def test_a_way_that_does_not_divide_the_heads_is_a_row_with_its_reason(ways):
    refused = ways.iloc[3]
    assert "does not divide the 24 heads" in refused["reason"] and refused["time_s"] != refused["time_s"]
    good = ways.iloc[:3]
    assert (good["reason"] == "").all() and good["sent_bytes"].tolist()[0] == 0
    assert (
        good["sent_bytes"][1] == good["sent_bytes"][2] > 0
    )  # on two GPUs both send half of q, k, v, out, or all of k, v
    assert good["time_s"][1] < good["time_s"][0]


def test_figures_take_the_tables_as_they_are(everywhere, ways):
    ax = draw.across_gpus(everywhere)
    assert [text.get_text().split("\n")[0] for text in ax.get_xticklabels()] == ["a100-80gb", "h100-sxm"]
    good = ways[ways["reason"] == ""].assign(label="x")
    bars = draw.what_bounds(good, label="label")
    assert sum(patch.get_width() for patch in bars.patches) == pytest.approx(100 * len(good))
    assert not any(patch.get_hatch() for patch in bars.patches)  # hatching is for what was measured
    lines = draw.speed_up(good, y="time_s", unit="s").get_lines()
    assert sorted(line.get_label() for line in lines) == ["Ulysses", "one GPU", "ring"]
    published = everywhere.assign(ratio=[1.1, 1.2], family="U-Net image", execution="eager")
    ax = draw.beside_published(published)
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        f"U-Net image, eager, {gpu} (1)" for gpu in everywhere["gpu"]
    ]
    assert sorted(ax.collections[0].get_offsets()[:, 0]) == [1.1, 1.2]
