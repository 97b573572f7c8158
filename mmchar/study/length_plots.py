"""Figures over sequences: lengths, gains against length, scaling. As in `plots`: a tidy table in, axes out."""

import math
from typing import TYPE_CHECKING

import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from mmchar.study.look import FAMILY_COLORS, HATCH, KIND_COLORS, PALETTE, axes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from matplotlib.axes import Axes


def speedup_by_length(
    data: "pd.DataFrame", *, expected: "pd.DataFrame | None" = None, ax: "Axes | None" = None
) -> "Axes":
    """Speed-up of attention cores from a fused kernel against query length, one point per distinct attention.

    Parameters
    ----------
    data : DataFrame
        Columns ``q_len`` (tokens), ``speedup`` (times), ``family`` and ``time_kind``.
    expected : DataFrame, optional
        Columns ``q_len`` and ``expected`` (times), drawn as a line.
    """
    ax = axes(ax)
    if expected is not None:
        label = "expected from the data sheet"
        ax.plot(expected["q_len"], expected["expected"], color="black", lw=1, ls="--", label=label, zorder=1)
    for (family, kind), rows in data.groupby(["family", "time_kind"], sort=False, observed=True):
        hollow = kind == "measured"
        ax.scatter(rows["q_len"], rows["speedup"], s=42, marker="D" if hollow else "o", alpha=0.85, zorder=2,
                   color="white" if hollow else FAMILY_COLORS[family], edgecolor=FAMILY_COLORS[family],
                   linewidth=1.5, label=f"{family.replace('_', ' ')} ({kind})")  # fmt: skip
    ax.axhline(1, color="grey", lw=0.8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set(xlabel="query length (tokens)", ylabel="attention time, eager / fused (x)", ylim=(0, None))
    _legend_outside(ax)
    return ax


def matrix(
    data: "pd.DataFrame", *, row: str, column: str, value: str, band: tuple[float, float] | None = None,
    digits: int = 2, unit: str = "", ax: "Axes | None" = None,
) -> "Axes":  # fmt: skip
    """Every value as a coloured cell with its number; rows and columns keep their order of appearance.

    Parameters
    ----------
    data : DataFrame
        Columns ``row``, ``column`` and ``value``, one line per cell; a missing cell stays empty.
    band : (float, float), optional
        Values from the first to the second are framed, e.g. the range that a paper states.
    digits : int
        Digits after the point.
    unit : str
        Unit of the values, written at the colour bar.
    """
    order = [list(dict.fromkeys(data[name])) for name in (row, column)]
    wide = data.pivot_table(index=row, columns=column, values=value, aggfunc="first", observed=True)
    wide = wide.reindex(index=order[0], columns=order[1]).astype(float)
    ax = axes(ax, width=2.5 + 0.75 * len(order[1]) + _label_room(order[0]), height=1.6 + 0.42 * len(order[0]))
    sns.heatmap(wide, annot=True, fmt=f".{digits}f", cmap="crest", ax=ax, linewidths=1, linecolor="white",
                annot_kws={"fontsize": 8}, cbar_kws={"label": unit})  # fmt: skip
    inside = [] if band is None else zip(*((wide >= band[0]) & (wide <= band[1])).to_numpy().nonzero(), strict=True)
    for y, x in inside:
        ax.add_patch(plt.Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, fill=False, edgecolor="black", lw=1.6))
    ax.grid(visible=False)  # else it shows through cells without a value
    ax.tick_params(axis="y", rotation=0, labelsize=9)
    ax.tick_params(axis="x", labelsize=9)
    if max(len(str(name)) for name in order[1]) > 5:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel="", ylabel="")
    return ax


