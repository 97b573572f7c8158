"""Attention over frames beside attention over the positions of a frame: which models have it, and what it costs."""

from collections.abc import Sequence

import pandas as pd

from mmchar.locks import measuring
from mmchar.models.loading import get_spec, zoo_names
from mmchar.study.claims import attention_block

# Classes that attend over frames only, beside attending over the positions of a frame.
OVER_TIME = frozenset(
    ["UNet3DConditionModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel", "LatteTransformer3DModel", "CViViT"]
)
_SHAPE = ["batch", "heads", "q_len", "kv_len", "head_dim"]


def with_temporal_attention(names: Sequence[str]) -> list[str]:
    """Those of the models that have attention over frames only, beside one over the positions of a frame.

    Raises a ValueError that names those of the zoo, where none of the models has.
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

    One row per reading, named by the index, of a table of one model with time: ``share`` (%) and ``total_s``, the
    seconds that it is a share of. The readings are ``core``: the attention operator; ``core, cross too``: cross
    attention beside spatial; ``core and copies``: with the layout copies around a transformer; ``block``: with the
    projections; ``module``: the whole transformer, with its norms and feed-forward (and, of the spatial one, its cross
    attention).
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


@measuring("cpu")
def measure_cores(sites: pd.DataFrame, *, samples: int = 3) -> pd.DataFrame:
    """Attention cores of these shapes measured on this CPU in float32, on random numbers, one call each.

    To ``batch, heads, q_len, kv_len, head_dim`` it adds ``eager_s`` and ``fused_s``, medians in seconds of one call,
    ``copy_s``, of copying q to the layout of the other axis (as pseudo-3D models do around temporal attention), and
    ``spread``, the largest IQR / median.
    """
    rows = [_measure_core(*shape, samples=samples) for shape in sites[_SHAPE].itertuples(index=False, name=None)]
    return sites.join(pd.DataFrame(rows, index=sites.index)).assign(time_kind="measured")


def _measure_core(batch: int, heads: int, q_len: int, kv_len: int, head_dim: int, *, samples: int) -> dict[str, float]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    from mmchar.measuring.optimization.backends import attention_backend
    from mmchar.measuring.timing import measure_time

    q = torch.randn(batch, heads, q_len, head_dim)
    k, v = (torch.randn(batch, heads, kv_len, head_dim) for _ in range(2))
    tokens = torch.randn(batch, q_len, heads * head_dim)  # [positions, frames, width] -> [frames, positions, width]
    found = {}
    for name, kernel in (("eager_s", "eager"), ("fused_s", "flash")):
        with attention_backend(kernel):
            found[name] = measure_time(lambda: lambda: attend(q, k, v), samples=samples)
    found["copy_s"] = measure_time(lambda: lambda: tokens.transpose(0, 1).contiguous(), samples=samples)
    return {name: one.median_s for name, one in found.items()} | {"spread": max(one.spread for one in found.values())}
