"""Which GPU, and how many of them in which way: projections of one generation beside each other, the fastest first."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from mmchar.projection.data_sheets import get_gpu, list_gpus
from mmchar.projection.planning.decoders import Generation
from mmchar.projection.planning.memory import first_to_fit
from mmchar.projection.scaling import on_gpus, on_several
from mmchar.request import Request


def on_every_gpu(
    generation: Generation, *, attention: str = "flash", execution: str = "eager", table: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per GPU that has the numeric type: projected seconds, and the least offloading that leaves room.

    ``table`` is what is projected, by default that of the generation.

    Returns
    -------
    DataFrame
        The columns of `scaling.on_gpus`, ``vendor``, those of `memory.fit_in_memory` (``room`` is ``none``, and the
        others empty, where nothing fits), and ``total_s``, the projected seconds and at least what is moved; sorted by
        it, and what does not fit last.
    """
    table = generation.table if table is None else table
    names = list(list_gpus()["name"])
    found = on_gpus({"": table}, names, attention=attention, execution=execution).drop(columns=["model", "fits"])
    nothing = {"room": "none", "moved_s": np.nan}
    rooms = [next(iter(first_to_fit(generation, get_gpu(name))), nothing) for name in found["gpu"]]
    ways = pd.DataFrame(rooms, index=found.index)
    vendors = [get_gpu(name).vendor for name in found["gpu"]]
    out = found.join(ways).assign(vendor=vendors, total_s=found["time_s"] + ways["moved_s"])
    return out.sort_values(["total_s", "time_s"], ignore_index=True)


def ways_up_to(gpus: int) -> list[dict[str, int]]:
    """Every way to share a generation among 1 to ``gpus`` GPUs that `Degrees` takes: guidance x one other kind."""
    kinds = [{"ulysses": ulysses, "ring": ring} for ulysses in range(1, gpus + 1) for ring in range(1, gpus + 1)]
    kinds += [{kind: many} for kind in ("tensor", "pipefusion", "patch") for many in range(2, gpus + 1)]
    ways = [{"cfg": cfg, **kind} for cfg in (1, 2) for kind in kinds]
    return [way for way in ways if prod(way.values()) <= gpus]


def best_ways(
    name: str,
    request: Request | None,
    gpus: int,
    *,
    gpu: str,
    change: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    **how: Any,
) -> pd.DataFrame:
    """One row per way to use up to ``gpus`` GPUs that the model can be shared in, the fastest first.

    Takes what `scaling.on_several` takes.

    Returns
    -------
    DataFrame
        The columns of `scaling.on_several`; ``efficiency``, the speed-up over one GPU, per GPU; and ``exact``, false
        where GPUs use activations of the step before, which changes what is made. ``attrs["refused"]`` holds the
        reason of each way that the model cannot be shared in.
    """
    if gpus < 1:
        raise ValueError(f"best of {gpus} GPUs; give 1 or more")
    table = on_several(name, request, ways_up_to(gpus), gpu=gpu, change=change, **how)
    able = table["reason"] == ""
    out = table[able].drop(columns="reason").astype({"fits": bool})
    out = out.sort_values(["time_s", "gpus"], ignore_index=True)
    alone_s = out.loc[out["gpus"] == 1, "time_s"].item()
    out["efficiency"] = alone_s / (out["time_s"] * out["gpus"])
    out["exact"] = ~out["way"].str.contains("patch|pipefusion")
    out.attrs["refused"] = table[~able].set_index("way")["reason"].to_dict()
    return out
