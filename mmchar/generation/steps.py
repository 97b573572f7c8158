"""All steps of a stage whose cache grows, from a few of them: numbers are affine in the step between two kinks.

A kink is where a sliding window is full: a layer that grew stays as long as it is.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from mmchar.generation import caches
from mmchar.generation.recording import Stage

SITE = ["module", "op", "attention", "dtype"]


def steps_table(stage: Stage, rows_at: Callable[[int], pd.DataFrame], numbers: list[str]) -> pd.DataFrame:
    """The rows of every step of a stage, with ``step`` and ``repeats``.

    Parameters
    ----------
    stage : Stage
        One that grows.
    rows_at : callable
        The rows of a step, traced.
    numbers : list of str
        The columns that may grow; ``live_bytes`` is a maximum, and interpolated without a check.

    Raises
    ------
    ValueError
        Two steps between which no kink is seen call different operators.
    """
    firsts, many = _distinct(stage)
    known: dict[int, pd.DataFrame] = {}

    def rows(index: int) -> pd.DataFrame:
        if index not in known:
            known[index] = rows_at(firsts[index])
        return known[index]

    pieces = _pieces(stage, firsts, rows, numbers)
    parts = [_piece(rows(low), rows(high), low, high, numbers, ends=high == len(firsts) - 1) for low, high in pieces]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(step=table["step"] * many, repeats=table["repeats"] * many)


def _distinct(stage: Stage) -> tuple[list[int], int]:
    """The first of the steps of each length, and how many there are of each: two where guidance decodes twice."""
    assert stage.growth is not None
    firsts = [step for step, dims in enumerate(stage.growth.dims) if dims not in stage.growth.dims[:step][-1:]]
    many = stage.repeats / len(firsts)
    if many != int(many):
        raise ValueError(f"stage {stage.name!r}: {stage.repeats} calls of {len(firsts)} lengths; cannot tell its steps")
    return firsts, int(many)


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
    return _is_between(*(part[numbers].to_numpy() for part in (low, middle, high)), at)


def _piece(
    first: pd.DataFrame, last: pd.DataFrame, low: int, high: int, numbers: list[str], *, ends: bool
) -> pd.DataFrame:
    """Rows of the steps from ``low`` up to ``high`` (with it, where the stage ends there): one per step if they grow."""
    many = high - low + ends
    if many == 1:
        return first.assign(step=low, repeats=1)
    if not first[SITE].equals(last[SITE]):  # neighbours, one kink
        return pd.concat([first.assign(step=low, repeats=1), last.assign(step=high, repeats=1)], ignore_index=True)
    changes = (first[numbers] != last[numbers]).any(axis=1)
    peak = np.maximum(first["live_bytes"], last["live_bytes"])
    same = first.assign(live_bytes=peak)[~changes].assign(step=low, repeats=many)
    a, b = first[changes], last[changes]
    every = a.loc[a.index.repeat(many)].reset_index(drop=True)
    step = np.tile(np.arange(many), len(a))
    for column in (*numbers, "live_bytes"):
        rise = np.repeat(b[column].to_numpy() - a[column].to_numpy(), many) * step
        every[column] = np.repeat(a[column].to_numpy(), many) + rise // (high - low)
    return pd.concat([same, every.assign(step=low + step, repeats=1)], ignore_index=True)
