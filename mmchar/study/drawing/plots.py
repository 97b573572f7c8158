"""Figures of models and their operators: a tidy table in, axes out. Nothing is computed that is not in the table."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mmchar.study.drawing.look import (
    HATCH,
    KIND_COLORS,
    PALETTE,
    PART_COLORS,
    amount,
    axes,
    by_family,
    legend_below,
    legend_beside,
    note,
    require,
    rows_from_top,
    rows_under_names,
    style,
)
from mmchar.tables.shown import CATEGORY_COLORS

__all__ = [
    "KIND_COLORS", "plt", "style",  # for notebooks, which take them from here
    "cost_panels", "intensity", "memory_fit", "memory_timeline", "operator_breakdown", "part_shares", "roofline",
    "sensitivity", "size_and_compute",
]  # fmt: skip


def operator_breakdown(
    data: pd.DataFrame, *, label: str, value: str = "value", unit: str = "s", title: str = "", above: bool = False,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Share of each operator category, one stacked bar per label, with its absolute total at the end.

    Columns: ``label`` (what bars stand for, in order of appearance), ``category``, ``value`` (in ``unit``),
    ``time_kind``. Long labels stand ``above`` their bars.
    """
    require(data, label, "category", value, "time_kind")
    wide = data.pivot_table(index=label, columns="category", values=value, aggfunc="sum", sort=False, observed=True)
    wide = wide.reindex(columns=[name for name in CATEGORY_COLORS if name in wide]).fillna(0.0)
    total, kinds = wide.sum(axis=1), data.drop_duplicates(label)["time_kind"]
    totals = [f"{amount(each)} {unit}" for each in total]
    ax = axes(ax, width=7.0, height=1.2 + (0.5 if above else 0.36) * len(wide))
    shares, tall = 100 * wide.div(total, axis=0), 0.46 if above else 0.8
    stacked_shares(shares, colors=CATEGORY_COLORS, totals=totals, kinds=kinds, tall=tall, ax=ax)
    if above:
        rows_under_names(ax, [str(name) for name in wide.index], fontsize=9)
    ax.set_xlabel("share of the total (%)")
    ax.set_title(title, fontsize=10)
    return ax


def stacked_shares(
    shares: pd.DataFrame, *, colors: Mapping[str, str], totals: Sequence[str], kinds: Iterable[str], tall: float = 0.8,
    ax: Axes,
) -> None:  # fmt: skip
    """A bar per row of shares (%), stacked by column, hatched by its kind of time, with its total at the end."""
    left = 0.0 * shares.sum(axis=1)
    for name, share in shares.items():
        look = {"color": colors[name], "edgecolor": "white", "lw": 0.5, "label": name}
        bars = ax.barh(range(len(shares)), share, tall, left=left, **look)
        for bar, kind in zip(bars, kinds, strict=True):
            bar.set_hatch(HATCH.get(kind, ""))
        ink = "black" if name in ("Elementwise", "Idle") else "white"
        for row, (start, part) in enumerate(zip(left, share, strict=True)):
            if part >= 4:
                note(ax, start + part / 2, row, f"{part:.0f}", behind=colors[name], color=ink, ha="center")
        left = left + share
    for row, total in enumerate(totals):
        note(ax, 101, row, total)
    rows_from_top(ax, [str(name) for name in shares.index])
    ax.set_xlim(0, 122)
    ax.set_xticks(range(0, 101, 20))
    legend_below(ax, ncols=4)


