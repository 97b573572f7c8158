"""One function per figure: a tidy table in, axes out. Nothing is computed that is not in the table."""

from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from mmchar.study.look import (
    CATEGORY_COLORS,
    HATCH,
    KIND_COLORS,
    PALETTE,
    axes,
    by_family,
    equal_markers,
    legend_below,
    legend_beside,
    require,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "KIND_COLORS", "plt", "style",  # for notebooks, which take them from here
    "intensity", "memory_fit", "memory_timeline", "operator_breakdown", "roofline", "sensitivity", "size_and_compute",
]  # fmt: skip


def operator_breakdown(data: "pd.DataFrame", *, label: str, unit: str = "s", ax: "Axes | None" = None) -> "Axes":
    """Share of each operator category, one stacked bar per label, with its absolute total at the end.

    Parameters
    ----------
    data : DataFrame
        Columns ``label`` (what a bar stands for), ``category``, ``value`` and ``time_kind``.
    label : str
        Name of the column that bars stand for; bars keep its order of appearance, from the top.
    unit : str
        Unit of ``value``.
    """
    require(data, label, "category", "value", "time_kind")
    order: list = list(dict.fromkeys(data[label]))[::-1]
    wide = (
        data.pivot_table(index=label, columns="category", values="value", aggfunc="sum", observed=True)
        .loc[order]
        .fillna(0.0)
    )
    kinds = data.drop_duplicates(label).set_index(label)["time_kind"]
    total = wide.sum(axis=1)
    height = 1.2 + 0.36 * len(order)
    ax = axes(ax, height=height)
    left = 0.0 * total
    shown = [name for name in CATEGORY_COLORS if name in wide]
    for category in shown:
        share, color = 100 * wide[category] / total, CATEGORY_COLORS[category]
        bars = ax.barh(order, share, left=left, color=color, edgecolor="white", lw=0.5)
        for bar, name in zip(bars, order, strict=True):
            bar.set_hatch(HATCH.get(kinds[name], ""))
        ink = "black" if category in ("Elementwise", "Idle") else "white"
        behind = {"facecolor": color, "edgecolor": "none", "pad": 1.0}  # keeps a number legible on a hatch
        for name, part, start in zip(order, share, left, strict=True):
            if part >= 4:
                text = ax.text(start + part / 2, name, f"{part:.0f}", color=ink, fontsize=8, bbox=behind)
                text.set(ha="center", va="center")
        left = left + share
    for name in order:
        amount = f"{total[name]:,.0f}" if total[name] >= 1000 else f"{total[name]:.3g}"
        ax.text(101, name, f"{amount} {unit}", va="center", fontsize=8)
    ax.margins(y=0.02)
    ax.set(xlim=(0, 122), xlabel="share of the total (%)", ylabel="")
    ax.set_xticks(range(0, 101, 20))
    ax.grid(axis="y", visible=False)
    handles = [Patch(color=CATEGORY_COLORS[name], label=name) for name in shown]
    legend_below(ax, ncols=4, handles=handles)
    return ax


