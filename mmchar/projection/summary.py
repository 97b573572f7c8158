"""Totals of a projected generation: seconds by stage, by operator and by what holds them back; joules, bytes held."""

from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import OUTSIDE
from mmchar.projection.columns import holds
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.energy_model import BOUNDS, Power, energy_j
from mmchar.projection.utilization import at_peak_s, mfu
from mmchar.tables.totals import executions
from mmchar.tracing.attention import ITEM_BYTES


def summarize(
    table: pd.DataFrame,
    *,
    gpu: str | Gpu | None = None,
    whole: pd.DataFrame | None = None,
    power: Power | None = None,
) -> dict[str, Any]:
    """Totals of a projected table, in seconds and joules, as ``mmchar project --json`` prints them.

    A stage's ``time_s`` is that of one execution (the mean, where steps differ), and ``total_s`` that of all its
    repeats. Categories and bounds are totals and add up to ``time_s``. ``energy_j`` is that of all GPUs (see
    `energy_model`). ``mfu`` is model FLOPs utilization (`utilization`), of the generation and of each stage; with
    several GPUs it needs the table of the ``whole`` generation, and is None without. ``uncounted`` names the operators
    without a formula, whose arithmetic is not in the times. A table of several GPUs also says how many ``gpus``.
    """
    name = gpu or table.attrs.get("gpu")
    if "bound" not in table.columns or name is None:
        raise ValueError("summarize needs a projected table; call project(table, gpu=…) first, or pass gpu=… as well")
    sheet = get_gpu(name)
    total = (table["time_s"] * table["repeats"]).rename("time_s")
    runs = executions(table)
    stages = total.groupby(table["stage"], observed=True, sort=False).sum()
    categories = total.groupby(table["category"], observed=True).sum().sort_values(ascending=False)
    bounds = total.groupby(table["bound"].astype(str)).sum()
    gpus = table.attrs.get("gpus", 1)
    used = _mfu(table if gpus == 1 else whole, stages, sheet, gpus)
    several = {"gpus": table.attrs["gpus"]} if "gpus" in table.attrs else {}
    return {
        "time_s": float(total.sum()),
        "energy_j": energy_j(table, sheet, power),
        "mfu": used.pop(""),
        "stages": [
            {
                "stage": str(name),
                "repeats": int(runs[name]),
                "time_s": total_s / int(runs[name]),
                "total_s": total_s,
                "mfu": used[str(name)],
            }
            for name, total_s in stages.to_dict().items()
        ],
        "categories": {str(category): float(time_s) for category, time_s in categories.items()},
        "bound": {bound: float(bounds.get(bound, 0.0)) for bound in BOUNDS[1 : 5 if several else 4]},
        "uncounted": sorted(set(table.loc[holds(table, "category", "Uncounted"), "op"].astype(str))),
        **several,
    }


def summarize_memory(table: pd.DataFrame, gpu: Gpu) -> dict[str, Any]:
    """Bytes that one GPU holds: ``weight_bytes``, ``peak_bytes`` (with the most activations alive), and if it ``fits``.

    Weights of all components stay; that they are there at all decides, so ``weight_bytes`` above the GPU's memory
    cannot run without moving them in and out (`planning.memory`). The peak is a little pessimistic: it decodes a batch
    at once, where libraries can decode one image after the other.
    """
    weight_bytes = sum(weights_of(table).values())
    peak_bytes = weight_bytes + int(table["live_bytes"].max())
    return {"weight_bytes": weight_bytes, "peak_bytes": peak_bytes, "fits": peak_bytes <= gpu.memory_bytes}


def weights_of(table: pd.DataFrame) -> dict[str, int]:
    """Bytes of each component's weights; of a table of several GPUs, of one GPU's part."""
    stored, params = table.attrs.get("weight_bytes"), table.attrs["params"]
    if stored is None or "gpus" in table.attrs:
        stored = {role: many * ITEM_BYTES[table.attrs["dtype"]] for role, many in params.items()}
    return {role: int(many) for role, many in {**stored, OUTSIDE: 0}.items()}


def _mfu(whole: pd.DataFrame | None, stages: "pd.Series[float]", gpu: Gpu, gpus: int) -> dict[str, float | None]:
    """MFU by stage, and of all of them as ""; None where it is not known or no time passes."""
    seconds = pd.Series(stages.to_numpy(), index=stages.index.astype(str))
    if whole is None:
        return dict.fromkeys(["", *seconds.index])
    at_peak = at_peak_s(whole, gpu).sum() / gpus
    found = {"": at_peak / seconds.sum() if seconds.sum() else np.nan, **mfu(whole, seconds, gpu, gpus=gpus)}
    return {stage: None if np.isnan(value) else float(value) for stage, value in found.items()}
