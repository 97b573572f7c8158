"""All steps of a stage whose cache grows, from a few of them: numbers are affine in the step between two kinks.

A kink is where a sliding window is full: a layer that grew stays as long as it is.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from mmchar.generation import caches
from mmchar.generation.recording import Stage

SITE = ["module", "op", "attention", "dtype"]


def steps_table(stage: Stage, rows_at: Callable[[int], pd.DataFrame], numbers: list[str]) -> pd.DataFrame:
    """The rows of every step of a stage that grows, with ``step`` and ``repeats``; ``rows_at`` traces those of one.

    ``numbers`` are the columns that may grow; ``live_bytes`` is a maximum, and interpolated without a check.
    """
    firsts, many = _distinct(stage)
    known: dict[int, pd.DataFrame] = {}

    def rows(index: int) -> pd.DataFrame:
        if index not in known:
            known[index] = rows_at(firsts[index])
        return known[index]

    pieces = _pieces(stage, firsts, rows, numbers)
    parts = [
        _piece(rows(low), rows(high), low, many[low : high + (high == len(firsts) - 1)], numbers, high - low)
        for low, high in pieces
    ]
    table = pd.concat(parts, ignore_index=True)
    before = np.concatenate([[0], np.cumsum(many)])  # executions of shorter lengths
    return table.assign(step=before[table["step"]])


def _distinct(stage: Stage) -> tuple[list[int], list[int]]:
    """The first step of each length in ascending order, and how many there are of it."""
    assert stage.growth is not None
    firsts: dict[tuple[int, ...], int] = {}
    for step, dims in enumerate(stage.growth.dims):
        firsts.setdefault(dims, step)
    many = Counter(stage.growth.dims)
    order = sorted(firsts)
    return [firsts[dims] for dims in order], [many[dims] for dims in order]


def _pieces(
    stage: Stage, firsts: list[int], rows: Callable[[int], pd.DataFrame], numbers: list[str]
) -> list[tuple[int, int]]:
    """First and last index of each run of steps over which everything is affine."""

    def vector(index: int) -> np.ndarray:
        at = stage.at(firsts[index])
        assert at.growth is not None
        return np.array([*at.growth.dims[firsts[index]], *caches.lengths(at.call.cache)])

    def split(low: int, high: int) -> list[tuple[int, int]]:
        middle = (low + high) // 2
        if middle == low or (
            _is_between(vector(low), vector(middle), vector(high), (low, middle, high))
            and _rows_between(rows(low), rows(middle), rows(high), (low, middle, high), numbers)
        ):
            return [(low, high)]
        return [*split(low, middle), *split(middle, high)]

    return split(0, len(firsts) - 1)


def _is_between(low: np.ndarray, middle: np.ndarray, high: np.ndarray, at: tuple[int, int, int]) -> bool:
    a, b, c = at
    return bool(((middle - low) * (c - a) == (high - low) * (b - a)).all())


def _rows_between(
    low: pd.DataFrame, middle: pd.DataFrame, high: pd.DataFrame, at: tuple[int, int, int], numbers: list[str]
) -> bool:
    if not (low[SITE].equals(middle[SITE]) and low[SITE].equals(high[SITE])):
        return False
    a, b, c = (part[numbers].to_numpy() for part in (low, middle, high))
    return _is_between(a, b, c, at)


def _piece(
    first: pd.DataFrame, last: pd.DataFrame, low: int, many: list[int], numbers: list[str], apart: int
) -> pd.DataFrame:
    """Rows of the lengths from index ``low`` on, ``many`` executions of each: a row per length of those that grow."""
    if len(many) == 1:
        return first.assign(step=low, repeats=many[0])
    if not first[SITE].equals(last[SITE]):  # neighbours, one kink
        ends = [frame.assign(step=low + at, repeats=many[at]) for at, frame in enumerate((first, last))]
        return pd.concat(ends, ignore_index=True)
    changes = (first[numbers] != last[numbers]).any(axis=1)
    peak = np.maximum(first["live_bytes"], last["live_bytes"])
    same = first.assign(live_bytes=peak)[~changes].assign(step=low, repeats=sum(many))
    a, b = first[changes], last[changes]
    every = a.loc[a.index.repeat(len(many))].reset_index(drop=True)
    step = np.tile(np.arange(len(many)), len(a))
    for column in (*numbers, "live_bytes"):
        rise = np.repeat(b[column].to_numpy() - a[column].to_numpy(), len(many)) * step
        every[column] = np.repeat(a[column].to_numpy(), len(many)) + rise // apart
    return pd.concat([same, every.assign(step=low + step, repeats=np.tile(many, len(a)))], ignore_index=True)
