"""Attention over frames beside attention over the positions of a frame: which models have it, and what it costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mmchar.models.loading import get_spec, zoo_names
from mmchar.study.claims import attention_block

if TYPE_CHECKING:
    from mmchar.measuring.timing import Measurement
    from mmchar.models.loading import Model

# Classes that attend over frames only, beside attending over the positions of a frame.
OVER_TIME = frozenset(
    ["UNet3DConditionModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel", "LatteTransformer3DModel", "CViViT"]
)
_SHAPE = ("batch", "heads", "q_len", "kv_len", "head_dim")


def with_temporal_attention(names: Sequence[str]) -> list[str]:
    """Those of the models that have attention over frames only, beside one over the positions of a frame.

    Raises
    ------
    ValueError
        None of them has; with those of the zoo that have.
    """
    found = [name for name in names if _has_temporal_attention(name)]
    if not found:
        able = ", ".join(filter(_has_temporal_attention, zoo_names()))
        raise ValueError(f"no temporal attention in {', '.join(names)}; choose among {able}")
    return found


def _has_temporal_attention(name: str) -> bool:
    return any(part.cls in OVER_TIME for part in get_spec(name).components.values())


def temporal_readings(timed: pd.DataFrame) -> pd.DataFrame:
    """Share of temporal attention in percent of temporal and spatial attention time, by what is called attention.

    ``core``: the attention operator; ``core, cross too``: cross attention beside spatial; ``core and copies``: with the
    layout copies around a transformer; ``block``: with the projections; ``module``: the whole transformer, with its
    norms and feed-forward (and, of the spatial one, its cross attention).

    Parameters
    ----------
    timed : DataFrame
        Rows of one model with ``time_s``, projected or measured.

    Returns
    -------
    DataFrame
        One row per reading, named by the index: ``share`` (%) and ``total_s``, the seconds that it is a share of.
    """
    module, kind = timed["module"].astype(str), timed["attention"].astype(str)
    over_time = module.str.contains(r"temp_attentions|transformer_in|temporal_(?:transformer_)?blocks|motion_modules")
    beside = timed["stage"].isin(timed.loc[kind == "temporal", "stage"])  # a prior's blocks are not over space
    over_space = module.str.contains(r"attentions\.|spatial_blocks") & ~over_time
    over_space |= module.str.startswith("transformer_blocks.") & beside
    temporal, spatial, moved = kind == "temporal", kind == "spatial", timed["category"] == "Data movement"
    readings = {
        "core": (temporal, spatial),
        "core, cross too": (temporal, spatial | (kind == "cross") & over_space),
        "core and copies": (temporal | moved & over_time, spatial | moved & over_space),
        "block": (attention_block(timed, "temporal"), attention_block(timed, "spatial")),
        "module": (over_time, over_space),
    }
    time_s = timed["time_s"] * timed["repeats"]
    parts = {name: (time_s[rows].sum(), time_s[rows | other].sum()) for name, (rows, other) in readings.items()}
    found = pd.DataFrame(parts, index=["temporal_s", "total_s"]).T
    return pd.DataFrame({"share": 100 * found["temporal_s"] / found["total_s"], "total_s": found["total_s"]})


def measure_one_stage(model: "Model", stage: Any, *, attention: str, samples: int = 3) -> pd.DataFrame:
    """The operator rows of one stage of a model on a real device, with measured time (seconds of one execution)."""
    from mmchar.measuring.optimization.backends import attention_backend
    from mmchar.measuring.stage_runs import measure_stage
    from mmchar.measuring.target import Settings

    with attention_backend(attention):
        table, facts = measure_stage(model, stage, Settings(samples, 1, attention))
    table = table[table["module_type"] != ""].drop(columns="ran")  # without what no operator of the model explains
    table.attrs = {"median_s": facts["median_s"], "samples": facts["samples"], "attention": attention}
    return table


def measure_cores(sites: pd.DataFrame, *, samples: int = 3) -> pd.DataFrame:
    """Attention cores of these shapes measured on this CPU in float32, on random numbers, one call each.

    Parameters
    ----------
    sites : DataFrame
        Columns ``batch``, ``heads``, ``q_len``, ``kv_len`` and ``head_dim``.
    samples : int
        Timed calls, after one that is not.

    Returns
    -------
    DataFrame
        With ``eager_s`` and ``fused_s``, medians in seconds of one call, ``copy_s``, of copying q to the layout of the
        other axis (as pseudo-3D models do around temporal attention), and ``spread``, the largest IQR / median.
    """
    rows = [_measure_core(shape, samples) for shape in sites[list(_SHAPE)].itertuples(index=False, name=None)]
    eager, fused, copy = zip(*rows, strict=True)
    return sites.assign(
        eager_s=[one.median_s for one in eager],
        fused_s=[one.median_s for one in fused],
        copy_s=[one.median_s for one in copy],
        spread=[max(one.spread for one in row) for row in rows],
        time_kind="measured",
    )


def _measure_core(shape: tuple[int, ...], samples: int) -> "list[Measurement]":
    """Eager attention, fused attention, and the copy of q."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    from mmchar.measuring.optimization.backends import attention_backend
    from mmchar.measuring.timing import measure_time

    batch, heads, q_len, kv_len, head_dim = shape
    q = torch.randn(batch, heads, q_len, head_dim)
    k, v = (torch.randn(batch, heads, kv_len, head_dim) for _ in range(2))
    tokens = torch.randn(batch, q_len, heads * head_dim)  # [positions, frames, width] -> [frames, positions, width]
    found = []
    for kernel in ("eager", "flash"):
        with attention_backend(kernel):
            found.append(measure_time(lambda: lambda: attend(q, k, v), samples=samples, label=kernel))
    copy = measure_time(lambda: lambda: tokens.transpose(0, 1).contiguous(), samples=samples, label="copy")
    return [*found, copy]
