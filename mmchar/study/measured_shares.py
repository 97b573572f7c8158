"""Measurements beside projections and counts of the same stages: shares, gains, memory.

A measurement and a projection are shown side by side as what they are: each names its machine and number type. A run on
a GPU whose data sheet we have is projected on that GPU; one on a CPU, on the GPU that is asked for.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmchar.projection.data_sheets import list_gpus
from mmchar.study.experiments import compare_attention, totals
from mmchar.study.temporal import temporal_readings
from mmchar.tracing.attention import ITEM_BYTES, use_backend

if TYPE_CHECKING:
    import pandas as pd

    from mmchar.study.measured_runs import Run


def project_like(run: "Run", *, gpu: str, dtype: str) -> "pd.DataFrame":
    """The projected table of the request and stages of a run, on its own GPU if its data sheet is known.

    For a run on a CPU, or another GPU, it is projected on ``gpu`` in ``dtype``.
    """
    from mmchar.counting.operator_table import count
    from mmchar.projection.roofline import project
    from mmchar.request import from_mapping

    sheet = sheet_name(run.hardware)
    dtype = run.asked["dtype"] if sheet else dtype
    table = count(run.asked["model"], from_mapping(run.asked["request"]), dtype=dtype, tiny=run.asked["tiny"])
    timed = project(table, gpu=sheet or gpu, attention=run.kernel)
    kept = timed[timed["stage"].isin(run.stages)]
    kept.attrs = timed.attrs
    return kept


def sheet_name(hardware: str) -> str:
    """Our name of the data sheet of a GPU that calls itself ``NVIDIA H200`` or the like; "" for anything else."""
    words = hardware.lower().replace("-", " ").split()
    if "nvidia" not in words:
        return ""
    fitting = [name for name in list_gpus()["name"] if name.split("-")[0] in words or name.replace("-", " ") in words]
    several = [name for name in fitting if name.split("-")[-1] in words]
    return (several or fitting or [""])[-1]


def beside(runs: Sequence["Run"], *, by: str, gpu: str, dtype: str, cores: bool = False) -> "pd.DataFrame":
    """Seconds and shares of the main stage of each run by a column of the operator table, measured and projected.

    Parameters
    ----------
    by : str
        E.g. ``category``, or ``q_len``.
    gpu, dtype
        What a run that was not made on a known GPU is projected on.
    cores : bool
        Attention cores only.

    Returns
    -------
    DataFrame
        ``case`` (model, stage, kernel), ``run`` (the case, and what it was made with), ``machine``, ``dtype``,
        ``time_kind``, ``by``, ``value`` (s of all executions), ``share`` (% of the run); empty without runs.
    """
    import pandas as pd

    parts = [pd.DataFrame(columns=["case", "run", "machine", "dtype", "time_kind", by, "value", "share"])]
    for run in runs:
        case = f"{run.asked['model']} {run.main_stage}, {run.kernel}"
        for kind, table, machine, number in _both(run, gpu=gpu, dtype=dtype):
            many = f", {run.samples} samples" if kind == "measured" else ""
            rows = table[table["stage"].astype(str) == run.main_stage]
            rows = rows[rows["attention"].astype(str) != ""] if cores else rows
            sums = totals(rows, [by])[[by, "time_s"]].rename(columns={"time_s": "value"})
            label = f"{case}: {kind}, {machine}, {number}{many}"
            sums["share"] = 100 * sums["value"] / sums["value"].sum()
            parts.append(sums.assign(case=case, run=label, machine=machine, dtype=number, time_kind=kind))
    return pd.concat(parts[1:] or parts, ignore_index=True)[parts[0].columns]


def attention_gains(runs: Sequence["Run"], *, gpu: str, dtype: str) -> "pd.DataFrame":
    """Gain of attention cores from fused kernels, of every pair of an eager and a fused run, measured and projected.

    Returns
    -------
    DataFrame
        As `experiments.compare_attention` by ``stage, attention, q_len``, and ``model``, ``family``,
        ``machine``, ``dtype``, ``samples``, ``spread``, ``time_kind``, ``stage_gain`` (of the whole stage); empty
        without pairs.
    """
    import pandas as pd

    from mmchar.models.loading import get_spec

    parts = [pd.DataFrame(columns=["model", "stage", "attention", "q_len", "gain", "stage_gain", "time_kind"])]
    for eager, fused in _pairs(runs):
        spec = get_spec(eager.asked["model"])
        same = {"model": spec.name, "family": spec.family, "samples": min(eager.samples, fused.samples)}
        tables = [project_like(run, gpu=gpu, dtype=dtype) for run in (eager, fused)]
        whole = [totals(table, ["stage"]).set_index("stage")["time_s"] for table in tables]
        on = {"machine": tables[0].attrs["gpu"], "dtype": tables[0].attrs["dtype"], "spread": None}
        parts.append(_gains(tables, whole).assign(**same, **on, time_kind="projected"))
        seconds = [pd.Series(run.stage_s) for run in (eager, fused)]
        on = {"machine": eager.machine, "dtype": eager.asked["dtype"], "spread": max(eager.spread, fused.spread)}
        measured = _gains([eager.table, fused.table], seconds)
        parts.append(measured.assign(**same, **on, time_kind="measured"))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def temporal_shares(runs: Sequence["Run"], *, gpu: str, dtype: str) -> "pd.DataFrame":
    """Share of temporal attention in each run that has it, by what is called attention, measured and projected.

    Returns
    -------
    DataFrame
        As `temporal.temporal_readings`, of the stages that were measured, and ``reading``, ``case`` (model,
        kernel), ``machine``, ``dtype``, ``time_kind``; empty without runs.
    """
    import pandas as pd

    parts = [pd.DataFrame(columns=["case", "reading", "machine", "dtype", "time_kind", "share", "total_s"])]
    for run in runs:
        if not (run.table["attention"].astype(str) == "temporal").any():
            continue
        for kind, table, machine, number in _both(run, gpu=gpu, dtype=dtype):
            found = temporal_readings(table).rename_axis("reading").reset_index()
            case = f"{run.asked['model']}, {run.kernel}"
            parts.append(found.assign(case=case, machine=machine, dtype=number, time_kind=kind))
    return pd.concat(parts[1:] or parts, ignore_index=True)[parts[0].columns]


def peak_memory(runs: Sequence["Run"]) -> "pd.DataFrame":
    """Most activation bytes alive in each stage, measured and counted, where every execution takes the same.

    Stages over a growing cache are left out, for the one execution that is measured is not the longest.

    Returns
    -------
    DataFrame
        ``model``, ``stage``, ``kernel``, ``machine``, ``dtype``, ``measured_bytes``, ``counted_bytes``, and
        ``similarity_bytes``: the largest similarity matrix of one call; empty without runs.
    """
    import pandas as pd

    from mmchar.counting.operator_table import count
    from mmchar.counting.seqlen import similarity_memory
    from mmchar.request import from_mapping

    columns = ["model", "stage", "kernel", "machine", "dtype", "measured_bytes", "counted_bytes", "similarity_bytes"]
    rows = []
    for run in runs:
        name, request, tiny = run.asked["model"], from_mapping(run.asked["request"]), run.asked["tiny"]
        table = use_backend(count(name, request, dtype=run.asked["dtype"], tiny=tiny), run.kernel)
        matrix = similarity_memory(table, ITEM_BYTES[run.asked["dtype"]])
        for stage, here in table.groupby(table["stage"].astype(str), sort=False):
            memory = run.facts["memory"].get(stage)
            if here["step"].max() > 0 or not memory:
                continue
            counted = (int(here["live_bytes"].max()), int(matrix[here.index].max()))
            setting = (name, stage, run.kernel, run.machine, run.asked["dtype"])
            rows.append((*setting, memory["peak_bytes"], *counted))
    return pd.DataFrame(rows, columns=columns)


def _both(run: "Run", *, gpu: str, dtype: str) -> "Iterator[tuple[str, pd.DataFrame, str, str]]":
    """Measured and projected: what the time is, the operator table, the machine, the number type."""
    yield "measured", run.table, run.machine, run.asked["dtype"]
    timed = project_like(run, gpu=gpu, dtype=dtype)
    yield "projected", timed, timed.attrs["gpu"], timed.attrs["dtype"]


def _pairs(runs: Sequence["Run"]) -> "list[tuple[Run, Run]]":
    """An eager and a fused run each of the same machine, model, request, number type and stages."""

    def same(run: "Run") -> tuple[Any, ...]:
        asked = run.asked
        return run.machine, asked["model"], str(asked["request"]), asked["dtype"], run.stages, str(asked["levers"])

    eager = {same(run): run for run in runs if run.asked["attention"] == "eager"}
    fused = [run for run in runs if run.asked["attention"] == "flash" and same(run) in eager]
    return [(eager[same(run)], run) for run in fused]


def _gains(tables: "Sequence[pd.DataFrame]", whole: "Sequence[pd.Series]") -> "pd.DataFrame":
    cores = [table[table["attention"].astype(str) != ""] for table in tables]
    found = compare_attention(cores[0], cores[1], ["stage", "attention", "q_len"])
    return found.assign(stage_gain=found["stage"].map(whole[0] / whole[1]))
