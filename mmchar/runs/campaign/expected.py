"""What a measurement will take, before it is made: bytes of memory, from counting, and seconds, roughly.

The seconds only decide what still fits into a budget. A campaign corrects them by what its finished points took.
"""

import statistics
from typing import Any

import pandas as pd

from mmchar.counting import operator_table as counting
from mmchar.measuring.optimization import ladder as levers
from mmchar.measuring.optimization.backends import byte_model
from mmchar.models.loading import check_device, get_spec
from mmchar.request import from_mapping
from mmchar.runs.campaign.grids import Point, plan_of
from mmchar.tracing.attention import ITEM_BYTES

# Guesses, FLOP/s and bytes/s: on two cores PyTorch reaches some 50 GFLOP/s in float32 and, without matrix units, 12 in
# bfloat16; a data-centre GPU about a third of its data sheet.
_FLOP_S = {"cpu": {"float32": 50e9, "bfloat16": 12e9, "float16": 12e9},
           "cuda": {"float32": 20e12, "bfloat16": 200e12, "float16": 200e12}}  # fmt: skip
_BYTES_S = {"cpu": 8e9, "cuda": 1.5e12}
_CALL_S = {"cpu": 10e-6, "cuda": 30e-6}  # of one operator's dispatch
_TRACED_CALL_S = 0.5e-3  # of one operator under tracer and profiler
_PASSES = 3  # profiled executions at most
_EXTRAS = {"cpu": 1, "cuda": 5}  # executions for idle time and memory
_ENERGY_S = {"cpu": 0.0, "cuda": 1.0}  # the energy counter is read over a second per stage
_PARAMS_S = {"cpu": 100e6, "cuda": 1e9}  # random parameters made in a second
_COMPILE_CALL_S = {"compiled-full": 20e-3, "compiled-graphs": 20e-3}  # of compiling, per operator of the execution
_COMPILE_S = {"eager": 0.0, "compiled": 20.0, "compiled-full": 3.0, "graphs": 3.0, "compiled-graphs": 6.0}
_START_S = 2.0


def expected(point: Point) -> dict[str, float]:
    """Bytes that a point needs, ``weight_bytes`` and ``need_bytes``, and a guess of its seconds, ``expect_s``.

    Counts the model at its request, which takes seconds the first time. What runs outside the networks is left out.
    ValueError if the generation has no such stage.
    """
    from mmchar.measuring.target import needed_bytes  # with torch

    table = _counted(point)
    table = table[table["component"] != counting.OUTSIDE].astype({"stage": str, "component": str})
    names = list(point.stages or table["stage"].unique())
    if missing := sorted(set(names) - set(table["stage"])):
        raise ValueError(f"{point.model} has no stage {missing[0]!r} for this request")
    table = table[table["stage"].isin(names)]
    weights, need = needed_bytes(table, set(table["component"]), point.dtype)
    seconds = _START_S + weights / ITEM_BYTES[point.dtype] / _PARAMS_S[point.device]
    runs = counting.executions(table)
    for name in names:
        rows = table[table["stage"] == name]
        whole = rows[["flop", "read_bytes", "write_bytes", "calls"]].multiply(rows["repeats"], axis=0).sum()
        seconds += stage_s(point, (whole / float(runs[name])).to_dict())
    return {"weight_bytes": weights, "need_bytes": need, "expect_s": float(seconds)}


def _counted(point: Point) -> pd.DataFrame:
    kernel, request = byte_model(point.attention), from_mapping(point.request)
    return counting.count(point.model, request, dtype=point.dtype, attention=kernel, tiny=point.tiny)


def stage_s(point: Point, execution: dict[str, float]) -> float:
    """Guess of the seconds that all passes over one stage take, from the counts of one execution."""
    rate = _FLOP_S[point.device][point.dtype]
    moved = (execution["read_bytes"] + execution["write_bytes"]) / _BYTES_S[point.device]
    once = execution["flop"] / rate + moved + execution["calls"] * _CALL_S[point.device]
    passes = _PASSES if once < 1 else min(_PASSES, point.samples)
    times = point.warmup + point.samples + passes + _EXTRAS[point.device]
    lever = levers.from_mapping(point.levers).execution
    compiling = _COMPILE_S[lever] + _COMPILE_CALL_S.get(lever, 0.0) * execution["calls"]
    return times * once + passes * execution["calls"] * _TRACED_CALL_S + compiling + _ENERGY_S[point.device]


def correction(ratios: list[float]) -> float:
    """The factor between what points took and what was expected of them: the median, from 0.2 to 5; 1 without any."""
    return min(5.0, max(0.2, statistics.median(ratios))) if ratios else 1.0


def why_skipped(point: Point, machine: dict[str, Any]) -> str:
    """Why this machine cannot measure a point, by its parameters alone, at little cost; "" where that does not tell."""
    if point.device == "cuda" and machine["capability"] is None:
        return "torch sees no CUDA GPU here"
    have = machine["memory_bytes"][point.device]
    spec = get_spec(point.model, tiny=point.tiny)
    roles = {stage.component for stage in plan_of(point)} if point.stages else set(spec.components)
    parts = [spec.components[role] for role in roles]
    least = sum(part.published_params or 0 for part in parts) * ITEM_BYTES[point.dtype]
    if have is not None and least > have:
        return f"its weights are {least / 1e9:.3g} GB in {point.dtype}, and {point.device} has {have / 1e9:.3g} GB"
    return ""


def why_not(point: Point) -> str:
    """Why this process cannot measure a point, by its memory, packages and kernels; "" where it can."""
    from mmchar.measuring.target import check, check_counted

    try:
        check_device(point.device, point.dtype)
        check(point.attention, levers.from_mapping(point.levers), device=point.device, dtype=point.dtype)
        table = _counted(point)
        rows = table[table["stage"].isin(point.stages or table["stage"].unique())]
        check_counted(rows, set(rows["component"]), point.attention, device=point.device, dtype=point.dtype)
    except ValueError as error:
        return str(error)
    return ""
