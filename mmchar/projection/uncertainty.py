"""How far a projection may be off: as far as projections of its kind were off from what others measured.

A kind is a family of models, an execution, a GPU, and whether there are several of it. Each was predicted by a fit that
had not seen its model; kinds on any GPU by one that had not seen the GPU. Where too little was measured of a kind, the
widest range of those that are near is taken, and says so.
"""

from functools import cache
from typing import Any

import pandas as pd

from mmchar.projection.columns import denoising
from mmchar.projection.data_sheets import list_gpus
from mmchar.provenance import REFERENCE

U_NET_IMAGE, U_NET_VIDEO = "U-Net image", "U-Net video"
TRANSFORMER, AUTOREGRESSIVE, DECODER, OTHER = "diffusion transformer", "autoregressive", "image decoder", "other"
CONVOLUTIONAL = 0.05  # share of a denoiser's FLOPs above which it is no transformer
ENOUGH = 5  # measurements, of which the 10th and 90th percentile say something
ANY = "any"
KIND = ("family", "execution", "gpu", "gpus")


def time_range(table: pd.DataFrame, time_s: float) -> dict[str, Any]:
    """``low_s`` and ``high_s`` around the time of a projected table, the ``kind`` whose errors they are of, and why.

    80 % of the ``n`` validated configurations of the kind were measured within the range. ``why`` says what was not
    measured where the kind is wider than the table's own. A GPU of a vendor of which nothing was measured has the range
    of everything.
    """
    several = table.attrs.get("gpus", 1) > 1
    execution, gpu = (str(table.attrs.get(name, ANY)) for name in ("execution", "gpu"))
    if vendor := _unmeasured_vendor(gpu):
        found = _of_all(
            projection_errors(), f"nothing on a GPU of {vendor} was measured, kernels as NVIDIA's are assumed"
        )
    else:
        found = error_range(family_of(table), execution=execution, gpu=gpu, several=several)
    low, high = found.pop("low"), found.pop("high")
    return {"low_s": time_s / (1 + high), "high_s": time_s / (1 + low), **found}


def error_range(family: str, *, execution: str, gpu: str, several: bool = False) -> dict[str, Any]:
    """Errors (predicted / measured - 1) that 80 % of a kind lie between, and 0: ``low, high, n, kind, why``."""
    errors = projection_errors()
    errors = errors[(errors["quantity"] == "latency") & (errors["n"] >= ENOUGH)]
    gpus = "several" if several else "one"
    for mode in (execution, ANY):
        same = errors[(errors[list(KIND)] == pd.Series((family, mode, gpu, gpus), KIND)).all(axis=1)]
        if len(same):
            most = same.loc[same["n"].idxmax()]
            why = "" if mode == execution else f"too little of {family} was measured in {execution} mode on {gpu}"
            kind = f"{family}, {mode} execution, {gpus} {gpu}"
            return _said(most["low"], most["high"], int(most["n"]), kind, why)
    return _widest(errors, family, f"in {execution} mode on {gpus} {gpu}")


def _widest(errors: pd.DataFrame, family: str, asked: str) -> dict[str, Any]:
    """The range that holds those of all kinds of the family, and of any family on a GPU that no fit had seen."""
    known = (errors["family"] == family).any()
    near = errors[errors["family"].isin((family, ANY))] if known else errors
    kind = f"all of {family}, and of all models on GPUs that no fit had seen" if known else "all that was measured"
    why = f"too little of {family} was measured {asked if known else 'anywhere'}: the widest range that we know"
    return _said(near["low"].min(), near["high"].max(), int(near["n"].sum()), kind, why)


def _of_all(errors: pd.DataFrame, why: str) -> dict[str, Any]:
    near = errors[(errors["quantity"] == "latency") & (errors["n"] >= ENOUGH)]
    return _said(near["low"].min(), near["high"].max(), int(near["n"].sum()), "all that was measured", why)


def _unmeasured_vendor(gpu: str) -> str:
    """The vendor of a GPU of ours where none of its GPUs was measured, else ""."""
    vendors = list_gpus().set_index("name")["vendor"]
    return str(vendors.get(gpu, "")).replace("NVIDIA", "")


def _said(low: float, high: float, n: int, kind: str, why: str) -> dict[str, Any]:
    return {"low": min(float(low), 0.0), "high": max(float(high), 0.0), "n": n, "kind": kind, "why": why}


def family_of(table: pd.DataFrame, part: str = "whole") -> str:
    """Which family of models, or of parts of them, a counted table is of: those that hold the same kernels.

    A denoiser says it, by how much of it is convolution and by whether there are frames; else a decode stage. A
    decoder of images or video alone is a family of its own; of another part alone, the part is.
    """
    if part.startswith(("decode_image", "decode_video")):
        return DECODER
    if part not in ("whole", "denoising loop") and not part.startswith(("denoise", "decode", "prefill")):
        return part
    own = denoising(table)
    work = (table["flop"] * table["repeats"])[own]
    if work.sum() and not part.startswith(("decode", "prefill")):
        if work[table["category"] == "Convolution"].sum() <= CONVOLUTIONAL * work.sum():
            return TRANSFORMER
        frames = (table.attrs.get("request") or {}).get("frames") or 1
        return U_NET_VIDEO if frames > 1 else U_NET_IMAGE
    return AUTOREGRESSIVE if table["stage"].astype(str).str.startswith("decode").any() and not own.any() else OTHER


@cache
def projection_errors() -> pd.DataFrame:
    """Errors of projections, as fractions, by kind and quantity: what was left out of the fit, and what was measured.

    ``mmchar validate --published --write-errors FILE`` makes them.
    """
    return pd.read_csv(REFERENCE / "projection_errors.csv", keep_default_na=False)
