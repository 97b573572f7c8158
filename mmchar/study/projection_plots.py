"""Figures of projections: beside published speeds, across GPUs, and on several of them. A tidy table in, axes out.

Bars are plain, as those of all projections; hatching is for what was measured.
"""

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns

from mmchar.study.look import PALETTE, axes, legend_beside

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BOUND_COLORS = {"compute": PALETTE[0], "memory": PALETTE[1], "launch": PALETTE[7], "communication": PALETTE[6]}


def beside_published(table: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Projected over published time of each configuration; the range is what the projection's kind is good for.

    Parameters
    ----------
    table : DataFrame
        ``label, ratio, low, high`` (projected over published; 1 is agreement).
    """
    ax = axes(ax, width=9.0, height=0.32 * len(table) + 1.2)
    place = np.arange(len(table))
    reach = [table["ratio"] - table["low"], table["high"] - table["ratio"]]
    ax.barh(place, table["ratio"], color=PALETTE[0], edgecolor="white", height=0.7)
    ax.errorbar(table["ratio"], place, xerr=reach, fmt="none", color="0.2", capsize=2, linewidth=1)
    ax.axvline(1.0, color="0.3", linewidth=1)
    ax.set_yticks(place, table["label"], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="projected / published time (1: agreement; whiskers: range of the projection)", ylabel="")
    return ax


def across_gpus(table: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Seconds of each model over the year of the GPU, with their range; hollow where the model does not fit.

    Parameters
    ----------
    table : DataFrame
        As from `scaling.on_gpus`.
    """
    ax = axes(ax, width=9.0, height=5.0)
    gpus = table.drop_duplicates("gpu").sort_values("year", kind="stable")["gpu"].tolist()
    for index, (model, rows) in enumerate(table.groupby("model", sort=False)):
        place = np.array([gpus.index(gpu) for gpu in rows["gpu"]])
        order = np.argsort(place)
        rows, place, color = rows.iloc[order], place[order], PALETTE[index % len(PALETTE)]
        reach = [rows["time_s"] - rows["low_s"], rows["high_s"] - rows["time_s"]]
        ax.errorbar(place, rows["time_s"], yerr=reach, color=color, capsize=2, linewidth=1, label=str(model))
        fill = [color if fits else "white" for fits in rows["fits"]]
        ax.scatter(place, rows["time_s"], c=fill, edgecolors=color, s=34, zorder=3)
    years = table.drop_duplicates("gpu").set_index("gpu")["year"]
    ax.set_xticks(range(len(gpus)), [f"{gpu}\n{years[gpu]}" for gpu in gpus], fontsize=8)
    ax.set(yscale="log", xlabel="GPU, by year", ylabel="projected time of one generation (s)")
    legend_beside(ax, title="hollow: does not fit", title_fontsize=8)
    return ax


def what_bounds(table: "pd.DataFrame", *, label: str, ax: "Axes | None" = None) -> "Axes":
    """Shares of projected time by what bounds it, one bar per row; the projected total stands at its end.

    Parameters
    ----------
    table : DataFrame
        A column named ``label``, ``time_s``, and shares in percent named as `BOUND_COLORS`.
    label : str
        The column that names the bars.
    """
    ax = axes(ax, width=9.0, height=0.32 * len(table) + 1.2)
    left = np.zeros(len(table))
    place = np.arange(len(table))
    for bound in [name for name in BOUND_COLORS if name in table]:
        share = table[bound].fillna(0).to_numpy()
        ax.barh(place, share, left=left, color=BOUND_COLORS[bound], edgecolor="white", label=bound)
        left += share
    for where, time_s in zip(place, table["time_s"], strict=True):
        ax.text(101, float(where), f"{time_s:.3g} s", va="center", fontsize=8)
    ax.set_yticks(place, table[label], fontsize=8)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set(xlim=(0, 112), xlabel="share of projected time (%)", ylabel="")
    ax.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def speed_up(table: "pd.DataFrame", *, y: str, unit: str, ax: "Axes | None" = None) -> "Axes":
    """A projected number over the number of GPUs, one line per method; a number that grows with them is drawn so.

    Parameters
    ----------
    table : DataFrame
        ``gpus, method`` and the column ``y``; ``low`` and ``high`` are drawn where they are there.
    unit : str
        Label of the y axis.
    """
    ax = axes(ax, width=7.0, height=4.2)
    for index, (method, rows) in enumerate(table.groupby("method", sort=False)):
        rows, color = rows.sort_values("gpus"), PALETTE[index % len(PALETTE)]
        ax.plot(rows["gpus"], rows[y], marker="o", color=color, label=str(method))
        if "low" in rows:
            ax.fill_between(rows["gpus"], rows["low"], rows["high"], color=color, alpha=0.12)
    ax.set(xlabel="GPUs", ylabel=unit)
    ax.set_xticks(sorted(table["gpus"].unique()))
    ax.legend(fontsize=8)
    sns.despine(ax=ax)
    return ax