def memory_timeline(data: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Activation memory while one generation runs, call by call, one colour per stage; above it what eager would add.

    Parameters
    ----------
    data : DataFrame
        One row per call site in the order of execution: ``stage``, ``live_bytes`` (activations, fused attention) and
        ``live_eager_bytes`` (the same with attention that writes its similarity matrix).
    """
    require(data, "stage", "live_bytes", "live_eager_bytes")
    data = data.reset_index(drop=True)
    ax = axes(ax, height=4.0)
    eager = data["live_eager_bytes"] / 1e9
    ax.fill_between(
        data.index, eager, color="0.6", step="mid", lw=0.8, label=f"with eager attention (up to {eager.max():.3g} GB)"
    )
    for number, stage in enumerate(dict.fromkeys(data["stage"])):
        live = (data["live_bytes"] / 1e9).where(data["stage"] == stage, 0.0)
        color, label = PALETTE[number % len(PALETTE)], f"{stage} (up to {live.max():.3g} GB)"
        ax.fill_between(data.index, live, color=color, label=label, step="mid", lw=0)
    ax.set(xlabel="operator calls in order, of repeated steps one", ylabel="activation memory (GB)", ylim=(0, None))
    ax.set_xlim(0, max(len(data) - 1, 1))
    legend_below(ax, ncols=2)
    return ax


def size_and_compute(data: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """FLOP of one generation over parameters, one point per model, coloured by family.

    Parameters
    ----------
    data : DataFrame
        ``model``, ``family``, ``params`` (number) and ``flop`` (of one generation).
    """
    require(data, "model", "family", "params", "flop")
    ax = axes(ax, height=4.8)
    for label, color, rows in by_family(data):
        ax.scatter(rows["params"], rows["flop"], s=60, color=color, label=label, zorder=3)
    for number, row in enumerate(data.sort_values("flop").itertuples()):
        side, shift = ("right", -7) if number % 2 else ("left", 7)  # neighbours keep clear of each other
        place = (row.params, row.flop)
        ax.annotate(row.model, place, (shift, -3), textcoords="offset points", fontsize=8, ha=side)
    ax.set(xscale="log", yscale="log", xlabel="parameters of all components", ylabel="FLOP of one generation")
    ax.set_xlim(data["params"].min() / 4, data["params"].max() * 4)
    legend_beside(ax)
    return ax


def intensity(data: "pd.DataFrame", *, ridge: float, gpu: str, ax: "Axes | None" = None) -> "Axes":
    """Arithmetic intensity of every stage, one line per model; a diamond is the whole generation.

    Parameters
    ----------
    data : DataFrame
        ``model``, ``family``, ``stage`` (``"all"`` for the whole generation), ``intensity`` (FLOP per byte moved) and
        ``share`` (percent of the generation's time, the area of a point).
    ridge : float
        FLOP per byte above which the GPU computes longer than it moves bytes, drawn as a line.
    gpu : str
        Whose ridge it is, and whose time decides the areas.
    """
    require(data, "model", "family", "stage", "intensity", "share")
    order = list(dict.fromkeys(data["model"]))
    ax = axes(ax, height=1.4 + 0.36 * len(order))
    for label, color, rows in by_family(data):
        parts, whole = rows[rows["stage"] != "all"], rows[rows["stage"] == "all"]
        place = [order.index(name) for name in parts["model"]]
        ax.scatter(parts["intensity"], place, s=10 + 2 * parts["share"], color=color, alpha=0.6, label=label, zorder=3)
        place = [order.index(name) for name in whole["model"]]
        ax.scatter(whole["intensity"], place, s=45, marker="D", color="white", edgecolor=color, lw=1.8, zorder=4)
    ax.axvline(ridge, color="0.3", ls="--", lw=1)
    ax.text(ridge, -0.9, f"ridge of {gpu}: {ridge:.0f} ", fontsize=8, ha="right", va="center", color="0.3")
    ax.set(xscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylim=(len(order) - 0.4, -1.4))
    ax.set_yticks(range(len(order)), order)
    equal_markers(legend_beside(ax))
    return ax


def roofline(
    data: "pd.DataFrame", *, peak_flop_s: float, bandwidth_bytes_s: float, gpu: str, ax: "Axes | None" = None
) -> "Axes":
    """Attained rate over arithmetic intensity, one point per stage, under the two roofs of a GPU.

    Parameters
    ----------
    data : DataFrame
        ``model``, ``family``, ``stage``, ``intensity`` (FLOP per byte), ``flop_s`` (attained), ``share`` (percent of
        its generation's time; the area of a point) and ``time_kind``.
    peak_flop_s, bandwidth_bytes_s : float
        The roofs: data sheet peak in FLOP/s, bandwidth in bytes/s.
    gpu : str
        Name of the GPU, for the roofs' labels.
    """
    require(data, "model", "family", "stage", "intensity", "flop_s", "share", "time_kind")
    ax = axes(ax, width=9.0, height=5.2)
    ridge = peak_flop_s / bandwidth_bytes_s
    low, high = data["intensity"].min() / 2, max(data["intensity"].max(), ridge) * 25
    ax.plot([low, ridge, high], [low * bandwidth_bytes_s, peak_flop_s, peak_flop_s], color="0.2", lw=1.5, zorder=2)
    roofs = f"{gpu}: {peak_flop_s / 1e12:.0f} TFLOP/s, {bandwidth_bytes_s / 1e12:.2f} TB/s (data sheet)"
    ax.annotate(roofs, (ridge, peak_flop_s), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    for label, color, rows in by_family(data):
        size = 10 + 3 * rows["share"]
        ax.scatter(rows["intensity"], rows["flop_s"], s=size, color=color, alpha=0.65, label=label, zorder=3)
    main = data[data["share"] >= 40].sort_values("flop_s")
    _name_points(ax, main[main["intensity"] >= ridge], column=high / 16, top=peak_flop_s / 1.6)
    for number, row in enumerate(main[main["intensity"] < ridge].itertuples()):
        place = (14, 5) if number % 2 == 0 else (14, -11)
        text = f"{row.model} {row.stage}"
        ax.annotate(text, (row.intensity, row.flop_s), place, textcoords="offset points", fontsize=7)
    kinds = " and ".join(dict.fromkeys(data["time_kind"].astype(str)))
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(data["flop_s"].min() / 2, peak_flop_s * 2.5))
    ax.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel=f"attained FLOP/s ({kinds})")
    equal_markers(legend_beside(ax))
    return ax


def _name_points(ax: "Axes", rows: "pd.DataFrame", *, column: float, top: float) -> None:
    """Names of crowded points of a roofline in a column beside them, from ``top`` (FLOP/s) down, joined by lines."""
    for number, row in enumerate(rows[::-1].itertuples()):
        place = (column, top / 1.38**number)
        line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0.0, 0.5)}
        text = f"{row.model} {row.stage}"
        ax.annotate(text, (row.intensity, row.flop_s), place, fontsize=7, va="center", arrowprops=line, zorder=2)


def memory_fit(data: "pd.DataFrame", *, memory_bytes: float, gpu: str, ax: "Axes | None" = None) -> "Axes":
    """Memory that a generation needs, one line per model: weights, then the peak with fused and with eager attention.

    Parameters
    ----------
    data : DataFrame
        ``model``, ``weights_bytes``, ``peak_bytes`` (weights and most activations, fused attention) and
        ``peak_eager_bytes`` (the same with attention that writes its similarity matrix).
    memory_bytes : float
        What the GPU has, drawn as a line.
    gpu : str
        Its name.
    """
    require(data, "model", "weights_bytes", "peak_bytes", "peak_eager_bytes")
    order = list(data["model"])
    ax = axes(ax, height=1.6 + 0.36 * len(order))
    ax.hlines(order, data["weights_bytes"] / 1e9, data["peak_eager_bytes"] / 1e9, color="0.75", lw=2, zorder=2)
    marks = {"weights_bytes": ("o", PALETTE[0], "weights alone"), "peak_bytes": ("D", PALETTE[2], "peak, flash")}
    marks |= {"peak_eager_bytes": ("|", PALETTE[3], "peak, eager attention")}
    for column, (marker, color, label) in marks.items():
        size = 160 if marker == "|" else 36
        ax.scatter(data[column] / 1e9, order, marker=marker, s=size, color=color, label=label, zorder=3)
    for row in data.itertuples():
        values = f"{row.peak_bytes / 1e9:.3g} | {row.peak_eager_bytes / 1e9:.3g}"
        text = ax.annotate(values, (row.peak_eager_bytes / 1e9, row.model), (9, -3), textcoords="offset points")
        text.set(fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    label = f"memory of {gpu} ({memory_bytes / 1e9:.0f} GB)"
    ax.axvline(memory_bytes / 1e9, color="0.3", ls="--", lw=1, label=label)
    ax.set(xscale="log", xlabel="memory of one generation (GB); at each line: peak flash | peak eager")
    ax.set_xlim(data["weights_bytes"].min() / 2e9, max(data["peak_eager_bytes"].max(), memory_bytes) * 4 / 1e9)
    ax.invert_yaxis()
    legend_below(ax, ncols=2)
    return ax


def sensitivity(data: "pd.DataFrame", *, paper: float, ax: "Axes | None" = None) -> "Axes":
    """A share under several assumptions, one line per model and one mark per assumption, beside the paper's value.

    Parameters
    ----------
    data : DataFrame
        ``model``, ``setting`` (the assumption; the first is drawn as a diamond) and ``share`` (percent of time).
    paper : float
        The paper's value in percent, drawn as a line.
    """
    require(data, "model", "setting", "share")
    order, settings = list(dict.fromkeys(data["model"])), list(dict.fromkeys(data["setting"]))
    ax = axes(ax, height=1.4 + 0.5 * len(order))
    reach = data.groupby("model", sort=False)["share"].agg(["min", "max"])
    ax.hlines(order, reach["min"], reach["max"], color="0.8", lw=2, zorder=2)
    for number, setting in enumerate(settings):
        rows = data[data["setting"] == setting]
        marker, color = ("D", "black") if number == 0 else ("os^vPX<>*"[(number - 1) % 9], PALETTE[(number - 1) % 10])
        where, above = (rows["share"], rows["model"]), 4 - number / 99
        ax.scatter(*where, s=42, marker=marker, color=color, label=setting, zorder=above)
    ax.axvline(paper, color="0.3", ls="--", lw=1, label=f"paper: up to {paper:g} %")
    ax.set(xlabel="share of time (%)", xlim=(0, 100))
    ax.invert_yaxis()
    ax.margins(y=0.15)
    legend_beside(ax)
    return ax
