"""Figures: what is on the axes, what bars add up to, and that an empty table is refused."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from mmchar.study.drawing import look, plots
from mmchar.study.experiments import FAMILY_ORDER


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture
def breakdown():
    rows = [
        ("flash", "Attention", 1.0, "projected"),
        ("flash", "Convolution", 3.0, "projected"),
        ("tiny", "Linear", 0.25, "measured"),
        ("tiny", "Convolution", 0.75, "measured"),
        ("tiny", "Convolution", 1.0, "measured"),  # two rows of one category add up
        ("long", "Linear", 2317.4, "projected"),
    ]
    return pd.DataFrame(rows, columns=["run", "category", "value", "time_kind"])


@pytest.fixture
def points():
    rows = [
        ("llama-2-7b", "autoregressive", "prefill", 250.0, 1.4e14, 1.0),
        ("llama-2-7b", "autoregressive", "decode", 0.95, 3.5e11, 99.0),
        ("stable-diffusion-1.5", "latent_diffusion", "denoise", 212.0, 7e13, 98.0),
    ]
    frame = pd.DataFrame(rows, columns=["model", "family", "stage", "intensity", "flop_s", "share"])
    return frame.assign(time_kind="projected")


def test_every_bar_of_a_breakdown_adds_up_to_100_percent(breakdown):
    ax = plots.operator_breakdown(breakdown, label="run")
    widths = {}
    for bar in ax.patches:
        widths[bar.get_y()] = widths.get(bar.get_y(), 0.0) + bar.get_width()
    assert list(widths.values()) == pytest.approx([100.0] * 3)


def test_long_labels_stand_above_their_bars(breakdown):
    ax = plots.operator_breakdown(breakdown, label="run", above=True)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == breakdown["run"].unique().tolist()
    tops = {bar.get_y() for bar in ax.patches}
    assert all(tick < top for tick, top in zip(ax.get_yticks(), sorted(tops), strict=True))


def test_a_breakdown_prints_the_totals_that_its_shares_are_of(breakdown):
    ax = plots.operator_breakdown(breakdown, label="run", unit="s")
    assert {"4 s", "2 s", "2,317 s"} <= set(texts(ax))  # 1 + 3; 0.25 + 0.75 + 1; written out, not 2.32e+03
    assert {"25", "75", "12", "88", "100"} <= set(texts(ax))  # 1/4, 3/4, 0.25/2, 1.75/2 in percent


def test_a_breakdown_hatches_what_was_measured_only(breakdown):
    ax = plots.operator_breakdown(breakdown, label="run")
    rows = {tick.get_text(): place for place, tick in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    hatched = {bar.get_y() + bar.get_height() / 2 for bar in ax.patches if bar.get_hatch()}
    assert {round(place, 6) for place in hatched} == {rows["tiny"]}


def test_a_breakdown_keeps_the_order_of_its_rows_from_the_top(breakdown):
    ax = plots.operator_breakdown(breakdown, label="run")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["flash", "tiny", "long"] and ax.yaxis_inverted()
    assert ax.get_xlabel() == "share of the total (%)"
    assert legend(ax) == ["Attention", "Convolution", "Linear"]


def test_the_memory_timeline_names_each_stage_with_its_peak_in_gb():
    rows = [("encode_text", 2e9, 3e9), ("denoise", 4e9, 9e9), ("denoise", 1e9, 1e9)]
    data = pd.DataFrame(rows, columns=["stage", "live_bytes", "live_eager_bytes"])
    ax = plots.memory_timeline(data)
    assert ax.get_ylabel() == "activation memory (GB)"
    assert legend(ax) == ["with eager attention (up to 9 GB)", "encode_text (up to 2 GB)", "denoise (up to 4 GB)"]


def test_size_and_compute_names_every_model_once():
    rows = [("a", "autoregressive", 7e9, 1e13), ("b", "latent_diffusion", 1e9, 8e13)]
    ax = plots.size_and_compute(pd.DataFrame(rows, columns=["model", "family", "params", "flop"]))
    assert sorted(texts(ax)) == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("parameters of all components", "FLOP of one generation")
    assert legend(ax) == ["autoregressive", "latent diffusion"]  # in the order of tables


def test_intensity_draws_the_ridge_and_one_diamond_per_model(points):
    whole = points.drop_duplicates("model").assign(stage="all", share=100.0)
    ax = plots.intensity(pd.concat([points, whole]), ridge=153.0, gpu="a100-80gb")
    assert ax.get_xlabel() == "arithmetic intensity (FLOP per byte)"
    assert texts(ax) == ["ridge of a100-80gb: 153 "]
    dots = sum(len(marks.get_offsets()) for marks in ax.collections)
    assert dots == len(points) + 2  # every stage, and the whole generation of two models


def test_the_roofline_bends_at_the_ridge_and_keeps_points_below(points):
    ax = plots.roofline(points, peak_flop_s=312e12, bandwidth_bytes_s=2039e9, gpu="a100-80gb")
    roof = ax.lines[0]
    assert roof.get_xdata()[1] == pytest.approx(153.0, abs=0.1)  # 312e12 / 2039e9
    assert roof.get_ydata()[0] / roof.get_xdata()[0] == pytest.approx(2039e9)
    assert ax.get_ylabel() == "attained FLOP/s (projected)"
    assert "a100-80gb: 312 TFLOP/s, 2.04 TB/s (data sheet)" in texts(ax)
    assert "llama-2-7b decode" in texts(ax) and "llama-2-7b prefill" not in texts(ax)  # 99 % and 1 % of the time


def test_memory_fit_prints_both_peaks_and_names_the_gpu():
    rows = [("a", 2e9, 3e9, 12e9), ("b", 100e9, 110e9, 110e9)]
    data = pd.DataFrame(rows, columns=["model", "weights_bytes", "peak_bytes", "peak_eager_bytes"])
    ax = plots.memory_fit(data, memory_bytes=80e9, gpu="a100-80gb")
    assert texts(ax) == ["3 | 12", "110 | 110"]
    assert "memory of a100-80gb (80 GB)" in legend(ax)
    assert "(GB)" in ax.get_xlabel()


def test_sensitivity_draws_one_mark_per_row_and_the_papers_value():
    rows = [("a", "as projected", 40.0), ("a", "float32", 15.0), ("b", "as projected", 80.0)]
    ax = plots.sensitivity(pd.DataFrame(rows, columns=["model", "setting", "share"]), paper=44.0)
    assert legend(ax) == ["as projected", "float32", "paper: up to 44 %"]
    marks = [offset for part in ax.collections for offset in part.get_offsets().tolist() if part.get_label()[0] != "_"]
    assert sorted(x for x, _ in marks) == [15.0, 40.0, 80.0]
    assert (ax.get_xlabel(), ax.get_xlim()) == ("share of time (%)", (0.0, 100.0))


CALLS = {
    "operator_breakdown": {"label": "run"},
    "memory_timeline": {},
    "size_and_compute": {},
    "intensity": {"ridge": 153.0, "gpu": "a100-80gb"},
    "roofline": {"peak_flop_s": 1e12, "bandwidth_bytes_s": 1e9, "gpu": "a100-80gb"},
    "memory_fit": {"memory_bytes": 80e9, "gpu": "a100-80gb"},
    "sensitivity": {"paper": 44.0},
}
COLUMNS = [
    *("run", "category", "value", "time_kind", "stage", "live_bytes", "live_eager_bytes", "model", "family", "params"),
    *("flop", "intensity", "share", "flop_s", "weights_bytes", "peak_bytes", "peak_eager_bytes", "setting"),
]


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_refuses_a_table_without_rows(name):
    with pytest.raises(ValueError, match="nothing to draw: the table has no rows"):
        getattr(plots, name)(pd.DataFrame(columns=COLUMNS), **CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_a_figure_says_which_column_it_misses(name):
    with pytest.raises(ValueError, match="figure needs column .*; the table has unrelated"):
        getattr(plots, name)(pd.DataFrame({"unrelated": [1]}), **CALLS[name])


def test_a_family_without_a_colour_is_refused():
    data = pd.DataFrame([("a", "new_family", 1.0, 1.0)], columns=["model", "family", "params", "flop"])
    with pytest.raises(ValueError, match="no colour for family new_family"):
        plots.size_and_compute(data)


def test_figures_draw_on_the_axes_given(breakdown):
    _, ax = plt.subplots()
    assert plots.operator_breakdown(breakdown, label="run", ax=ax) is ax


def test_every_family_has_a_colour_of_its_own():
    assert tuple(look.FAMILY_COLORS) == FAMILY_ORDER
    assert len(set(look.FAMILY_COLORS.values())) == len(FAMILY_ORDER)
