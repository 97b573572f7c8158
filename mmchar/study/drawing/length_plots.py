"""Figures over sequences: lengths, gains against length, scaling. As in `plots`: a tidy table in, axes out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mmchar.study.drawing.look import (
    FAMILY_COLORS,
    HATCH,
    KIND_COLORS,
    PALETTE,
    amount,
    axes,
    by_family,
    label_room,
    legend_below,
    legend_beside,
    note,
    note_above,
    require,
    rows_from_top,
    rows_under_names,
)
from mmchar.tables.shown import CATEGORY_COLORS

# Of figures with several panels: the label of a y axis, its scale, and the columns that it shows, with their names.
Panels = Mapping[str, tuple[float, Mapping[str, str]]]
_TASK_PANELS = {
    "first_s": "time to the first token (s), projected",
    "generation_s": "time of a generation (s), projected",
}
_TASK_PANELS |= {"decode_share": "decode in the projected time (%)"}
_TASK_ENDS = {"min": (">", "shortest of the data set"), "mean": ("o", "mean length"), "max": ("<", "longest")}
_TASK_ENDS |= {"zoo": ("o", "no length found: the zoo's request")}
_COLORS = {"convolution": CATEGORY_COLORS["Convolution"], "attention cores": CATEGORY_COLORS["Attention"]}
_COLORS |= {"attention cores, fused": CATEGORY_COLORS["Attention"], "attention cores, eager": "0.45"}


def speedup_by_length(data: pd.DataFrame, *, expected: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Speed-up of attention cores from a fused kernel against query length, one point per distinct attention.

    Columns: ``q_len`` (tokens), ``speedup`` (times), ``family``, ``time_kind``; of ``expected``, which is drawn as a
    line, ``q_len`` and ``expected`` (times).
    """
    ax = axes(ax, width=6.4, height=4.8)
    if expected is not None:
        label = "expected from the data sheet"
        ax.plot(expected["q_len"], expected["expected"], color="black", lw=1, ls="--", label=label, zorder=1)
    for (family, kind), rows in data.groupby(["family", "time_kind"], sort=False, observed=True):
        color, label = FAMILY_COLORS[family], f"{family.replace('_', ' ')} ({kind})"
        look = {"marker": "D", "color": "white"} if kind == "measured" else {"marker": "o", "color": color}
        look |= {"s": 42, "alpha": 0.85, "zorder": 2, "edgecolor": color, "linewidth": 1.5}
        ax.scatter(rows["q_len"], rows["speedup"], label=label, **look)
    ax.axhline(1, color="grey", lw=0.8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set(xlabel="query length (tokens)", ylabel="attention time, eager / fused (x)", ylim=(0, None))
    legend_below(ax, ncols=2)
    return ax


def matrix(
    data: pd.DataFrame, *, row: str, column: str, value: str, band: tuple[float, float] | None = None,
    digits: int = 2, unit: str = "", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Every ``value`` as a coloured cell with its number; rows and columns keep their order of appearance.

    Values within ``band`` are framed, e.g. the range that a paper states.
    """
    wide = data.pivot_table(index=row, columns=column, values=value, aggfunc="first", observed=True).astype(float)
    wide = wide.reindex(index=data[row].unique(), columns=data[column].unique())
    ax = axes(ax, width=2.5 + 0.75 * wide.shape[1] + label_room(wide.index), height=1.6 + 0.42 * wide.shape[0])
    look = {"annot_kws": {"fontsize": 8}, "cbar_kws": {"label": unit}, "linewidths": 1, "linecolor": "white"}
    sns.heatmap(wide, annot=True, fmt=f".{digits}f", cmap="crest", ax=ax, **look)
    low, high = band or (np.inf, -np.inf)
    for y, x in np.argwhere(((wide >= low) & (wide <= high)).to_numpy()):
        ax.add_patch(plt.Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, fill=False, edgecolor="black", lw=1.6))
    ax.grid(visible=False)  # else it shows through cells without a value
    ax.tick_params(axis="y", rotation=0, labelsize=9)
    ax.tick_params(axis="x", labelsize=9)
    if max(len(str(name)) for name in wide.columns) > 5:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel="", ylabel="")
    return ax


def curves(
    data: pd.DataFrame, *, x: str, y: str, hue: str, xlabel: str, ylabel: str, base: int | None = 2,
    colors: Mapping[str, str] | None = None, dashed: str = "", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """One line per value of ``hue``, on axes that are logarithmic to ``base``, or linear for None.

    Lines whose name contains ``dashed`` are dashed and without markers, e.g. guides.
    """
    ax = axes(ax)
    for index, (name, rows) in enumerate(data.groupby(hue, sort=False, observed=True)):
        guide = bool(dashed) and dashed in str(name)
        color = (colors or {}).get(name, "grey" if guide else PALETTE[index % len(PALETTE)])
        dash, width, marker = ("--", 1.2, "") if guide else ("-", 1.8, "o" if len(rows) <= 24 else "")
        ax.plot(rows[x], rows[y], ls=dash, lw=width, marker=marker, ms=4, color=color, label=name)
    if base is not None:
        ax.set_xscale("log", base=base)
        ax.set_yscale("log", base=base)
        ax.xaxis.set_major_formatter("{x:,g}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    legend_beside(ax)
    return ax


def core_share_by_tokens(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of attention cores in a denoiser's FLOPs over its tokens: counted as dots, ``n / (n + half)`` as lines.

    Columns: ``model``, ``case`` (what a dot is called), ``tokens``, ``share`` (%), ``half`` (tokens).
    """
    ax = axes(ax, width=9.0, height=4.6)
    along = np.geomspace(data["tokens"].min() / 4, data["tokens"].max() * 4, 200)
    for number, (model, rows) in enumerate(data.groupby("model", sort=False)):
        color, half = PALETTE[number % len(PALETTE)], rows["half"].iloc[-1]
        label = f"{model} (half at {amount(half)} tokens)"
        ax.plot(along, 100 * along / (along + half), color=color, lw=1.3, label=label)
        ax.scatter(rows["tokens"], rows["share"], color=color, s=38, zorder=3)
    for number, row in enumerate(data.sort_values("tokens").itertuples()):  # neighbours keep clear of each other
        shift, side = ((7, -9), "left") if number % 2 else ((-6, 5), "right")
        place = (row.tokens, row.share)
        ax.annotate(row.case, place, shift, textcoords="offset points", fontsize=7, ha=side)
    ax.axhline(50, color="0.5", lw=0.8, ls="--")
    ax.set(xscale="log", ylim=(0, 100), xlabel="tokens of the longest sequence", ylabel="attention cores (% of FLOPs)")
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    legend_beside(ax)
    return ax


def length_series(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Query length of every attention call of one execution, in the order in which they run.

    Columns: ``call`` (count from 0), ``q_len`` (tokens), ``attention`` (kind) and ``part`` (e.g. down, middle, up).
    """
    ax = axes(ax, height=3.2)
    spans = data.groupby("part", sort=False, observed=True)["call"].agg(["min", "max"])
    for index, (part, (first, last)) in enumerate(spans.iterrows()):
        ax.axvspan(first - 0.5, last + 0.5, color="grey", alpha=0.06 if index % 2 else 0.16, lw=0)
        note_above(ax, (first + last) / 2, part)
    own = data[data["attention"] != "cross"]
    ax.step(own["call"], own["q_len"], where="mid", color="grey", lw=0.8)
    for kind, rows in data.groupby("attention", sort=False, observed=True):
        marker = "x" if kind == "cross" else "o"
        ax.scatter(rows["call"], rows["q_len"], s=18, color=KIND_COLORS[kind], label=kind, marker=marker, zorder=2)
    lengths = sorted(set(data["q_len"]))
    ax.set_yscale("log", base=2)
    ax.set_yticks(lengths, [f"{length:,}" for length in lengths])
    ax.tick_params(axis="y", which="minor", left=False)
    ax.set(xlabel="attention call within one step", xlim=(-0.5, data["call"].max() + 0.5))
    ax.set_ylabel("query length (tokens)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(ax)
    return ax


def length_histogram(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Histogram of sequence lengths, one row per image size; the height of a bar is its share of the calls.

    Columns: ``side`` (pixels), ``q_len`` (tokens) and ``share`` (% of calls).
    """
    sides = sorted(set(data["side"]))
    ax = axes(ax, width=6.6, height=1.5 + 0.55 * len(sides))
    at, high = np.log2(data["q_len"]), 0.8 * data["share"] / data["share"].max()
    row = data["side"].map(sides.index)
    ax.bar(at, high, 0.7, bottom=row, color=KIND_COLORS["self"], zorder=2)
    for x, y, tall, length, share in zip(at, row, high, data["q_len"], data["share"], strict=True):
        y, color = (y + 0.04, "white") if tall > 0.35 else (y + tall + 0.02, "black")
        ax.text(x, y, f"{length:,}\n{share:.0f} %", ha="center", va="bottom", fontsize=7.5, color=color)
    powers = range(int(at.min()), int(at.max()) + 2)
    ax.set_xticks(powers, [f"{2**power:,}" for power in powers], fontsize=8, rotation=30)
    ax.set_yticks([row + 0.4 for row in range(len(sides))], [f"{side} px" for side in sides])
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="sequence length (tokens)", ylabel="", ylim=(-0.1, len(sides)))
    return ax


def share_bars(
    data: pd.DataFrame, *, label: str, reference: float, says: str, xlabel: str, ax: Axes | None = None
) -> Axes:
    """One share per bar, its name above it, with the total that it is a share of, and a line where one was stated.

    Columns: ``label``, ``share`` (%), ``total_s`` (s) and ``time_kind``; ``says`` names the stated share ``reference``.
    """
    ax = axes(ax, width=6.6, height=1.2 + 0.4 * len(data))
    bars = ax.barh(range(len(data)), data["share"], 0.46, color=KIND_COLORS["temporal"], edgecolor="white", lw=0.5)
    found = data[["time_kind", "share", "total_s"]].itertuples(index=False, name=None)
    for row, (bar, (kind, share, total)) in enumerate(zip(bars, found, strict=True)):
        bar.set_hatch(HATCH.get(kind, ""))
        note(ax, share + 1, row, f"{share:.0f} % of {amount(total)} s")
    ax.axvline(reference, color="black", lw=1.2, ls="--")
    rows_under_names(ax, data[label].tolist(), fontsize=8)
    ax.set(xlim=(0, 125), xlabel=f"{xlabel}; dashed: {says}")
    ax.set_xticks(range(0, 101, 20))
    return ax


def size_panels(data: pd.DataFrame, panels: Panels) -> Figure:
    """Curves over the image's side, a column of panels per model. The table is one from `by_size`."""
    models = data["model"].unique()
    shape = {"figsize": (4.2 * len(models) + 2.6, 3.4 * len(panels) + 0.5), "sharex": True, "sharey": "row"}
    figure, grid = plt.subplots(len(panels), len(models), layout="constrained", squeeze=False, **shape)
    for line, (ylabel, (scale, names)) in zip(grid, panels.items(), strict=True):
        for ax, model in zip(line, models, strict=True):
            rows = data[data["model"] == model].melt("side", list(names), "what")
            rows = rows.assign(what=rows["what"].map(names), value=scale * rows["value"].astype(float))
            curves(rows, x="side", y="value", hue="what", xlabel="side (pixels)", ylabel=ylabel, colors=_COLORS, ax=ax)
            ax.set_yscale("log", base=10)
            ax.set_xticks(sorted(data["side"].unique()))
            ax.tick_params(labelsize=8)
            ax.set_title(model, fontsize=10)
            ax.label_outer()
        [ax.get_legend().remove() for ax in line[:-1]]
    return figure


def weight_use(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Positions that one read of a weight serves over the reads of a generation. The table is one of `weight_use`."""
    require(data, "model", "family", "stage", "reads", "uses")
    ax = axes(ax, width=9.0, height=4.8)
    for label, color, rows in by_family(data):
        ax.scatter(rows["reads"], rows["uses"], s=55, color=color, label=label, zorder=3)
    for row in data.itertuples():
        beside = (data["reads"] / row.reads).between(1.01, 20) & (data["uses"] / row.uses).between(0.75, 1.33)
        side, shift = ("right", (-7, -3)) if beside.any() else ("left", (7, -3))
        name = f"{row.model}, {row.stage}"
        ax.annotate(name, (row.reads, row.uses), shift, textcoords="offset points", fontsize=7, ha=side)
    ax.set(xscale="log", yscale="log", xlabel="reads of each weight in one generation", ylabel="positions per read")
    ax.set_xlim(data["reads"].min() / 4, data["reads"].max() * 20)
    legend_beside(ax)
    return ax


def token_traffic(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Gigabytes that decoding one token moves, over the tokens. The table is one from `traffic_by_token`."""
    require(data, "case", "token", "what", "value")
    ax = axes(ax, width=9.0, height=4.4)
    shown = data.assign(gigabytes=data["value"] / 1e9)
    sns.lineplot(shown, x="token", y="gigabytes", hue="case", style="what", palette="colorblind", ax=ax)
    ax.set(xscale="log", yscale="log", xlabel="generated token", ylabel="moved for it (GB)")
    ax.xaxis.set_major_formatter("{x:,g}")
    legend_beside(ax)
    return ax


def task_times(data: pd.DataFrame) -> Figure:
    """Projected times of each task from its shortest to its longest lengths, and decode's share: `times_by_task`."""
    require(data, "task", "end", *_TASK_PANELS)
    order = data["task"].unique().tolist()
    height = 1.6 + 0.34 * len(order)
    figure, panels = plt.subplots(1, len(_TASK_PANELS), figsize=(13, height), sharey=True, layout="constrained")
    for ax, (column, label) in zip(panels, _TASK_PANELS.items(), strict=True):
        for end, (mark, says) in _TASK_ENDS.items():
            rows = data[data["end"] == end]
            face = "none" if end == "zoo" else PALETTE[0]
            place = rows["task"].map(order.index)
            ax.scatter(rows[column], place, marker=mark, fc=face, ec=PALETTE[0], s=34, label=says, zorder=3)
        reach = data.groupby("task", sort=False)[column].agg(["min", "max"])
        ax.hlines(range(len(order)), reach["min"], reach["max"], color=PALETTE[0], lw=3, alpha=0.4)
        ax.set(xlabel=label, xscale="linear" if column == "decode_share" else "log")
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.xaxis.set_minor_formatter("")
    rows_from_top(panels[0], order, lines=True)
    panels[-1].set(xlim=(-3, 103))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def request_panels(data: pd.DataFrame) -> Figure:
    """Projected seconds per image over batch, guided and not, and over steps. The table is one of `asked_again`."""
    require(data, "model", "case", "batch", "steps", "value")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    usual = data["steps"] == data.groupby("model")["steps"].transform("first")
    look: dict[str, Any] = {
        "y": "value",
        "hue": "case",
        "colors": dict(zip(data["case"].unique(), PALETTE, strict=False)),
    }
    curves(data[usual], x="batch", xlabel="batch (images)", ylabel="time (s/image), projected", ax=left, **look)
    one = data[(data["batch"] == 1) & ~data["case"].str.endswith("not guided")].sort_values("steps", kind="stable")
    curves(one, x="steps", xlabel="steps", ylabel="", base=None, ax=right, **look)
    left.set(yscale="linear", ylim=(0, None))
    left.set_xticks(sorted(data["batch"].unique()))
    for ax in (left, right):
        ax.legend(fontsize=8)
    right.set_ylim(0, None)
    return figure
