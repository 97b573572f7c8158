"""Figures of projections beside what was published or measured, across GPUs and levers. A tidy table in, axes out.

Bars are plain, as those of all projections; hatching is for what was measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmchar.projection.evidence.validation import summary
from mmchar.runs.figures import write_figure
from mmchar.study.drawing.length_plots import curves
from mmchar.study.drawing.look import (
    BOUND_COLORS,
    HATCH,
    PALETTE,
    amount,
    axes,
    legend_below,
    legend_beside,
    note,
    rows_from_top,
)
from mmchar.study.drawing.plots import stacked_shares


def beside_published(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Projected over published time of every configuration, a row for each family, execution and GPU.

    Columns: ``family, execution, gpu, ratio`` (projected over published; 1 is agreement). Bars reach from the smallest
    to the largest of a row, and its name says how many there are.
    """
    kinds = ["family", "execution", "gpu"]
    table = table.sort_values(kinds, kind="stable")
    found = table.groupby(kinds, sort=False)["ratio"].agg(["min", "max", "size"]).reset_index()
    ax = axes(ax, width=6.8, height=0.26 * len(found) + 1.4)
    names = (found[kinds].agg(", ".join, axis=1) + found["size"].map(" ({})".format)).tolist()
    row = table[kinds].merge(found[kinds].reset_index(), on=kinds)["index"].to_numpy()
    ax.barh(range(len(found)), found["max"] - found["min"], 0.25, left=found["min"], color="0.85", zorder=1)
    sns.scatterplot(
        x=table["ratio"].to_numpy(), y=row, hue=table["family"].to_numpy(), palette="colorblind", s=28, ax=ax
    )
    ax.axvspan(1 / 1.15, 1.15, color="0.5", alpha=0.12, zorder=0, label="within 15 %")
    ax.axvline(1.0, color="0.3", linewidth=1)
    rows_from_top(ax, names, fontsize=8)
    ax.set(xlabel="projected / published time", ylabel="", xscale="log")
    ax.set_xticks([0.5, 0.7, 1.0, 1.4], ["0.5", "0.7", "1", "1.4"])
    ax.minorticks_off()
    legend_below(ax, ncols=3)
    return ax