def curves(
    data: "pd.DataFrame", *, x: str, y: str, hue: str, xlabel: str, ylabel: str, base: int | None = 2,
    colors: "Mapping[str, str] | None" = None, dashed: str = "", ax: "Axes | None" = None,
) -> "Axes":  # fmt: skip
    """One line per value of ``hue``, on logarithmic axes.

    Parameters
    ----------
    data : DataFrame
        Columns ``x``, ``y`` and ``hue``.
    xlabel, ylabel : str
        What the axes show, with units.
    base : int or None
        Base of both logarithmic axes; None draws them linear.
    colors : mapping, optional
        Colour of each ``hue``; by default the colour-blind palette in order of appearance.
    dashed : str
        Lines whose name contains this are dashed and without markers, e.g. guides.
    """
    ax = axes(ax)
    for index, (name, rows) in enumerate(data.groupby(hue, sort=False, observed=True)):
        guide = bool(dashed) and dashed in str(name)
        few = len(rows) <= 24 and not guide
        color = (colors or {}).get(name, "grey" if guide else PALETTE[index % len(PALETTE)])
        ax.plot(rows[x], rows[y], color=color, ls="--" if guide else "-", lw=1.2 if guide else 1.8,
                marker="o" if few else None, ms=4, label=name)  # fmt: skip
    if base is not None:
        ax.set_xscale("log", base=base)
        ax.set_yscale("log", base=base)
        ax.xaxis.set_major_formatter("{x:,g}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _legend_outside(ax)
    return ax


def length_series(data: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Query length of every attention call of one execution, in the order in which they run.

    Parameters
    ----------
    data : DataFrame
        Columns ``call`` (count from 0), ``q_len`` (tokens), ``attention`` (kind) and ``part`` (e.g. down, middle, up).
    """
    ax = axes(ax, height=3.2)
    spans = data.groupby("part", sort=False, observed=True)["call"].agg(["min", "max"])
    for index, (part, (first, last)) in enumerate(spans.iterrows()):
        ax.axvspan(first - 0.5, last + 0.5, color="grey", alpha=0.06 if index % 2 else 0.16, lw=0)
        ax.text(
            (first + last) / 2, 1.01, part, ha="center", va="bottom", fontsize=8, transform=ax.get_xaxis_transform()
        )
    own = data[data["attention"] != "cross"]
    ax.step(own["call"], own["q_len"], where="mid", color="grey", lw=0.8)
    for kind, rows in data.groupby("attention", sort=False, observed=True):
        marker = "x" if kind == "cross" else "o"
        ax.scatter(rows["call"], rows["q_len"], s=18, color=KIND_COLORS[kind], label=kind, marker=marker, zorder=2)
    lengths = sorted(set(data["q_len"]))
    ax.set_yscale("log", base=2)
    ax.set_yticks(lengths, [f"{length:,}" for length in lengths])
    ax.tick_params(axis="y", which="minor", left=False)
    ax.set(
        xlabel="attention call within one step", ylabel="query length (tokens)", xlim=(-0.5, data["call"].max() + 0.5)
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_outside(ax)
    return ax


def length_histogram(data: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Histogram of sequence lengths, one row per image size; the height of a bar is its share of the calls.

    Parameters
    ----------
    data : DataFrame
        Columns ``side`` (pixels), ``q_len`` (tokens) and ``share`` (% of calls).
    """
    sides = sorted(set(data["side"]))
    ax = axes(ax, height=1.5 + 0.5 * len(sides))
    for row, side in enumerate(sides):
        part = data[data["side"] == side]
        at = part["q_len"].map(math.log2)
        ax.bar(at, 0.8 * part["share"] / data["share"].max(), 0.7, bottom=row, color=KIND_COLORS["self"], zorder=2)
        for x, length, share in zip(at, part["q_len"], part["share"], strict=True):
            high = 0.8 * share / data["share"].max()
            y, color = (row + 0.04, "white") if high > 0.35 else (row + high + 0.02, "black")
            ax.text(x, y, f"{length:,}\n{share:.0f} %", ha="center", va="bottom", fontsize=6.5, color=color)
    powers = range(int(math.log2(data["q_len"].min())), int(math.log2(data["q_len"].max())) + 2)
    ax.set_xticks(powers, [f"{2**power:,}" for power in powers], fontsize=8)
    ax.set_yticks([row + 0.4 for row in range(len(sides))], [f"{side} px" for side in sides])
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="sequence length (tokens)", ylabel="", ylim=(-0.1, len(sides)))
    return ax


def share_bars(
    data: "pd.DataFrame", *, label: str, reference: float | None = None, says: str = "", xlabel: str,
    ax: "Axes | None" = None,
) -> "Axes":  # fmt: skip
    """One share per bar, with the absolute total that it is a share of, and a line at a stated value.

    Parameters
    ----------
    data : DataFrame
        Columns ``label``, ``share`` (%), ``total_s`` (s) and ``time_kind``.
    reference : float, optional
        A stated share in percent, drawn as a line and named by ``says``.
    """
    ax = axes(ax, width=8.0 + _label_room(data[label]), height=1.6 + 0.34 * len(data))
    rows = data.iloc[::-1]
    bars = ax.barh(rows[label], rows["share"], color=KIND_COLORS["temporal"], edgecolor="white", lw=0.5)
    found = rows[["time_kind", "share", "total_s"]].itertuples(index=False, name=None)
    for bar, (kind, share, total) in zip(bars, found, strict=True):
        bar.set_hatch(HATCH.get(kind, ""))
        where = bar.get_y() + bar.get_height() / 2
        amount = f"{total:,.0f}" if total >= 1000 else f"{total:.3g}"
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # the reference line may pass there
        ax.text(share + 1, where, f"{share:.0f} % of {amount} s", va="center", fontsize=8, bbox=behind)
    if reference is not None:
        ax.axvline(reference, color="black", lw=1.2, ls="--")
        ax.text(reference, 1.01, says, ha="center", va="bottom", fontsize=8, transform=ax.get_xaxis_transform())
    ax.set(xlim=(0, 125), xlabel=xlabel, ylabel="")
    ax.set_xticks(range(0, 101, 20))
    ax.margins(y=0.02)
    ax.grid(axis="y", visible=False)
    return ax


def _label_room(names: "Iterable[object]", letters: int = 30) -> float:
    """Inches to add to a figure's width for row labels longer than what its width is meant for."""
    return 0.09 * max(0, max((len(str(name)) for name in names), default=0) - letters)


def _legend_outside(ax: "Axes") -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
