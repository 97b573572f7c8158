"""The look of all figures: colours, hatches, axes, rows and legends, and what a table must hold to be drawn."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.legend import Legend
from matplotlib.text import Text

from mmchar.study.experiments import FAMILIES

_PALETTES = {name: sns.color_palette(name, 10).as_hex() for name in ("colorblind", "dark", "bright")}
PALETTE = _PALETTES["colorblind"]
FAMILY_COLORS = {name: _PALETTES[palette][number] for name, (_, palette, number) in FAMILIES.items()}
KIND_COLORS = {
    "self": PALETTE[0],
    "spatial": PALETTE[0],
    "causal": PALETTE[7],
    "cross": PALETTE[1],
    "joint": PALETTE[4],
    "temporal": PALETTE[3],
}
BOUND_COLORS = {"compute": PALETTE[0], "memory": PALETTE[1], "launch": PALETTE[7], "communication": PALETTE[6]}
PART_COLORS = {
    "encoder": PALETTE[2],
    "adaptor": PALETTE[1],
    "cross-attention layers": PALETTE[4],
    "language model": PALETTE[0],
    "speech model": PALETTE[5],
    "denoiser": PALETTE[3],
    "decoder": PALETTE[9],
    "outside the networks": PALETTE[7],
}
HATCH = {"projected": "", "measured": "///"}


def style() -> None:
    """The look of all figures; notebooks call it once."""
    sns.set_theme(style="whitegrid", context="notebook", rc={"figure.dpi": 110, "axes.titlesize": "medium"})
    backend = matplotlib.get_backend(auto_select=False)
    if backend and backend.endswith("inline"):  # it shows figures after a cell; pyplot would draw them there once more
        plt.switch_backend(backend)
        plt.uninstall_repl_displayhook()


def axes(ax: Axes | None, *, width: float = 8.0, height: float = 4.5) -> Axes:
    """The axes given, or new ones."""
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def rows_from_top(ax: Axes, labels: Sequence[str], *, lines: bool = False, **look: Any) -> None:
    """One row of the y axis per label, the first at the top, on a line or not."""
    ax.set_yticks(range(len(labels)), labels, **look)
    ax.set(ylim=(len(labels) - 0.5, -0.5), ylabel="")
    ax.grid(axis="y", visible=lines)


def rows_under_names(ax: Axes, labels: Sequence[str], **look: Any) -> None:
    """As `rows_from_top`, with each label above its row instead of beside it: long labels in a narrow figure."""
    ax.set_yticks([row - 0.42 for row in range(len(labels))], labels, ha="left", va="center", **look)
    ax.tick_params(axis="y", pad=-4, length=0)
    ax.set(ylim=(len(labels) - 0.6, -0.75), ylabel="")
    ax.grid(axis="y", visible=False)


def label_room(names: "Iterable[object]", letters: int = 30) -> float:
    """Inches to add to a figure's width for row labels longer than what its width is meant for."""
    return 0.09 * max(0, max((len(str(name)) for name in names), default=0) - letters)


def amount(value: float) -> str:
    """Three significant figures, and all digits of thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def note(ax: Axes, x: float, y: float, text: str, *, behind: str = "white", **look: Any) -> Text:
    """A small text that stays legible on lines and hatches."""
    box = {"facecolor": behind, "edgecolor": "none", "pad": 1.0}
    return ax.text(x, y, text, **{"va": "center", "fontsize": 8, "bbox": box, **look})


def note_above(ax: Axes, x: float, text: str) -> None:
    """A small text above the axes."""
    ax.text(x, 1.01, text, ha="center", va="bottom", fontsize=8, transform=ax.get_xaxis_transform())


def require(data: pd.DataFrame, *columns: str) -> None:
    """Refuse a table that a figure cannot be drawn from."""
    missing = [name for name in columns if name not in data.columns]
    if missing:
        have = ", ".join(map(str, data.columns))
        raise ValueError(f"figure needs column {', '.join(missing)}; the table has {have}")
    if data.empty:
        raise ValueError("nothing to draw: the table has no rows; choose at least one model, stage or category")


def by_family(data: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Label, colour and rows of each family, in the fixed order of families."""
    family = data["family"].astype(str)
    unknown = set(family) - set(FAMILY_COLORS)
    if unknown:
        raise ValueError(f"no colour for family {', '.join(sorted(unknown))}; add it to FAMILIES in experiments.py")
    found = [(name, data[family == name]) for name in FAMILY_COLORS]
    return [(name.replace("_", " "), FAMILY_COLORS[name], rows) for name, rows in found if len(rows)]


def legend_beside(ax: Axes, **options: Any) -> None:
    """A legend to the right of the axes, its marks of one size."""
    _even(ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, **options))


def legend_below(ax: Axes, *, ncols: int, **options: Any) -> None:
    """A legend under the x axis's label, at the same distance whatever the height of the axes."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.45, 0.0), "borderaxespad": 5.5}
    _even(ax.legend(ncols=ncols, frameon=False, fontsize=8, **place, **options))


def _even(legend: Legend) -> None:
    for mark in legend.findobj(PathCollection):
        mark.set(sizes=[40])