def kernels_beside(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Projected against measured seconds of single kernels, both axes logarithmic, with the line of agreement.

    The table is one from `kernels.kernels_beside_projected`.
    """
    ax = axes(ax, width=6.8, height=4.4)
    shown = table.assign(measured_us=1e6 * table["measured_s"], projected_us=1e6 * table["projected_s"])
    _scatter(shown, x="measured_us", y="projected_us", hue="kind", style="gpu", ax=ax)
    ends = _diagonal(shown["measured_us"], label="projected = measured", ax=ax)
    ax.fill_between(ends, ends / 1.5, 1.5 * ends, color="0.5", alpha=0.12, label="within 1.5 times")
    ax.set(ylim=ends, xlabel="measured by others (us)", ylabel="projected (us)")
    legend_beside(ax)
    return ax


def decoder_by_kernel(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Milliseconds of each kind of kernel in an image decoder: measured by others (hatched) and projected.

    The table is one from `kernels.decoder_beside_projected`.
    """
    ax = axes(ax, width=6.8, height=4.2)
    place = np.arange(len(table))
    for shift, kind, label in ((-0.2, "measured", "measured by others"), (0.2, "projected", "projected")):
        width = 1e3 * table[f"{kind}_s"]
        look = {"color": PALETTE[0], "edgecolor": "white", "hatch": HATCH[kind]}
        bars = ax.barh(place + shift, width, 0.38, label=label, **look)
        names = [f"{ms:.1f} ms, {share:.0f} %" for ms, share in zip(width, 100 * width / width.sum(), strict=True)]
        ax.bar_label(bars, names, padding=3, fontsize=8)
    rows_from_top(ax, table["kind"].tolist(), fontsize=9)
    ax.margins(x=0.25)
    ax.set_xlabel("time (ms)")
    legend_below(ax, ncols=2)
    return ax


def across_gpus(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Seconds of each model over the year of the GPU, with their range; hollow where the model does not fit.

    The table is one from `scaling.on_gpus`.
    """
    ax = axes(ax, width=6.8, height=4.6)
    gpus = table.drop_duplicates("gpu").sort_values("year", kind="stable").set_index("gpu")["year"]
    for index, (model, rows) in enumerate(table.groupby("model", sort=False)):
        color = PALETTE[index % len(PALETTE)]
        rows = rows.assign(place=gpus.index.get_indexer(rows["gpu"])).sort_values("place")
        reach = [rows["time_s"] - rows["low_s"], rows["high_s"] - rows["time_s"]]
        ax.errorbar(rows["place"], rows["time_s"], reach, color=color, capsize=2, linewidth=1, label=model)
        fill = np.where(rows["fits"], color, "white")
        ax.scatter(rows["place"], rows["time_s"], c=fill, edgecolors=color, s=34, zorder=3)
    ax.set_xticks(range(len(gpus)), [f"{gpu}\n{year}" for gpu, year in gpus.items()], fontsize=8)
    ax.set(yscale="log", xlabel="GPU, by year", ylabel="projected time of one generation (s)")
    legend_beside(ax, title="hollow: does not fit", title_fontsize=8)
    return ax


def what_bounds(table: pd.DataFrame, *, label: str, ax: Axes | None = None) -> Axes:
    """Shares of projected time by what bounds it, one bar per row; the projected total stands at its end.

    Columns: ``label``, which names the bars, ``time_s``, and shares in percent named as `look.BOUND_COLORS`.
    """
    ax = axes(ax, width=6.8, height=0.32 * len(table) + 1.2)
    shares = table.set_index(label)[[name for name in BOUND_COLORS if name in table]].fillna(0)
    totals = [f"{amount(time_s)} s" for time_s in table["time_s"]]
    stacked_shares(shares, colors=BOUND_COLORS, totals=totals, kinds=["projected"] * len(table), ax=ax)
    ax.set_xlabel("share of projected time (%)")
    ax.tick_params(axis="y", labelsize=9)
    return ax


def speed_up(table: pd.DataFrame, *, y: str, unit: str, ax: Axes | None = None) -> Axes:
    """A projected number over the number of GPUs, one line per method.

    Columns: ``gpus, method, y`` (in ``unit``); ``low`` and ``high`` are drawn as a band where they are there.
    """
    table = table.sort_values("gpus", kind="stable")
    ax = axes(ax, width=6.8, height=4.2)
    curves(table, x="gpus", y=y, hue="method", xlabel="GPUs", ylabel=unit, base=None, ax=ax)
    for index, (_, rows) in enumerate(table.groupby("method", sort=False)):
        if "low" in rows:
            ax.fill_between(rows["gpus"], rows["low"], rows["high"], color=PALETTE[index % len(PALETTE)], alpha=0.12)
    ax.set_xticks(sorted(table["gpus"].unique()))
    sns.despine(ax=ax)
    return ax


def ladder_bars(
    data: pd.DataFrame, *, unit: str, scale: float = 1.0, limit: float | None = None, ax: Axes | None = None
) -> Axes:
    """Time of each rung, projected and measured as bars, published as diamonds; a rung without a bar says so.

    Columns: ``rung`` (in order of appearance, from the top), ``value`` (s; times ``scale`` it is in ``unit``),
    ``time_kind``, ``machine``, and maybe ``spread`` (IQR / median), of which half is drawn to either side. ``limit``:
    seconds below which the data sheet's bandwidth lets no unquantized rung go.
    """
    order = data["rung"].unique().tolist()
    data = data.assign(row=data["rung"].map(order.index), value=scale * data["value"].astype(float))
    bars, said = (data[(data["time_kind"] == "published") == published] for published in (False, True))
    makers = list(bars.groupby(["time_kind", "machine"], sort=False))
    ax = axes(ax, height=1.4 + 0.42 * len(order) * max(1, len(makers)) ** 0.5)
    high = 0.8 / max(1, len(makers))
    for index, ((kind, machine), rows) in enumerate(makers):
        where, value = rows["row"] + (index + 0.5) * high - 0.4, rows["value"]
        look: dict[str, Any] = {"color": PALETTE[index], "hatch": HATCH[kind], "label": f"{kind}, {machine}"}
        if kind == "measured" and "spread" in rows:
            look |= {"xerr": value * rows["spread"].fillna(0).astype(float) / 2, "error_kw": {"lw": 1}}
        ax.barh(where, value.fillna(0), high, edgecolor="white", lw=0.5, **look)
        for y, each in zip(where, value, strict=True):
            text = amount(each) if each == each else "not in a projection"
            note(ax, 0.012, y, text, transform=ax.get_yaxis_transform())
    if len(said):
        look = {"marker": "D", "s": 36, "color": "black", "zorder": 3}
        ax.scatter(said["value"], said["row"], label="published by others", **look)
    if limit is not None:
        ax.axvline(scale * limit, color="black", lw=1.2, ls="--", label="weights and cache read once (guide)")
    rows_from_top(ax, order)
    ax.margins(x=0.12)
    ax.set(xlabel=unit, xlim=(0, None))
    legend_below(ax, ncols=2)
    return ax


def ladder_panels(
    data: pd.DataFrame, titles: Mapping[str, str], *, unit: str, scale: float = 1.0,
    limits: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """A panel of `ladder_bars` below the other for each model of `titles`; `limits` are seconds by model."""
    parts = [data[data["model"] == name] for name in titles]
    heights = [1.2 + 0.32 * part["rung"].nunique() for part in parts]
    size = {"figsize": (6.6, sum(heights)), "layout": "constrained"}
    figure, panels = plt.subplots(len(parts), 1, height_ratios=heights, squeeze=False, **size)
    figure.get_layout_engine().set(h_pad=0.08)
    for ax, part, (name, title) in zip(panels[:, 0], parts, titles.items(), strict=True):
        ladder_bars(part, unit=unit, scale=scale, limit=(limits or {}).get(name), ax=ax).set_title(title, fontsize=10)
    return figure


def plot_predicted_against_measured(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Predicted against measured seconds of a validated table, on one GPU and on several, both axes logarithmic.

    The line is perfect agreement; the band holds the middle 80 % of all errors.
    """
    ax = axes(ax, width=7.0, height=6.0)
    shown = table.assign(on=np.where(table["gpus"] > 1, "several GPUs", "one GPU"))
    _scatter(shown, x="latency_s", y="predicted_s", hue="model", style="on", ax=ax)
    overall = summary(table).iloc[-1]
    ends = _diagonal(table["latency_s"], label="predicted = measured", ax=ax)
    low, high = (1 + overall[name] / 100 for name in ("low_latency", "high_latency"))
    ax.fill_between(ends, low * ends, high * ends, color="0.5", alpha=0.15, label="middle 80 % of errors")
    ax.set(xlabel="measured by others (s)", ylabel="projected (s)")
    ax.set_title(f"{len(table)} measurements, median absolute error {overall['mdape_latency']:.1f} %")
    legend_beside(ax)
    return ax


def plot_measured_against_counted(
    data: pd.DataFrame, *, counted: str, measured: str, hue: str, style: str, unit: str, ax: Axes | None = None
) -> Axes:
    """Measured against counted amounts (columns, positive, in ``unit``), logarithmic, with the line of agreement."""
    ax = axes(ax, width=7.0, height=5.0)
    _scatter(data, x=counted, y=measured, hue=hue, style=style, ax=ax)
    ends = _diagonal(data[[counted, measured]].astype(float).stack(), label="measured = counted", ax=ax)
    ax.set(ylim=ends, xlabel=f"counted ({unit})", ylabel=f"measured ({unit})")
    legend_beside(ax)
    return ax


def save_predicted_against_measured(table: pd.DataFrame, path: str | Path) -> Path:
    """The path of the figure, as PNG or SVG by suffix; the same table gives the same bytes."""
    figure, ax = plt.subplots(figsize=(7.0, 6.0), layout="constrained")
    plot_predicted_against_measured(table, ax=ax)
    return write_figure(figure, path)


def _scatter(data: pd.DataFrame, *, ax: Axes, **columns: str) -> None:
    sns.scatterplot(data, palette="colorblind", s=36, alpha=0.8, ax=ax, **columns)


def _diagonal(values: pd.Series, *, label: str, ax: Axes) -> np.ndarray:
    """Draw the line of perfect agreement on logarithmic axes, and return its ends."""
    ends = np.array([values.min() / 1.5, values.max() * 1.5])
    ax.plot(ends, ends, color="0.3", linewidth=1, label=label, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=ends)
    return ends
