"""The same generation at other batches, on other GPUs and on more of them: many projections as one table."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import AMOUNTS, count
from mmchar.models.loading import get_spec
from mmchar.projection.columns import Columns, columns_of, holds, merge_equal
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.parallel.token_parts import same_rows
from mmchar.projection.roofline import Rates, prepare, project, row_times
from mmchar.projection.summary import summarize, summarize_memory
from mmchar.projection.uncertainty import time_range
from mmchar.request import Request

# What grows with the batch: it changes what a call does, not how often it happens.
BY_BATCH = [*(name for name in AMOUNTS if name != "calls"), "batch", "m", "live_bytes", "repeats"]
_METHODS = {"patch": "DistriFusion", "pipefusion": "PipeFusion", "ulysses": "Ulysses", "ring": "ring", "cfg": "CFG"}


def count_batch(model: str, request: Request, *, dtype: str = "bfloat16", tiny: bool = False) -> pd.DataFrame:
    """The operator table of a generation of any batch, as `mmchar.count` gives it, from the counts of one and of two.

    Everything a generation does is affine in how many it makes at once, so many batches of a model cost two counts. A
    large batch is counted as a small one would run.
    """
    batch = request.batch or 1
    one = _counted(model, Request(**request.given() | {"batch": 1}), dtype, tiny)
    if batch == 1:
        return one
    two = _counted(model, Request(**request.given() | {"batch": 2}), dtype, tiny)
    found = same_rows(one, two)
    gain = np.where((found >= 0)[:, None], two[BY_BATCH].to_numpy()[found] - one[BY_BATCH].to_numpy(), 0)
    out = one.assign(**(one[BY_BATCH] + gain * (batch - 1)))
    out.attrs = {**one.attrs, "request": {**one.attrs["request"], "batch": batch}}
    return out


@lru_cache(maxsize=64)
def _counted(model: str, request: Request, dtype: str, tiny: bool) -> pd.DataFrame:
    return count(model, request, dtype=dtype, tiny=tiny)


def sweep(
    tables: Mapping[str, pd.DataFrame],
    gpus: Iterable[str | Gpu],
    *,
    attention: str | None = None,
    execution: str = "eager",
    efficiency: Efficiency | None = None,
) -> pd.DataFrame:
    """One row per table and GPU: the seconds that `roofline.project` would give, summed over the generation.

    A table is taken apart once for all GPUs, and its equal rows are merged, so that a projection takes well under a
    millisecond.

    Returns
    -------
    DataFrame
        ``name, gpu, time_s``, and ``compute_s, memory_s, launch_s``, which add up to it, by what bounds the rows. A GPU
        that lacks a table's numeric type has NaN.
    """
    rates, sheets = Rates(efficiency or Efficiency()), [get_gpu(gpu) for gpu in gpus]
    rows = []
    for name, table in tables.items():
        columns = merge_equal(columns_of(prepare(table, attention=attention, execution=execution)))
        rows += [(name, gpu.name, *_totals(columns, gpu, rates, execution)) for gpu in sheets]
    return pd.DataFrame(rows, columns=["name", "gpu", "time_s", "compute_s", "memory_s", "launch_s"])


def _totals(columns: Columns, gpu: Gpu, rates: Rates, execution: str) -> tuple[float, ...]:
    try:
        device_s, wait_s, bound = row_times(columns, gpu, rates, execution=execution)
    except ValueError:
        return (np.nan,) * 4
    parts = np.bincount(bound, (device_s + wait_s) * columns.repeats, minlength=4)[1:]
    return float(parts.sum()), *map(float, parts)


def on_gpus(
    tables: Mapping[str, pd.DataFrame], gpus: Iterable[str], *, attention: str = "flash", execution: str = "eager"
) -> pd.DataFrame:
    """One row per model and GPU: projected seconds with their range, joules, what bounds most of it, and if it fits.

    Columns ``model, gpu, year, time_s, low_s, high_s, energy_j, mfu, compute, memory, launch`` (the last three shares
    of time, in percent), ``fits, time_kind``. A GPU that lacks the numeric type of a table has no row.
    """
    rows = []
    for name, table in tables.items():
        for sheet in map(get_gpu, gpus):
            if table.attrs["dtype"] in sheet.peak_flop_s:
                row = {"model": name, "gpu": sheet.name, "year": sheet.year}
                rows.append(row | _projected(table, sheet, attention, execution))
    return pd.DataFrame(rows)


def on_several(
    name: str,
    request: Request | None,
    ways: Iterable[Mapping[str, int]],
    *,
    gpu: str,
    dtype: str = "bfloat16",
    tiny: bool = False,
    attention: str = "flash",
    execution: str = "eager",
    change: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    **call: Any,
) -> pd.DataFrame:
    """One row per way to share a generation among GPUs: projected seconds, joules, and bytes that one GPU sends.

    A way is its degrees, as ``{"ulysses": 4, "ring": 2}``; ``{}`` is one GPU. ``call`` is what else `mmchar.count`
    takes; ``change`` is done to each table before it is projected (e.g. `step_caching.cache_steps`).

    Returns
    -------
    DataFrame
        ``model, way, method, gpus, time_s, low_s, high_s, energy_j, mfu, sent_bytes`` (of one GPU in the whole
        generation), ``compute, memory, launch, communication`` (shares of time, in percent), ``fits``; ``reason``
        where the model cannot be shared so, and then no numbers.
    """
    spec, sheet = get_spec(name, tiny=tiny), get_gpu(gpu)

    def again(other: Request | None) -> pd.DataFrame:
        return count(name, other, dtype=dtype, tiny=tiny, **call)

    change = change or (lambda table: table)
    whole, rows = again(request), []
    all_of_it = change(whole)
    for degrees in ways:
        many, above_one = Degrees(**degrees), {key: value for key, value in degrees.items() if value > 1}
        row: dict[str, Any] = {
            "model": name,
            "way": " x ".join(f"{key} {value}" for key, value in above_one.items()) or "one GPU",
            "method": " x ".join(_METHODS.get(key, key) for key in above_one) or "one GPU",
            "gpus": many.gpus,
            "reason": "",
        }
        try:
            table = change(whole if many.gpus == 1 else parallelize(whole, many, count=again, spec=spec))
        except ValueError as error:
            rows.append(row | {"reason": str(error)})
            continue
        sent = holds(table, "category", "Communication")
        row["sent_bytes"] = int((table["write_bytes"] * table["repeats"])[sent].sum())
        rows.append(row | _projected(table, sheet, attention, execution, all_of_it))
    return pd.DataFrame(rows)


def _projected(
    table: pd.DataFrame, sheet: Gpu, attention: str, execution: str, whole: pd.DataFrame | None = None
) -> dict[str, Any]:
    timed = project(table, gpu=sheet, attention=attention, execution=execution)
    totals = summarize(timed, whole=whole)
    reach = time_range(timed, totals["time_s"])
    return {
        **{name: totals[name] for name in ("time_s", "energy_j", "mfu")},
        **{name: reach[name] for name in ("low_s", "high_s")},
        **{name: 100 * seconds / totals["time_s"] for name, seconds in totals["bound"].items()},
        "fits": summarize_memory(table, sheet)["fits"],
        "time_kind": "projected",
    }
