"""How far a projection may be off: as far as projections of its kind were off from what others measured."""

from typing import Any

import pandas as pd

from mmchar.projection.columns import denoising
from mmchar.provenance import REFERENCE

ON_ONE, ON_SEVERAL = "diffusion transformer on one GPU", "diffusion transformer on several GPUs"
U_NET = "U-Net"
U_NET_IMAGE, U_NET_VIDEO = "U-Net image", "U-Net video"
TRANSFORMER, AUTOREGRESSIVE, DECODER, OTHER = "diffusion transformer", "autoregressive", "image decoder", "other"
CONVOLUTIONAL = 0.05  # share of a denoiser's FLOPs above which it is no transformer


def time_range(table: pd.DataFrame, time_s: float) -> dict[str, Any]:
    """``low_s`` and ``high_s`` around the projected time of a table, and the ``kind`` whose errors they are of.

    80 % of the validated configurations of the kind were measured within the range. Kinds that nobody measured for us
    (autoregressive models, cascades with both kinds of denoiser) get the widest that we know.
    """
    errors = projection_errors()
    errors = errors[errors["quantity"] == "latency"].set_index("kind")
    kind = kind_of(table)
    known = errors.loc[kind] if kind in errors.index else errors.iloc[(errors["high"] - errors["low"]).argmax()]
    said = str(known.name) if kind in errors.index else f"{known.name}, the widest, as nothing like it was measured"
    return {"low_s": time_s / (1 + known["high"]), "high_s": time_s / (1 + known["low"]), "kind": said}


def kind_of(table: pd.DataFrame) -> str:
    """The kind of projection whose errors say how far this one may be off; "" for one that was never validated."""
    work = (table["flop"] * table["repeats"])[denoising(table)]
    if not work.sum():
        return ""
    if work[table["category"] == "Convolution"].sum() > CONVOLUTIONAL * work.sum():
        return U_NET
    return ON_SEVERAL if table.attrs.get("gpus", 1) > 1 else ON_ONE


def projection_errors() -> pd.DataFrame:
    """Errors of projections, as fractions, by kind and quantity, each with what it was compared with."""
    return pd.read_csv(REFERENCE / "projection_errors.csv")


def family_of(table: pd.DataFrame, part: str = "whole") -> str:
    """Which family of models, or of parts of them, a counted table is of: those that hold the same kernels.

    A denoiser says it, by how much of it is convolution and by whether there are frames; else a decode stage. A
    decoder of images or video alone is a family of its own; of another part alone, the part is.
    """
    if part.startswith(("decode_image", "decode_video")):
        return DECODER
    own = denoising(table)
    work = (table["flop"] * table["repeats"])[own]
    if part not in ("whole", "denoising loop") and not part.startswith(("denoise", "decode", "prefill")):
        return part
    if work.sum() and not part.startswith(("decode", "prefill")):
        if work[table["category"] == "Convolution"].sum() <= CONVOLUTIONAL * work.sum():
            return TRANSFORMER
        frames = (table.attrs.get("request") or {}).get("frames") or 1
        return U_NET_VIDEO if frames > 1 else U_NET_IMAGE
    stages = table["stage"].astype(str)
    return AUTOREGRESSIVE if stages.str.startswith("decode").any() and not own.any() else OTHER