def memory_timeline(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Activation memory while one generation runs, call by call, one colour per stage; above it what eager would add.

    Columns, a row per call site in the order of execution: ``stage``, ``live_bytes`` (activations, fused attention),
    ``live_eager_bytes`` (the same with attention that writes its similarity matrix).
    """
    require(data, "stage", "live_bytes", "live_eager_bytes")
    data = data.reset_index(drop=True)
    ax = axes(ax, width=6.8, height=4.0)
    eager = data["live_eager_bytes"] / 1e9
    label = f"with eager attention (up to {eager.max():.3g} GB)"
    ax.fill_between(data.index, eager, color="0.6", step="mid", lw=0.8, label=label)
    for number, stage in enumerate(data["stage"].unique()):
        live = (data["live_bytes"] / 1e9).where(data["stage"] == stage, 0.0)
        color, label = PALETTE[number % len(PALETTE)], f"{stage} (up to {live.max():.3g} GB)"
        ax.fill_between(data.index, live, color=color, label=label, step="mid", lw=0)
    ax.set(xlabel="operator calls in order, of repeated steps one", ylabel="activation memory (GB)", ylim=(0, None))
    ax.set_xlim(0, max(len(data) - 1, 1))
    legend_below(ax, ncols=2)
    return ax


def size_and_compute(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """FLOP of one generation over parameters, one point per model. Columns: ``model, family, params, flop``."""
    require(data, "model", "family", "params", "flop")
    ax = axes(ax, width=6.4, height=5.2)
    for label, color, rows in by_family(data):
        ax.scatter(rows["params"], rows["flop"], s=60, color=color, label=label, zorder=3)
    for number, row in enumerate(data.sort_values("flop").itertuples()):
        side, shift = ("right", -7) if number % 2 else ("left", 7)  # neighbours keep clear of each other
        place = (row.params, row.flop)
        ax.annotate(row.model, place, (shift, -3), textcoords="offset points", fontsize=8, ha=side)
    ax.set(xscale="log", yscale="log", xlabel="parameters of all components", ylabel="FLOP of one generation")
    ax.set_xlim(data["params"].min() / 4, data["params"].max() * 4)
    legend_below(ax, ncols=3)
    return ax


def intensity(data: pd.DataFrame, *, ridge: float, gpu: str, ax: Axes | None = None) -> Axes:
    """Arithmetic intensity of every stage, one line per model; a diamond is the whole generation.

    Columns: ``model``, ``family``, ``stage`` ("all" for the whole), ``intensity`` (FLOP per byte), ``share`` (% of the
    generation's time on ``gpu``, the area of a point). ``ridge`` is the FLOP per byte above which the GPU computes
    longer than it moves bytes.
    """
    require(data, "model", "family", "stage", "intensity", "share")
    order = data["model"].unique().tolist()
    ax = axes(ax, width=6.4, height=1.8 + 0.36 * len(order))
    for label, color, rows in by_family(data):
        rows = rows.assign(row=rows["model"].map(order.index))
        parts, whole = rows[rows["stage"] != "all"], rows[rows["stage"] == "all"]
        size = 10 + 2 * parts["share"]
        ax.scatter(parts["intensity"], parts["row"], s=size, color=color, alpha=0.6, label=label, zorder=3)
        ax.scatter(whole["intensity"], whole["row"], s=45, marker="D", color="white", edgecolor=color, lw=1.8, zorder=4)
    ax.axvline(ridge, color="0.3", ls="--", lw=1)
    ax.text(ridge, -0.9, f"ridge of {gpu}: {ridge:.0f} ", fontsize=8, ha="right", va="center", color="0.3")
    rows_from_top(ax, order, lines=True)
    ax.set(xscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylim=(len(order) - 0.4, -1.4))
    legend_below(ax, ncols=3)
    return ax


def roofline(
    data: pd.DataFrame, *, peak_flop_s: float, bandwidth_bytes_s: float, gpu: str, ax: Axes | None = None
) -> Axes:
    """Attained rate over arithmetic intensity, one point per stage, under the two roofs of a GPU's data sheet.

    Columns: ``model``, ``family``, ``stage``, ``intensity`` (FLOP per byte), ``flop_s`` (attained), ``share`` (% of its
    generation's time; the area of a point), ``time_kind``.
    """
    require(data, "model", "family", "stage", "intensity", "flop_s", "share", "time_kind")
    data = data[data["flop_s"] > 0]  # what computes no product has no place on logarithmic axes
    ax = axes(ax, width=6.8, height=5.8)
    ridge = peak_flop_s / bandwidth_bytes_s
    low, high = data["intensity"].min() / 2, max(data["intensity"].max(), ridge) * 50
    ax.plot([low, ridge, high], [low * bandwidth_bytes_s, peak_flop_s, peak_flop_s], color="0.2", lw=1.5, zorder=2)
    roofs = f"{gpu}: {peak_flop_s / 1e12:.0f} TFLOP/s, {bandwidth_bytes_s / 1e12:.2f} TB/s (data sheet)"
    ax.annotate(roofs, (ridge, peak_flop_s), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    for label, color, rows in by_family(data):
        size = 10 + 3 * rows["share"]
        ax.scatter(rows["intensity"], rows["flop_s"], s=size, color=color, alpha=0.65, label=label, zorder=3)
    main = data[data["share"] >= 40].sort_values("flop_s")
    _name_points(ax, main[main["intensity"] >= ridge], column=high / 38, top=peak_flop_s / 1.6)
    for number, row in enumerate(main[main["intensity"] < ridge].itertuples()):
        place = (14, -11) if number % 2 else (14, 5)
        text = f"{row.model} {row.stage}"
        ax.annotate(text, (row.intensity, row.flop_s), place, textcoords="offset points", fontsize=8)
    kinds = " and ".join(data["time_kind"].astype(str).unique())
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(data["flop_s"].min() / 2, peak_flop_s * 2.5))
    ax.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel=f"attained FLOP/s ({kinds})")
    legend_below(ax, ncols=3)
    return ax


def _name_points(ax: Axes, rows: pd.DataFrame, *, column: float, top: float) -> None:
    """Names of crowded points of a roofline in a column beside them, from ``top`` (FLOP/s) down, joined by lines."""
    line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0.0, 0.5)}
    for number, row in enumerate(rows[::-1].itertuples()):
        place, text = (column, top / 1.38**number), f"{row.model} {row.stage}"
        ax.annotate(text, (row.intensity, row.flop_s), place, fontsize=8, va="center", arrowprops=line, zorder=2)


def memory_fit(data: pd.DataFrame, *, memory_bytes: float, gpu: str, ax: Axes | None = None) -> Axes:
    """Memory that a generation needs, one line per model: weights, then the peak with fused and with eager attention.

    Columns: ``model``, ``weights_bytes``, ``peak_bytes`` (weights and most activations, fused attention) and
    ``peak_eager_bytes`` (with attention that writes its similarity matrix); ``memory_bytes`` is what the GPU has.
    """
    require(data, "model", "weights_bytes", "peak_bytes", "peak_eager_bytes")
    names = ["weights_bytes", "peak_bytes", "peak_eager_bytes"]
    weights, flash, eager = (data[name].to_numpy() / 1e9 for name in names)
    rows, has = range(len(data)), memory_bytes / 1e9
    ax = axes(ax, width=6.8, height=1.6 + 0.36 * len(data))
    ax.hlines(rows, weights, eager, color="0.75", lw=2, zorder=2)
    ax.scatter(weights, rows, s=36, color=PALETTE[0], label="weights alone", zorder=3)
    ax.scatter(flash, rows, s=36, marker="D", color=PALETTE[2], label="peak, flash", zorder=3)
    ax.scatter(eager, rows, s=160, marker="|", color=PALETTE[3], label="peak, eager attention", zorder=3)
    for row in rows:
        peaks = f"{flash[row]:.3g} | {eager[row]:.3g}"
        text = ax.annotate(peaks, (eager[row], row), (9, -3), textcoords="offset points")
        text.set(fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.axvline(has, color="0.3", ls="--", lw=1, label=f"memory of {gpu} ({has:.0f} GB)")
    rows_from_top(ax, data["model"].tolist(), lines=True)
    ax.set(xscale="log", xlabel="memory of one generation (GB); beside it: peak, flash | eager")
    ax.set_xlim(weights.min() / 2, 4 * max(eager.max(), has))
    legend_below(ax, ncols=2)
    return ax


def sensitivity(data: pd.DataFrame, *, paper: float, ax: Axes | None = None) -> Axes:
    """A share under several assumptions, one line per model and one mark per assumption, beside the paper's value (%).

    Columns: ``model``, ``setting`` (the assumption; the first is drawn as a diamond), ``share`` (% of time).
    """
    require(data, "model", "setting", "share")
    order = data["model"].unique().tolist()
    ax = axes(ax, height=1.4 + 0.5 * len(order))
    reach = data.groupby("model", sort=False)["share"].agg(["min", "max"])
    ax.hlines(range(len(order)), reach["min"], reach["max"], color="0.8", lw=2, zorder=2)
    for number, (setting, rows) in enumerate(data.groupby("setting", sort=False)):
        marker, color = ("os^vPX<>*"[(number - 1) % 9], PALETTE[(number - 1) % 10]) if number else ("D", "black")
        row, above = rows["model"].map(order.index), 4 - number / 99
        ax.scatter(rows["share"], row, s=42, marker=marker, color=color, label=setting, zorder=above)
    ax.axvline(paper, color="0.3", ls="--", lw=1, label=f"paper: up to {paper:g} %")
    rows_from_top(ax, order, lines=True)
    ax.set(xlabel="share of time (%)", xlim=(0, 100))
    legend_beside(ax)
    return ax


def part_shares(data: pd.DataFrame, *, label: str, ax: Axes | None = None) -> Axes:
    """Share of projected time of each part, one bar per ``label``, with its seconds at the end.

    The table is one from `time_by_part`, or several of them with a column that names the bars.
    """
    require(data, label, "part", "time_s", "time_kind")
    wide = data.pivot_table(index=label, columns="part", values="time_s", aggfunc="sum", sort=False)
    wide = wide.reindex(columns=[part for part in PART_COLORS if part in wide]).fillna(0.0)
    total = wide.sum(axis=1)
    ax = axes(ax, width=9.0, height=1.4 + 0.4 * len(wide))
    totals = [f"{amount(time_s)} s" for time_s in total]
    kinds = data.drop_duplicates(label)["time_kind"]
    stacked_shares(100 * wide.div(total, axis=0), colors=PART_COLORS, totals=totals, kinds=kinds, ax=ax)
    ax.set_xlabel("share of projected time (%)")
    return ax


def cost_panels(
    data: pd.DataFrame, costs: Mapping[str, tuple[str, str, float]], *, x: str, xlabel: str, hue: str
) -> Figure:
    """One panel per cost over ``x``, one line per value of ``hue``.

    ``costs`` are columns, each with what its panel is called, its unit, and what its values are multiplied by.
    """
    require(data, x, hue, *costs)
    rows = -(-len(costs) // 2)
    figure, panels = plt.subplots(rows, 2, figsize=(9.0, 2.5 * rows + 1.0), layout="constrained", squeeze=False)
    look = {"hue": hue, "hue_order": sorted(data[hue].unique()), "palette": "colorblind", "markersize": 7}
    look |= {"style": hue, "style_order": look["hue_order"], "markers": True, "dashes": False}
    for ax, (column, (label, unit, scale)) in zip(panels.flat, costs.items(), strict=False):
        sns.lineplot(data.assign(**{column: scale * data[column]}), x=x, y=column, ax=ax, **look)
        ax.set(yscale="log", xlabel=xlabel, ylabel=unit)
        ax.set_title(label, fontsize=10)
        ax.set_xticks(sorted(data[x].unique()))
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(which="both", labelsize=9)
        handles, names = ax.get_legend_handles_labels()
        ax.legend_.remove()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
