"""Counts of any batch from two: everything a generation does is affine in how many it makes at once."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import AMOUNTS, count
from mmchar.projection.parallel.token_parts import same_rows
from mmchar.request import Request


def count_batch(model: str, request: Request, *, dtype: str = "bfloat16") -> pd.DataFrame:
    """The operator table of a generation of any batch, as `mmchar.count` gives it, from the counts of one and of two.

    Many batches of a model cost two counts. A large batch is counted as a small one would run.
    """
    batch = request.batch or 1
    one = _counted(model, replace(request, batch=1), dtype)
    return one if batch == 1 else at_batch(one, _counted(model, replace(request, batch=2), dtype), batch)


def at_batch(one: pd.DataFrame, two: pd.DataFrame, batch: int) -> pd.DataFrame:
    """The table of ``batch`` generations at once, in the units of the tables of one and of two.

    Raises
    ------
    ValueError
        The two are not counts of the same operators.
    """
    found = same_rows(one, two)
    columns = [*AMOUNTS, "batch", "live_bytes", "repeats"]
    columns.remove("calls")  # a batch changes what a call does, not how often it happens
    gain = np.where((found >= 0)[:, None], two[columns].to_numpy()[found] - one[columns].to_numpy(), 0)
    values = one[columns] + gain * (batch - 1)
    out = one.assign(**{name: values[name] for name in columns})
    out.attrs = {**one.attrs, "request": {**one.attrs["request"], "batch": batch}}
    return out


@lru_cache(maxsize=64)
def _counted(model: str, request: Request, dtype: str) -> pd.DataFrame:
    return count(model, request, dtype=dtype)
