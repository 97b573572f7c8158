"""How models differ in size, arithmetic and bytes: what limits each on a GPU, and what does not fit."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.roofline import project
from mmchar.study import claims
from mmchar.study.drawing.plots import intensity, memory_fit, roofline
from mmchar.tables.totals import totals
from mmchar.tracing.attention import ITEM_BYTES, use_backend

FEW = ("llama-2-7b", "parti-350m", "stable-diffusion-1.5", "imagen")
# The eight models of arXiv 2312.14385, as the zoo has them, of language models one size each.
OF_PAPER = (
    *("llama-2-7b", "imagen", "stable-diffusion-1.5", "muse-3b", "parti-20b", "emu-like-prod-tti"),
    *("make-a-video", "phenaki-1.8b"),
)
SHOWN = ["model", "family", "params", "flop", "bytes", "intensity", "flop_per_param", "time_s"]


def stage_costs(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """What each stage of each model costs, projected with flash attention.

    Columns: ``model, stage, calls, flop, bytes, time_s, family``, ``intensity`` (FLOP/byte), ``flop_s``, ``share``
    (% of the generation's time), ``gpu``, ``time_kind``.
    """
    parts = []
    for name, table in tables.items():
        timed = project(table, gpu=gpu, attention="flash")
        parts.append(totals(timed, ["model", "stage"]).assign(family=get_spec(name).family))
    out = pd.concat(parts, ignore_index=True)
    out = out.assign(intensity=out["flop"] / out["bytes"], flop_s=out["flop"] / out["time_s"])
    share = 100 * out["time_s"] / out.groupby("model")["time_s"].transform("sum")
    return out.assign(share=share, gpu=gpu, time_kind="projected")


def suite(tables: Mapping[str, pd.DataFrame], stages: pd.DataFrame, *, gpu: str, dtype: str) -> pd.DataFrame:
    """A row per model: its size, what a generation computes and moves, and its memory, from a table of `stage_costs`.

    Columns: ``model, family, year, params, weights_bytes``, ``peak_bytes`` and ``peak_eager_bytes`` (weights and most
    activations, with flash and with eager attention), ``flop, bytes, time_s, gpu, time_kind, dtype``, ``intensity``
    (FLOP/byte), ``flop_per_param``, ``fits``.
    """
    whole = stages.groupby("model", sort=False)[["flop", "bytes", "time_s"]].sum().reset_index()
    rows = [_size(name, table, ITEM_BYTES[dtype]) for name, table in tables.items()]
    out = pd.DataFrame(rows).merge(whole).assign(gpu=gpu, time_kind="projected", dtype=dtype)
    out = out.assign(intensity=out["flop"] / out["bytes"], flop_per_param=out["flop"] / out["params"])
    return out.assign(fits=out["peak_bytes"] <= get_gpu(gpu).memory_bytes)


def _size(name: str, table: pd.DataFrame, item_bytes: int) -> dict[str, object]:
    spec, params = get_spec(name), sum(table.attrs["params"].values())
    weights = params * item_bytes
    row = {"model": name, "family": spec.family, "year": spec.year, "params": params, "weights_bytes": weights}
    kernels = {"peak_bytes": table, "peak_eager_bytes": use_backend(table, "eager")}
    return row | {peak: weights + rows["live_bytes"].max() for peak, rows in kernels.items()}


def published_and_built(tables: Mapping[str, pd.DataFrame], *, tiny: bool = False) -> pd.DataFrame:
    """Parameters of every network, as published and as built.

    Columns: ``model, component, class, published, built, difference %, reason`` (of a difference, from the model's
    file); a number that was not published is missing.
    """
    rows = [
        (name, role, part.cls, part.published_params, table.attrs["params"][role], part.params_reason)
        for name, table in tables.items()
        for role, part in get_spec(name, tiny=tiny).components.items()
    ]
    out = pd.DataFrame(rows, columns=["model", "component", "class", "published", "built", "reason"])
    out["published"] = out["published"].astype(float)
    out.insert(5, "difference %", 100 * (out["built"] / out["published"] - 1))
    return out


def intensities(stages: pd.DataFrame, models: pd.DataFrame, *, gpu: str, dtype: str) -> Axes:
    """Intensity of stages and of whole generations beside the ridge of the GPU, from `stage_costs` and `suite`."""
    ax = intensity(points(stages, models), ridge=get_gpu(gpu).ridge_flop_per_byte(dtype), gpu=gpu)
    ax.set_title(f"FLOP per byte of each stage (area: share of time); diamond: all; {dtype}", fontsize=10)
    return ax


def points(stages: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Stages, and whole generations as the stage ``all``: what `plots.intensity` draws."""
    both = pd.concat([stages, models.assign(stage="all", share=100.0)], ignore_index=True)
    return both[["model", "family", "stage", "intensity", "share", "gpu", "time_kind"]]


def rooflines(stages: pd.DataFrame, *, gpu: str, dtype: str) -> Axes:
    """Projected rate of each stage under the roofs of the GPU's data sheet, from a table of `stage_costs`."""
    sheet = get_gpu(gpu)
    ax = roofline(stages, peak_flop_s=sheet.peak(dtype), bandwidth_bytes_s=sheet.bandwidth_bytes_s, gpu=gpu)
    ax.set_title(f"Roofline of {gpu} in {dtype}: rate of each stage (area: share of time)", fontsize=10)
    return ax


def memories(models: pd.DataFrame, *, gpu: str, dtype: str) -> Axes:
    """Weights and peak memory of one generation beside the GPU's memory, from a table of `suite`."""
    ax = memory_fit(models, memory_bytes=get_gpu(gpu).memory_bytes, gpu=gpu)
    ax.set_title(f"Memory of one generation (counted, {dtype}, default request)", fontsize=10)
    return ax


def above_roofs(stages: pd.DataFrame, *, gpu: str, dtype: str) -> int:
    """How many stages run faster than the data sheet's peak or bandwidth allows, by more than a thousandth."""
    sheet = get_gpu(gpu)
    roof = (stages["intensity"] * sheet.bandwidth_bytes_s).clip(upper=sheet.peak(dtype))
    return int((stages["flop_s"] > 1.001 * roof).sum())


def unexplained(built: pd.DataFrame) -> str:
    """Components whose parameters differ from the published number by over 2 % without a reason, or ``none``."""
    rows = built[(built["difference %"].abs() > 2) & (built["reason"] == "")]
    return ", ".join(rows["component"]) or "none"


def kinds(models: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of image diffusion models, and those of language models, of a table with ``family``."""
    return models[models["family"].isin(claims.DIFFUSION)], models[models["family"] == "autoregressive"]


def decode_intensity(stages: pd.DataFrame) -> pd.Series:
    """FLOP per byte of the decode stages of language models."""
    return stages[(stages["stage"] == "decode") & (stages["family"] == "autoregressive")]["intensity"]


def intensity_ratios(stages: pd.DataFrame, models: pd.DataFrame) -> dict[str, float]:
    """How many times the intensity of image diffusion is that of language models, by what is compared."""
    diffusion, language = kinds(models)
    denoise = kinds(stages)[0]
    most = denoise[denoise["stage"].str.startswith("denoise")]["intensity"].max()
    return {
        "whole generations": diffusion["intensity"].max() / language["intensity"].min(),
        "a denoising stage over a decode stage": most / decode_intensity(stages).min(),
        "a denoising stage over a prefill": most / stages[stages["stage"] == "prefill"]["intensity"].max(),
    }


def learned(stages: pd.DataFrame, models: pd.DataFrame, *, gpu: str, dtype: str) -> str:
    """What came out, as a list in Markdown, from tables of `stage_costs` and `suite`."""
    sheet, named = get_gpu(gpu), models.set_index("model")
    ridge, fed, per_param = sheet.ridge_flop_per_byte(dtype), named["intensity"], named["flop_per_param"]
    above = int((stages["intensity"] > ridge).sum())
    cramped = ", ".join(named.index[~named["fits"]]) or "none"
    eager = ", ".join(named.index[named["fits"] & (named["peak_eager_bytes"] > sheet.memory_bytes)]) or "none"
    return f"""- Intensity of a whole generation goes from {fed.min():.2g} FLOP/byte ({fed.idxmin()}) to {fed.max():.0f}
  ({fed.idxmax()}); {above} of {len(stages)} stages lie above the ridge of {gpu} ({ridge:.0f}).
- Arithmetic does not follow size: FLOP per parameter goes from {per_param.min():,.0f} ({per_param.idxmin()}) to
  {per_param.max():,.0f} ({per_param.idxmax()}).
- Do not fit {gpu} ({sheet.memory_bytes / 1e9:.0f} GB): {cramped}; with eager attention also {eager}."""
