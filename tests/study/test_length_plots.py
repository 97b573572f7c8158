"""The figures about lengths, gains and temporal attention: what is drawn is what is in the table."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mmchar.study.drawing import length_plots, look


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_speedup_by_length_draws_measured_points_hollow_and_the_expectation_as_a_line():
    data = pd.DataFrame(
        {
            "q_len": [1, 4096],
            "speedup": [1.0, 4.0],
            "family": ["encoder_decoder", "latent_diffusion"],
            "time_kind": ["measured", "projected"],
        }
    )
    expected = pd.DataFrame({"q_len": [1, 4096], "expected": [1.0, 5.0]})
    ax = length_plots.speedup_by_length(data, expected=expected)
    assert [tuple(points.get_offsets()[0]) for points in ax.collections] == [(1, 1.0), (4096, 4.0)]
    hollow, filled = (points.get_facecolor()[0][:3] for points in ax.collections)
    assert tuple(hollow) == (1, 1, 1) and tuple(filled) != (1, 1, 1)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["expected from the data sheet", "encoder decoder (measured)", "latent diffusion (projected)"]
    assert ax.get_xscale() == "log" and "tokens" in ax.get_xlabel()


def test_matrix_keeps_the_order_writes_every_number_and_frames_the_band():
    data = pd.DataFrame({"a": ["z", "z", "b"], "b": [4, 1, 4], "v": [0.5, 1.5, 2.5]})
    ax = length_plots.matrix(data, row="a", column="b", value="v", band=(1.1, 2.0))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["z", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["4", "1"]
    assert sorted(texts(ax)) == ["0.50", "1.50", "2.50"]  # the missing cell stays empty
    (frame,) = ax.patches
    assert (frame.get_x() // 1, frame.get_y() // 1) == (1, 0)  # the 1.5, in the second column of the first row


def test_curves_draw_one_line_per_hue_and_guides_dashed():
    data = pd.DataFrame({"x": [1, 2, 1, 2], "y": [1, 16, 3, 3], "what": ["a", "a", "limit", "limit"]})
    ax = length_plots.curves(data, x="x", y="y", hue="what", xlabel="side (pixels)", ylabel="bytes", dashed="limit")
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    assert list(ax.lines[0].get_ydata()) == [1, 16]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    linear = length_plots.curves(data, x="x", y="y", hue="what", xlabel="x", ylabel="y", base=None)
    assert linear.get_xscale() == "linear"


def test_length_series_shows_every_call_by_kind_and_names_the_parts():
    data = pd.DataFrame(
        {
            "call": range(4),
            "q_len": [64, 64, 16, 64],
            "attention": ["self", "cross", "self", "self"],
            "part": ["down", "down", "middle", "up"],
        }
    )
    ax = length_plots.length_series(data)
    assert texts(ax) == ["down", "middle", "up"]
    assert sum(len(points.get_offsets()) for points in ax.collections) == 4
    assert [text.get_text() for text in ax.get_yticklabels()] == ["16", "64"]


def test_length_histogram_has_bars_of_the_share_at_the_length():
    data = pd.DataFrame({"side": [256, 256, 512], "q_len": [16, 64, 64], "share": [25.0, 75.0, 100.0]})
    ax = length_plots.length_histogram(data)
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) for bar in ax.patches]
    assert bars == [pytest.approx(one) for one in [(4, 0, 0.2), (6, 0, 0.6), (6, 1, 0.8)]]  # log2 of the length
    assert "16\n25 %" in texts(ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["256 px", "512 px"]


def test_share_bars_print_the_total_hatch_what_is_measured_and_name_the_reference():
    data = pd.DataFrame(
        {
            "case": ["first", "second"],
            "share": [20.0, 70.0],
            "total_s": [2.0, 0.5],
            "time_kind": ["projected", "measured"],
        }
    )
    ax = length_plots.share_bars(data, label="case", reference=60, says="the paper", xlabel="share (%)")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["first", "second"] and ax.yaxis_inverted()
    assert [bar.get_hatch() or "" for bar in ax.patches] == [look.HATCH["projected"], look.HATCH["measured"]]
    assert texts(ax) == ["20 % of 2 s", "70 % of 0.5 s"] and ax.get_xlabel() == "share (%); dashed: the paper"


def test_a_figure_is_drawn_on_the_axes_given():
    data = pd.DataFrame({"side": [256], "q_len": [64], "share": [100.0]})
    _, ax = plt.subplots()
    assert length_plots.length_histogram(data, ax=ax) is ax
