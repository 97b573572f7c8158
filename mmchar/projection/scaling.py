"""The same generation on other GPUs, and on more of them: tables of projections for the notebooks."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec
from mmchar.projection.columns import holds
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.memory_fit import summarize_memory
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import project, summarize
from mmchar.projection.uncertainty import time_range
from mmchar.request import Request


def on_gpus(tables: Mapping[str, pd.DataFrame], gpus: Iterable[str], *, attention: str = "flash") -> pd.DataFrame:
    """One row per model and GPU: projected seconds with their range, joules, what bounds most of it, and if it fits.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Counted operator tables by model; a GPU that lacks their numeric type has no row.

    Returns
    -------
    DataFrame
        ``model, gpu, year, time_s, low_s, high_s, energy_j, compute, memory, launch`` (shares of time, in percent),
        ``fits, time_kind``.
    """
    rows = []
    for name, table in tables.items():
        for sheet in map(get_gpu, gpus):
            if table.attrs["dtype"] not in sheet.peak_flop_s:
                continue
            rows.append({"model": name, "gpu": sheet.name, "year": sheet.year, **_projected(table, sheet, attention)})
    return pd.DataFrame(rows)


def on_several(
    name: str,
    request: Request | None,
    ways: Iterable[Mapping[str, int]],
    *,
    gpu: str,
    dtype: str = "bfloat16",
    tiny: bool = False,
) -> pd.DataFrame:
    """One row per way to share a generation among GPUs: projected seconds, joules, and bytes that one GPU sends.

    Parameters
    ----------
    ways : iterable of mapping
        Degrees, as ``{"ulysses": 4, "ring": 2}``; ``{}`` is one GPU.

    Returns
    -------
    DataFrame
        ``model, way, method, gpus, time_s, low_s, high_s, energy_j, sent_bytes`` (of one GPU in the whole generation),
        ``compute, memory, launch, communication`` (shares of time, in percent), ``fits``; ``reason`` where the model
        cannot be shared so, and then no numbers.
    """
    spec, sheet = get_spec(name, tiny=tiny), get_gpu(gpu)

    def again(other: Request | None) -> pd.DataFrame:
        return count(name, other, dtype=dtype, tiny=tiny)

    whole, rows = again(request), []
    for degrees in ways:
        many = Degrees(**degrees)
        label = " x ".join(f"{key} {value}" for key, value in degrees.items() if value > 1) or "one GPU"
        row: dict[str, Any] = {"model": name, "way": label, "method": _method(degrees), "gpus": many.gpus, "reason": ""}
        try:
            table = whole if many.gpus == 1 else parallelize(whole, many, count=again, spec=spec)
        except ValueError as error:
            rows.append(row | {"reason": str(error)})
            continue
        sent = holds(table, "category", "Communication")
        row["sent_bytes"] = int((table["write_bytes"] * table["repeats"])[sent].sum())
        rows.append(row | _projected(table, sheet, "flash"))
    return pd.DataFrame(rows)


def _projected(table: pd.DataFrame, sheet: Gpu, attention: str) -> dict[str, Any]:
    timed = project(table, gpu=sheet, attention=attention)
    totals = summarize(timed)
    share = {name: 100 * seconds / totals["time_s"] for name, seconds in totals["bound"].items()}
    reach = time_range(timed, totals["time_s"])
    return {
        **{name: totals[name] for name in ("time_s", "energy_j")},
        **{name: reach[name] for name in ("low_s", "high_s")},
        **share,
        "fits": summarize_memory(table, sheet)["fits"],
        "time_kind": "projected",
    }


def _method(degrees: Mapping[str, int]) -> str:
    names = {"patch": "DistriFusion", "pipefusion": "PipeFusion", "ulysses": "Ulysses", "ring": "ring", "cfg": "CFG"}
    used = [names.get(key, key) for key, value in degrees.items() if value > 1]
    return " x ".join(used) or "one GPU"
