"""What the page to play with knows: the numbers of every choice, precomputed and rounded to three figures.

Times and FLOP are of a whole generation at the default steps. Other steps need no more numbers, as a stage's calls are
affine in the steps, and its time goes with its calls: ``per_step`` is the share of the default's calls that goes with
the steps. What runs between the networks (`OUTSIDE`) is one call; there it is the share of the default request's time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.counting.operator_table import OUTSIDE, count
from mmchar.models.loading import get_spec
from mmchar.models.specs import ModelSpec
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.roofline import project
from mmchar.projection.scaling import count_batch
from mmchar.request import Request
from mmchar.study.site.breakdown import breakdown, facts, lengths
from mmchar.study.site.choices import BATCHES, GPUS, MODELS, one_number_of_steps, requests
from mmchar.tables.shown import CATEGORY_COLORS
from mmchar.tables.totals import executions

CATEGORIES = tuple(CATEGORY_COLORS)
_NS, _DIGITS = 1e9, 3


def explorer_data(models: Sequence[str] | None = None, *, progress: bool = False) -> dict[str, Any]:
    """Everything that can be chosen, with its numbers, in JSON types; a first count of all takes minutes.

    - ``gpus``: ``name`` and ``memory_bytes``; ``categories``: names; ``batches``: numbers.
    - ``models``: ``name``, ``summary``, ``steps`` (None for a cascade), ``stages`` and, beside them, ``calls`` as
      ``[a, b]``, so that a stage is called ``a + b * steps`` times, and ``per_step``; ``weight_bytes``, and ``sizes``.
    - Of a size ``height, width, frames``, ``lengths`` as ``[stage, attention, q_min, q_max, kv_max]``, and of each
      batch ``live_bytes`` and ``cells``, a line for each stage and category: their indices, FLOP, bytes, and
      nanoseconds on each GPU.
    """
    names = MODELS if models is None else models
    sizes = {name: list(requests(get_spec(name))) for name in names}
    bar = tqdm(total=sum(map(len, sizes.values())), desc="count what can be chosen", unit="size", disable=not progress)
    with bar:
        found = [_model(get_spec(name), sizes[name], bar) for name in names]
    gpus = [{"name": name, "memory_bytes": int(get_gpu(name).memory_bytes)} for name in GPUS]
    return {"gpus": gpus, "categories": list(CATEGORIES), "batches": list(BATCHES), "models": found}


def _model(spec: ModelSpec, asked: list[Request], bar: Any) -> dict[str, Any]:
    table = count(spec.name)
    stages = list(executions(table).index.astype(str))
    more = _with_more_steps(spec)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "steps": spec.request["steps"] if more is not None else None,
        "stages": stages,
        **_by_steps(stages, table, more, spec.request["steps"]),
        "weight_bytes": facts(table)["weight_bytes"],
        "sizes": [_size(spec.name, request, stages, bar) for request in asked],
    }


def _with_more_steps(spec: ModelSpec) -> pd.DataFrame | None:
    """The default generation with twice the steps; None where steps are not one number."""
    return count(spec.name, steps=2 * spec.request["steps"]) if one_number_of_steps(spec) else None


def _by_steps(stages: list[str], table: pd.DataFrame, more: pd.DataFrame | None, steps: int) -> dict[str, Any]:
    """How calls and times go with the steps, from a generation and one of twice the steps."""
    calls = facts(table)["calls"]
    if more is None:
        return {"calls": [[calls[name], 0] for name in stages], "per_step": [0] * len(stages)}
    again, affine, shares = facts(more)["calls"], [], []
    for name in stages:
        each, rest = divmod(again[name] - calls[name], steps)
        if rest:
            raise ValueError(
                f"{name} is called {calls[name]} times in {steps} steps and {again[name]} in twice as many"
            )
        affine.append([calls[name] - each * steps, each])
        shares.append(_outside(table, more) if name == OUTSIDE else each * steps / calls[name])
    return {"calls": affine, "per_step": shares}


def _outside(table: pd.DataFrame, more: pd.DataFrame) -> float:
    """The share of the default generation's time between the networks that goes with the steps."""
    once, twice = (_outside_s(each) for each in (table, more))
    return round(twice / once - 1, 4) if once else 0.0


def _outside_s(table: pd.DataFrame) -> float:
    timed = project(table, gpu=GPUS[0])
    return float((timed["time_s"] * timed["repeats"])[timed["stage"] == OUTSIDE].sum())


def _size(name: str, request: Request, stages: list[str], bar: Any) -> dict[str, Any]:
    seen = lengths(count(name, request))
    rows = [[stages.index(row.stage), row.attention, row.q_min, row.q_max, row.kv_max] for row in seen.itertuples()]
    size = {"height": request.height, "width": request.width, "frames": request.frames, "lengths": rows}
    size["batches"] = [_batch(name, request, batch, stages) for batch in BATCHES]
    bar.update()
    return size


def _batch(name: str, request: Request, batch: int, stages: list[str]) -> dict[str, Any]:
    table = count_batch(name, Request(**request.given() | {"batch": batch}))
    return {"live_bytes": _rounded(facts(table)["live_bytes"]), "cells": list(_cells(table, stages))}


def _cells(table: pd.DataFrame, stages: list[str]) -> Iterator[list[int]]:
    keys = ["stage", "category"]
    on = [breakdown(project(table, gpu=gpu)).set_index(keys) for gpu in GPUS]
    times = pd.concat([each["time_s"] for each in on], axis=1).fillna(0.0)
    for (stage, category), seconds in times.iterrows():
        amounts = on[0].loc[(stage, category)]
        place = [stages.index(stage), CATEGORIES.index(category)]
        numbers = [amounts["flop"], amounts["moved_bytes"], *(seconds * _NS)]
        yield [*place, *map(_rounded, numbers)]


def _rounded(value: float) -> int:
    """The value to three significant figures."""
    return int(float(f"{value:.{_DIGITS}g}"))
