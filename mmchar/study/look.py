"""The look of all figures: colours, hatches, axes and legends, and what a table must hold to be drawn.

Colours are fixed here: one per operator category, model family and attention kind, from seaborn's palettes of ten hues.
"""

from typing import TYPE_CHECKING, Any

import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

PALETTE, DARK, BRIGHT = (sns.color_palette(name, 10).as_hex() for name in ("colorblind", "dark", "bright"))
CATEGORY_COLORS = {
    "Attention": PALETTE[3],
    "Convolution": PALETTE[0],
    "Linear": PALETTE[1],
    "Normalization": PALETTE[2],
    "Elementwise": PALETTE[8],
    "Embedding": PALETTE[5],
    "Data movement": PALETTE[9],
    "Communication": PALETTE[6],
    "Uncounted": PALETTE[7],
    "Idle": "#d9d9d9",  # no operator: the GPU waits for its host
}
FAMILY_COLORS = {  # families of the same kind share a hue, in different shades
    "latent_diffusion": PALETTE[0],
    "diffusion_transformer": DARK[0],
    "cascaded_diffusion": PALETTE[9],
    "pixel_diffusion": DARK[9],
    "image_embedding_diffusion": BRIGHT[9],
    "audio_diffusion": PALETTE[8],
    "audio_language_diffusion": DARK[8],
    "video_cascade": PALETTE[2],
    "video_diffusion": DARK[2],
    "image_to_video": BRIGHT[2],
    "video_transformer": PALETTE[4],
    "parallel_decode": PALETTE[1],
    "masked_image_transformer": DARK[1],
    "encoder_decoder": PALETTE[3],
    "autoregressive_image": DARK[3],
    "early_fusion": BRIGHT[3],
    "autoregressive": PALETTE[7],
    "vision_language": PALETTE[5],
    "linear_adaptor": DARK[5],
    "vision_cross_attention": BRIGHT[5],
    "any_to_any": PALETTE[6],
    "spoken_answer": DARK[6],
    "speech_translation": BRIGHT[6],
    "zero_shot": DARK[7],
    "retrieval": DARK[4],
    "ranking": BRIGHT[4],
}
KIND_COLORS = {
    "self": PALETTE[0],
    "spatial": PALETTE[0],
    "causal": PALETTE[7],
    "cross": PALETTE[1],
    "joint": PALETTE[4],
    "temporal": PALETTE[3],
}
HATCH = {"projected": "", "measured": "///"}


def style() -> None:
    """The look of all figures; notebooks call it once."""
    sns.set_theme(style="whitegrid", context="notebook", rc={"figure.dpi": 110, "axes.titlesize": "medium"})


def axes(ax: "Axes | None", *, width: float = 8.0, height: float = 4.5) -> "Axes":
    """The axes given, or new ones."""
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def require(data: "pd.DataFrame", *columns: str) -> None:
    """Refuse a table that a figure cannot be drawn from."""
    missing = [name for name in columns if name not in data.columns]
    if missing:
        have = ", ".join(map(str, data.columns))
        raise ValueError(f"figure needs column {', '.join(missing)}; the table has {have}")
    if data.empty:
        raise ValueError("nothing to draw: the table has no rows; choose at least one model, stage or category")


def by_family(data: "pd.DataFrame") -> "list[tuple[str, str, pd.DataFrame]]":
    """Label, colour and rows of each family, in the fixed order of families."""
    family = data["family"].astype(str)
    unknown = set(family) - set(FAMILY_COLORS)
    if unknown:
        raise ValueError(f"no colour for family {', '.join(sorted(unknown))}; add it to FAMILY_COLORS in look.py")
    found = [(name, data[family == name]) for name in FAMILY_COLORS]
    return [(name.replace("_", " "), FAMILY_COLORS[name], rows) for name, rows in found if len(rows)]


def equal_markers(legend: "Legend") -> None:
    """Marks of one size in a legend whose points differ in area."""
    for mark in legend.findobj(PathCollection):
        mark.set(sizes=[40])


def legend_beside(ax: "Axes", **options: Any) -> "Legend":
    """A legend to the right of the axes."""
    return ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, **options)


def legend_below(ax: "Axes", *, ncols: int, **options: Any) -> None:
    """A legend under the x axis's label, at the same distance whatever the height of the axes."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.45, 0.0), "borderaxespad": 5.5}
    ax.legend(ncols=ncols, frameon=False, fontsize=8, **place, **options)
