"""Measurements beside projections and counts of the same stages: shares, gains, memory.

A measurement and a projection are shown side by side as what they are: each names its machine and number type. A run on
a GPU whose data sheet we have is projected on that GPU; one on a CPU, on the GPU and in the number type asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from mmchar.counting.seqlen import similarity_memory
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import gpu_named
from mmchar.projection.roofline import project
from mmchar.study.experiments import compare_attention
from mmchar.study.measured_runs import Run
from mmchar.study.temporal import temporal_readings
from mmchar.tables.totals import totals
from mmchar.tracing.attention import ITEM_BYTES, use_backend


def project_like(run: Run, *, gpu: str, dtype: str) -> pd.DataFrame:
    """The projected table of the request and stages of a run, on its own GPU if its data sheet is known."""
    sheet = sheet_name(run.hardware)
    timed = project(run.counted(None if sheet else dtype), gpu=sheet or gpu, attention=run.kernel)
    return timed[timed["stage"].isin(run.stages)]


def sheet_name(hardware: str) -> str:
    """Our name of the data sheet of a GPU that calls itself ``NVIDIA H200`` or the like; "" for anything else."""
    try:
        return gpu_named(hardware).name
    except ValueError:
        return ""


def beside(runs: Sequence[Run], *, by: str, gpu: str, dtype: str, cores: bool = False) -> pd.DataFrame:
    """Seconds and shares of the main stage of each run by a column of the operator table, measured and projected.

    ``by`` is e.g. ``category``, or ``q_len`` with attention ``cores`` only. Columns: ``case`` (model, stage, kernel),
    ``run`` (the case, and what it was made with), ``machine``, ``dtype``, ``time_kind``, ``by``, ``value`` (s of all
    executions), ``share`` (% of the run); empty without runs.
    """
    parts = []
    for run in runs:
        case = f"{run.asked['model']} {run.main_stage}, {run.kernel}"
        for table, made in _both(run, gpu=gpu, dtype=dtype):
            many = f", {run.samples} samples" if made["time_kind"] == "measured" else ""
            rows = table[table["stage"].astype(str) == run.main_stage]
            sums = totals(_cores(rows) if cores else rows, [by])[[by, "time_s"]].rename(columns={"time_s": "value"})
            label = f"{case}: {made['time_kind']}, {made['machine']}, {made['dtype']}{many}"
            share = 100 * sums["value"] / sums["value"].sum()
            parts.append(sums.assign(share=share, case=case, run=label, **made))
    return _stacked(parts, "case", "run", "machine", "dtype", "time_kind", by, "value", "share")


def attention_gains(runs: Sequence[Run], *, gpu: str, dtype: str) -> pd.DataFrame:
    """Gain of attention cores from fused kernels, of every pair of an eager and a fused run, measured and projected.

    Columns of `experiments.compare_attention` by ``stage, attention, q_len``, and ``model``, ``family``, ``machine``,
    ``dtype``, ``samples``, ``spread``, ``time_kind``, ``stage_gain`` (of the whole stage); empty without pairs.
    """
    parts = []
    for eager, fused in _pairs(runs):
        spec = get_spec(eager.asked["model"])
        same = {"model": spec.name, "family": spec.family, "samples": min(eager.samples, fused.samples)}
        both = [_both(run, gpu=gpu, dtype=dtype) for run in (eager, fused)]
        for (slow, made), (fast, _) in reversed(list(zip(*both, strict=True))):  # measured points are drawn on top
            found = compare_attention(_cores(slow), _cores(fast), ["stage", "attention", "q_len"])
            seconds = [totals(table, ["stage"]).set_index("stage")["time_s"] for table in (slow, fast)]
            spread = None
            if made["time_kind"] == "measured":  # whole stages without a profiler
                seconds, spread = [pd.Series(run.stage_s) for run in (eager, fused)], max(eager.spread, fused.spread)
            stage_gain = found["stage"].map(seconds[0] / seconds[1])
            parts.append(found.assign(**same, **made, spread=spread, stage_gain=stage_gain))
    return _stacked(parts, "model", "stage", "attention", "q_len", "gain", "stage_gain", "time_kind", others=True)


def temporal_shares(runs: Sequence[Run], *, gpu: str, dtype: str) -> pd.DataFrame:
    """Share of temporal attention in each run that has it, by what is called attention, measured and projected.

    Columns of `temporal.temporal_readings`, of the stages that were measured, and ``reading``, ``case`` (model,
    kernel), ``machine``, ``dtype``, ``time_kind``; empty without runs.
    """
    parts = []
    for run in runs:
        if not (run.table["attention"] == "temporal").any():
            continue
        for table, made in _both(run, gpu=gpu, dtype=dtype):
            found = temporal_readings(table).rename_axis("reading").reset_index()
            parts.append(found.assign(case=f"{run.asked['model']}, {run.kernel}", **made))
    return _stacked(parts, "case", "reading", "machine", "dtype", "time_kind", "share", "total_s")


def peak_memory(runs: Sequence[Run]) -> pd.DataFrame:
    """Most activation bytes alive in each stage, measured and counted, where every execution takes the same.

    Stages over a growing cache are left out, for the one execution that is measured is not the longest. Columns:
    ``model``, ``stage``, ``kernel``, ``machine``, ``dtype``, ``measured_bytes``, ``counted_bytes``, and
    ``similarity_bytes``: the largest similarity matrix of one call; empty without runs.
    """
    rows = []
    for run in runs:
        table = use_backend(run.counted(), run.kernel)
        table = table.assign(matrix=similarity_memory(table, ITEM_BYTES[run.asked["dtype"]]))
        most = table.groupby(table["stage"].astype(str), sort=False)[["step", "live_bytes", "matrix"]].max()
        for stage, (_, live, matrix) in most[most["step"] == 0].iterrows():
            if memory := run.facts["memory"].get(stage):
                setting = (run.asked["model"], stage, run.kernel, run.machine, run.asked["dtype"])
                rows.append((*setting, memory["peak_bytes"], int(live), int(matrix)))
    columns = "model stage kernel machine dtype measured_bytes counted_bytes similarity_bytes"
    return pd.DataFrame(rows, columns=columns.split())


def _both(run: Run, *, gpu: str, dtype: str) -> Iterator[tuple[pd.DataFrame, dict[str, str]]]:
    """The operator table, measured and then projected, and what it was made with."""
    yield run.table, {"machine": run.machine, "dtype": run.asked["dtype"], "time_kind": "measured"}
    timed = project_like(run, gpu=gpu, dtype=dtype)
    yield timed, {"machine": timed.attrs["gpu"], "dtype": timed.attrs["dtype"], "time_kind": "projected"}


def _cores(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["attention"] != ""]


def _stacked(parts: list[pd.DataFrame], *columns: str, others: bool = False) -> pd.DataFrame:
    """The parts below each other in these columns, and in others too or not; empty where there is none."""
    if not parts:
        return pd.DataFrame(columns=list(columns))
    out = pd.concat(parts, ignore_index=True)
    return out if others else out[list(columns)]


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """An eager and a fused run each of the same machine, model, request, number type and stages."""

    def same(run: Run) -> tuple[Any, ...]:
        asked = run.asked
        return run.machine, asked["model"], str(asked["request"]), asked["dtype"], run.stages, str(asked["levers"])

    eager = {same(run): run for run in runs if run.asked["attention"] == "eager"}
    fused = [run for run in runs if run.asked["attention"] == "flash" and same(run) in eager]
    return [(eager[same(run)], run) for run in fused]
