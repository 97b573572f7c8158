"""Figures of optimization ladders. As in `plots`: a tidy table in, axes out."""

from typing import TYPE_CHECKING

from mmchar.study.look import HATCH, PALETTE, axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def ladder_bars(
    data: "pd.DataFrame", *, unit: str, scale: float = 1.0, limit: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Time of each rung, projected and measured as bars, published as diamonds; a rung without a bar says so.

    Parameters
    ----------
    data : DataFrame
        Columns ``rung``, ``value`` (s), ``time_kind`` and ``machine``; rungs keep their order of appearance, from the
        top. Where ``spread`` (IQR / median) is given, half of it is drawn to either side.
    unit : str
        Unit of the axis, e.g. ``ms/token``.
    scale : float
        What the values are multiplied with to be in it.
    limit : float, optional
        Seconds below which the data sheet's bandwidth lets no unquantized rung go, drawn as a line.
    """
    order = list(dict.fromkeys(data["rung"]))
    bars = data[data["time_kind"] != "published"]
    makers = list(dict.fromkeys(zip(bars["time_kind"], bars["machine"], strict=True)))
    ax = axes(ax, height=1.4 + 0.42 * len(order) * max(1, len(makers)) ** 0.5)
    high = 0.8 / max(1, len(makers))
    for index, (kind, machine) in enumerate(makers):
        rows = bars[(bars["time_kind"] == kind) & (bars["machine"] == machine)]
        where = [order.index(rung) + (index + 0.5) * high - 0.4 for rung in rows["rung"]]
        value = scale * rows["value"].astype(float)
        spread = value * rows["spread"].fillna(0).astype(float) / 2 if "spread" in rows and kind == "measured" else None
        ax.barh(where, value.fillna(0), high, color=PALETTE[index], edgecolor="white", lw=0.5, hatch=HATCH[kind],
                label=f"{kind}, {machine}", xerr=spread, error_kw={"lw": 1})  # fmt: skip
        for y, each in zip(where, value, strict=True):
            text = f"{each:.3g}" if each == each else "not in a projection"
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
            ax.text(0.012, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8, bbox=behind)
    said = data[data["time_kind"] == "published"]
    if len(said):
        at = [order.index(rung) for rung in said["rung"]]
        ax.scatter(scale * said["value"], at, marker="D", s=36, color="black", zorder=3, label="published by others")
    if limit is not None:
        ax.axvline(scale * limit, color="black", lw=1.2, ls="--", label="weights and cache read once (guide)")
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=unit, ylabel="", ylim=(len(order) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.set_xlim(0, None)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.18), frameon=False, fontsize=8, ncols=3)
    return ax
