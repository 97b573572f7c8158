"""The errors by kind that ranges of projections are read from: made from left-out predictions, kept in a file."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmchar.projection.evidence.calibration import leave_out
from mmchar.projection.evidence.cases import Case
from mmchar.projection.uncertainty import ANY, KIND, projection_errors
from mmchar.tables.stored import write_table

QUANTITIES = ("latency", "energy")


def write_errors(
    path: str | Path, cases: Sequence[Case], beside: Sequence[Case] = (), *, source: str, progress: bool = False
) -> pd.DataFrame:
    """Write the errors by kind of some cases to a file, in the place of those of the same ``source``; all of it.

    What other sources say in ``data/reference/projection_errors.csv`` stays as it is.
    """
    found = errors_by_kind(cases, beside, progress=progress).assign(source=source)
    kept = projection_errors()
    table = pd.concat([kept[kept["source"] != source], found], ignore_index=True)
    table = table.sort_values([*KIND, "quantity", "source"], ignore_index=True)
    write_table(path, table)
    projection_errors.cache_clear()
    return table


def errors_by_kind(cases: Sequence[Case], beside: Sequence[Case] = (), *, progress: bool = False) -> pd.DataFrame:
    """Errors of each kind, on a GPU by fits without the model, on any GPU by fits without the GPU.

    Columns ``family, execution, gpu, gpus, quantity, low, median_absolute, high, n, left_out``: ``low`` and ``high``
    are the 10th and 90th percentile of predicted / measured - 1.
    """
    parts = [_by_kind(leave_out(cases, beside, by="model", progress=progress), "model")]
    if len({case.gpu.name for case in cases}) > 1:
        parts.append(_by_kind(leave_out(cases, beside, by="gpu", progress=progress), "gpu"))
    return pd.concat(parts, ignore_index=True)


def _by_kind(table: pd.DataFrame, left_out: str) -> pd.DataFrame:
    table = table.assign(gpus=["several" if many > 1 else "one" for many in table["gpus"]])
    names = list(KIND)
    whole = table.assign(execution=ANY)
    kinds = [table, whole]
    if left_out == "gpu":
        several = [part[part.groupby(["family", "gpus"])["gpu"].transform("nunique") > 1] for part in kinds]
        kinds = [part.assign(gpu=ANY) for part in [*several, whole.assign(family=ANY, gpus="one")]]
    rows = []
    for kind, part in pd.concat(kinds).groupby(names):
        for quantity in QUANTITIES:
            error = part[f"{quantity}_error"].dropna()
            if len(error):
                low, high = error.quantile([0.1, 0.9])
                numbers = (round(number, 3) for number in (low, error.abs().median(), high))
                rows.append((*kind, quantity, *numbers, len(error), left_out))
    return pd.DataFrame(rows, columns=[*names, "quantity", "low", "median_absolute", "high", "n", "left_out"])
