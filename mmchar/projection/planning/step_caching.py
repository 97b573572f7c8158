"""Step caching: a denoising step that is like the one before runs a little of its denoiser and reuses the rest.

How many steps are is an input, the hit rate: it depends on weights, prompt and threshold, and so does the quality that
it costs, of which nothing is said here. What remains of a step that hits is exact for the rows of the table, which say
by their module what runs where. The comparison itself (a few passes over the hidden states, and a wait for its result)
is left out.

**Source**: ``first-block`` is diffusers' ``FirstBlockCacheConfig`` (hooks/first_block_cache.py); ``teacache`` is arXiv
2411.19108, section 3.3, whose indicator is the first block's input as its first norm modulates it.
"""

from typing import TYPE_CHECKING

import pandas as pd

from mmchar.projection.columns import denoising

if TYPE_CHECKING:
    from mmchar.models.specs import ModelSpec

KINDS = ("first-block", "teacache")
# Children of a denoiser that hold its blocks. Source: diffusers' hooks/_common.py, _ALL_TRANSFORMER_BLOCK_IDENTIFIERS.
_BLOCK = r"^((?:blocks|transformer_blocks|single_transformer_blocks|layers|visual_transformer_blocks)\.\d+)(?:\.|$)"
_TAKES_TURNS = "temporal_transformer_blocks."  # with spatial ones, on other shapes: diffusers' hook breaks on it


def cache_steps(table: pd.DataFrame, kind: str, *, hit_rate: float) -> pd.DataFrame:
    """The table with ``hit_rate`` of the executions of each denoising stage cached, as a stage ``…_cached`` of its own.

    Parameters
    ----------
    kind : {"first-block", "teacache"}
        What a step that hits still runs, besides all that is outside the blocks: the first block, or only its first
        norm.
    hit_rate : float
        From 0 to below 1; rounded to whole executions, of which the first is never a hit.

    Raises
    ------
    ValueError
        For a denoiser that is no list of blocks, or GPUs that share one by layers or patches.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown step cache {kind!r}; choose one of {', '.join(KINDS)}")
    if isinstance(hit_rate, bool) or not 0 <= hit_rate < 1:
        raise ValueError(f"hit_rate={hit_rate!r} is not a number from 0 to below 1")
    if shared := {"pipefusion", "patch"} & set(table.attrs.get("degrees", ())):
        raise ValueError(f"a step cache goes with ulysses, ring and cfg, not with {shared.pop()}")
    rows = table.astype({"stage": str})
    mine = denoising(rows)
    parts = []
    for _, part in rows.groupby("stage", sort=False):
        parts += _split(part, kind, hit_rate, table.attrs["model"]) if mine[part.index[0]] else [part]
    if not mine.any():
        raise ValueError(f"{table.attrs['model']} denoises nothing, so it has no steps to cache")
    out = pd.concat(parts, ignore_index=True).astype({"stage": "category"})
    out.attrs = {**table.attrs, "step_cache": {"kind": kind, "hit_rate": hit_rate}}
    return out


def check_blocks(spec: "ModelSpec") -> None:
    """Refuse a model whose denoiser is a U-Net, before it is counted."""
    if any("UNet" in part.cls for part in spec.components.values()):
        raise ValueError(_no_blocks(spec.name))


def _no_blocks(model: str) -> str:
    return f"the denoiser of {model} is no list of blocks of one kind, which a step cache could skip"


def _split(rows: pd.DataFrame, kind: str, hit_rate: float, model: str) -> list[pd.DataFrame]:
    """The rows of a stage's executions that run whole, and of those that hit."""
    runs = int(rows["repeats"].max())
    if (rows["step"] > 0).any():
        raise ValueError(f"{model} has denoising steps of different lengths, which no step cache takes")
    modules = rows["module"].astype(str)
    block = modules.str.extract(_BLOCK, expand=False)
    if block.isna().all() or modules.str.startswith(_TAKES_TURNS).any():
        raise ValueError(_no_blocks(model))
    hits = min(round(hit_rate * runs), runs - 1)
    first = block.dropna().iloc[0]
    kept = block.isna() | ((block == first) & _runs_anyway(modules, first, kind))
    stage = rows["stage"].iloc[0]
    cached = rows[kept].assign(stage=f"{stage}_cached", repeats=hits)
    return [rows.assign(repeats=runs - hits), *([cached] if hits else [])]


def _runs_anyway(modules: pd.Series, first: str, kind: str) -> "pd.Series[bool]":
    """Which rows of the first block run in a step that hits."""
    if kind == "first-block":
        return modules.str.startswith(first)
    children = modules.where(modules.str.startswith(f"{first}.")).str.split(".").str[2]
    norms = children[children.str.contains("norm", na=False)]
    return children.eq(norms.iloc[0]) if len(norms) else children.eq("")
