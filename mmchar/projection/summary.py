"""Totals of a projected generation: seconds by stage, by operator and by what holds them back; joules."""

from typing import Any

import pandas as pd

from mmchar.counting.operator_table import executions
from mmchar.projection.columns import holds
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.energy_model import BOUNDS, energy_j


def summarize(table: pd.DataFrame, *, gpu: str | Gpu | None = None) -> dict[str, Any]:
    """Totals of a projected table, in seconds and joules, as ``mmchar project --json`` prints them.

    A stage's ``time_s`` is that of one execution (the mean, where steps differ), and ``total_s`` that of all its
    repeats. Categories and bounds are totals and add up to ``time_s``. ``energy_j`` is that of all GPUs (see
    `energy_model`). ``uncounted`` names the operators without a formula, whose arithmetic is not in the times. A table
    of several GPUs also says how many ``gpus``.
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
    several = {"gpus": table.attrs["gpus"]} if "gpus" in table.attrs else {}
    return {
        "time_s": float(total.sum()),
        "energy_j": energy_j(table, sheet),
        "stages": [
            {"stage": str(name), "repeats": int(runs[name]), "time_s": total_s / int(runs[name]), "total_s": total_s}
            for name, total_s in stages.to_dict().items()
        ],
        "categories": {str(category): float(time_s) for category, time_s in categories.items()},
        "bound": {bound: float(bounds.get(bound, 0.0)) for bound in BOUNDS[1 : 5 if several else 4]},
        "uncounted": sorted(set(table.loc[holds(table, "category", "Uncounted"), "op"].astype(str))),
        **several,
    }
