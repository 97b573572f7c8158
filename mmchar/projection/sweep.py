"""Totals of many projections at once: sizes x batches x GPUs, without a DataFrame for each."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmchar.projection.columns import Columns, columns_of, merge_equal
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import Rates, prepare, row_times

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    tables: Mapping[str, "pd.DataFrame"],
    gpus: Iterable[str | Gpu],
    *,
    attention: str | None = None,
    execution: str = "eager",
    efficiency: Efficiency | None = None,
) -> "pd.DataFrame":
    """One row per table and GPU: the seconds that `roofline.project` would give, summed over the generation.

    A table is taken apart once for all GPUs, and its equal rows are merged, so that a projection takes well under a
    millisecond.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Operator tables by a name of your choice, e.g. of one model at several sizes.
    gpus : iterable of str or Gpu
    attention, execution, efficiency
        As for `roofline.project`.

    Returns
    -------
    DataFrame
        ``name, gpu, time_s``, and ``compute_s, memory_s, launch_s``, which add up to it, by what bounds the rows. A GPU
        that lacks a table's numeric type has NaN.
    """
    import pandas as pd

    rates, sheets = Rates(efficiency or Efficiency()), [gpu if isinstance(gpu, Gpu) else get_gpu(gpu) for gpu in gpus]
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
