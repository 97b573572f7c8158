"""The scorecard as a figure: a row per judged claim, the paper's value as a mark and our range as a bar."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmchar.runs.verdicts import HOLDS, IF, NOT, in_words
from mmchar.study.drawing.look import PALETTE, axes, legend_below, require, rows_from_top

COLORS = {HOLDS: PALETTE[0], IF: PALETTE[1], NOT: PALETTE[4]}
_LEAST, _MOST = 0.02, 30.0  # of the paper's value; what lies beyond is drawn at the edge


def verdict_rows(card: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Ours over the paper's value (log axis) of every judged claim of a `scorecard.scorecard`, coloured by verdict.

    A bar spans all readings, the dot is ours on the statement's face, the black mark the paper's value or range. Text
    stands above each bar, so that the figure is as narrow as a phone.
    """
    require(card, "id", "short", "ours", "low", "high", "paper_low", "paper_high", "our_unit", "verdict", "condition")
    rows = card[card["verdict"].isin(list(COLORS)) & card["ours"].notna() & (card["short"] != "")]
    ax = axes(ax, width=6.4, height=1.1 + 0.5 * len(rows))
    for at, row in enumerate(rows.itertuples()):
        _draw(ax, at, row)
    ax.set(xscale="log", xlim=(_LEAST, _MOST), ylim=(len(rows) - 0.35, -0.85), xlabel="ours / the paper's value")
    ax.set_xticks([0.1, 0.5, 1, 2, 10], ["0.1", "0.5", "1", "2", "10"])
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    legend_below(ax, ncols=3, handles=_legend())
    return ax


def what_moves(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Ours under each change of a `scorecard.moves`, nearest to the top the smallest; grey: the paper's value."""
    require(table, "change", "kind", "ours", "agrees", "paper_low", "paper_high")
    rows = table.sort_values("ours", ignore_index=True)
    ax = axes(ax, width=6.4, height=1.0 + 0.26 * len(rows))
    if rows["paper_low"].notna().all():
        low, high = rows.loc[0, ["paper_low", "paper_high"]].astype(float)
        ax.axvspan(low, high, color="0.85" if low < high else "0.6", linewidth=2)
    colors = [COLORS[HOLDS] if agrees else COLORS[NOT] for agrees in rows["agrees"]]
    ax.axvline(float(table["ours"].iloc[0]), color="black", linewidth=1, linestyle=":")
    ax.scatter(rows["ours"], rows.index, c=colors, s=36, zorder=3)
    names = rows["change"].where(rows["kind"] == "assumption", "read as: " + rows["change"])
    rows_from_top(ax, list(names.str.wrap(46)), fontsize=7.5, lines=True)
    ax.tick_params(axis="x", labelsize=8)
    return ax


def all_moves(moved: pd.DataFrame, card: pd.DataFrame) -> Figure:
    """A panel of `what_moves` for each ``claim`` of several `scorecard.moves`, headed by what the `card` says of it."""
    require(moved, "claim")
    claims, named = list(moved.groupby("claim", sort=False)), card.set_index("id")
    heights = [len(rows) + 3 for _, rows in claims]
    size = {"figsize": (6.4, 0.25 * sum(heights)), "layout": "constrained"}
    figure, axs = plt.subplots(len(claims), 1, height_ratios=heights, squeeze=False, **size)
    for ax, (claim, rows) in zip(axs[:, 0], claims, strict=True):
        what_moves(rows, ax=ax).set_title(f"{claim}  {named.loc[claim, 'short']}", fontsize=9)
        ax.set_xlabel(f"ours ({named.loc[claim, 'our_unit']})", fontsize=8)
    return figure


def _draw(ax: Axes, at: int, row: Any) -> None:
    of, color = row.paper_low if np.isfinite(row.paper_low) else 1.0, COLORS[row.verdict]
    low, ours, high = (float(np.clip(value / of, _LEAST * 1.1, _MOST / 1.1)) for value in (row.low, row.ours, row.high))
    ax.barh(at, high - low, left=low, height=0.26, color=color, alpha=0.45, edgecolor=color)
    ax.plot(ours, at, "o", color=color, markersize=6, markeredgecolor="white", zorder=3)
    most = row.paper_high / of if np.isfinite(row.paper_high) else _MOST / 1.1
    ax.plot([1, most], [at, at], color="black", linewidth=2 if most > 1 else 0, zorder=2)
    ax.plot(1, at, "|", color="black", markersize=13, markeredgewidth=2.2, zorder=4)
    ax.text(_LEAST * 1.08, at - 0.3, f"{row.id}  {row.short}", fontsize=8.5, va="bottom")
    if row.condition:
        where = f"if {row.condition}" if len(row.condition) < 60 else f"if {row.condition[:57]}…"
        ax.text(_LEAST * 1.08, at, where, fontsize=7, va="center", style="italic", color="0.3", zorder=5)
    ax.text(_MOST / 1.08, at - 0.3, in_words(row), fontsize=8.5, va="bottom", ha="right")


def _legend() -> list[Patch | Line2D]:
    paper = Line2D([], [], color="black", marker="|", markersize=11, markeredgewidth=2, linewidth=0, label="the paper")
    ours = Line2D([], [], color="0.4", marker="o", linewidth=0, label="ours")
    return [*(Patch(color=color, label=verdict) for verdict, color in COLORS.items()), ours, paper]
