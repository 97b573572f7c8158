"""The figure of two generations side by side."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmchar.study.drawing.look import HATCH, PALETTE, amount, require, rows_from_top
from mmchar.tables.shown import CATEGORY_COLORS

_BAR = 0.38
_LEAST = 0.002  # of the longer total; what is shorter in both is not drawn


def comparison(data: pd.DataFrame) -> Figure:
    """Seconds of two generations, a pair of bars for the whole, each category and each stage.

    ``data`` is a table of `study.comparing.compare`. The first of two is above and pale; a measured time is hatched.
    """
    require(data, "what", "part", "first_s", "second_s", "ratio")
    longest = data[["first_s", "second_s"]].max(axis=1)
    data = data[longest >= _LEAST * longest.max()]
    kinds = [("total", data[data["what"] != "stage"]), ("stage", data[data["what"] == "stage"])]
    rows = [len(part) for _, part in kinds]
    size = {"figsize": (6.4, 1.5 + 0.42 * sum(rows)), "height_ratios": rows, "layout": "constrained", "sharex": True}
    figure, axs = plt.subplots(2, 1, **size)
    axs[0].set_xlim(0, 1.45 * float(longest.max()))
    for ax, (_, part) in zip(axs, kinds, strict=True):
        _pairs(ax, part, data.attrs.get("time_kinds", ["", ""]))
    axs[1].set_xlabel("seconds of one generation", fontsize=9)
    first, second = data.attrs.get("labels", ["first", "second"])
    figure.suptitle(f"{first} (pale, above)\nagainst {second}", fontsize=9)
    return figure


def _pairs(ax: Axes, part: pd.DataFrame, kinds: list[str]) -> None:
    colors = [CATEGORY_COLORS.get(name, PALETTE[7]) for name in part["part"]]
    for side, alpha, shift, kind in (("first_s", 0.45, -_BAR / 2, kinds[0]), ("second_s", 1.0, _BAR / 2, kinds[1])):
        places = [place + shift for place in range(len(part))]
        ax.barh(
            places, part[side], height=_BAR, color=colors, alpha=alpha, edgecolor="white", hatch=HATCH.get(kind, "")
        )
    for place, row in enumerate(part.itertuples()):
        times = f" {amount(row.first_s)} → {amount(row.second_s)} s"
        said = times + (f" ({row.ratio:.2f}x)" if row.ratio == row.ratio else "")
        ax.text(max(row.first_s, row.second_s), place, said, va="center", fontsize=7.5)
    rows_from_top(ax, list(part["part"]), fontsize=8.5)
    ax.tick_params(axis="x", labelsize=8)
