"""One stage on a real device: timed, profiled, and run once more for each fact that a pass of its own tells."""

import statistics
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
import torch

from mmchar.counting import operator_table as counting
from mmchar.faults import text_of
from mmchar.generation.recording import Stage
from mmchar.measuring.energy import Counter, run_energy
from mmchar.measuring.kernels import LAUNCH_BOUND, Kernel, idle_facts, run_kernels
from mmchar.measuring.memory import run_memory
from mmchar.measuring.operator_times import Profile, kernel_profiles, profile_once
from mmchar.measuring.optimization.backends import any_kernel
from mmchar.measuring.optimization.chosen_stages import decodes
from mmchar.measuring.optimization.cuda_graphs import SETTLE
from mmchar.measuring.optimization.execution import compiling, preparer
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.speculation import measure_speculation
from mmchar.measuring.target import Settings
from mmchar.measuring.timing import Measurement, Work, measure_time
from mmchar.models.specs import Model
from mmchar.tracing.trace import Row

_Found = TypeVar("_Found")
_NO_KERNEL = "No available kernel"  # how PyTorch says that no attention backend allowed takes a call
PROFILED_PASSES = 3  # a row's time is its median over this many profiled executions
COVERED = 0.95  # share of the operators' time that must be in rows known by operator, module or kernel name
_DISTURBED = 1.5  # operators that took this much longer under the profiler than a whole run without it were not alone
_SHORT_S = 1.0  # a longer execution is profiled no more often than it is timed


def time_stage(model: Model, stage: Stage, settings: Settings) -> Measurement:
    """The timing of one stage alone, in a process that may not have profiled yet.

    Kineto leaves CUPTI attached when a session ends (pytorch issue 144455), and each launch is slower from then on.
    """
    stage = stage.at(middle_step(stage))
    prepare = preparer(model, stage, settings.levers)
    return _run(model, stage, settings.attention, lambda: _time(model, stage, prepare, settings))


def measure_stage(
    model: Model, stage: Stage, settings: Settings, counter: Counter | None = None, timed: Measurement | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and facts of one stage, all from the same inputs, compiled or captured once; it may have been timed before.

    What a GPU's profiler fails at is a doubt, and costs no timing: rows that are not known are one, unattributed.
    """
    levers, stage = settings.levers, stage.at(middle_step(stage))
    prepare = preparer(model, stage, levers)

    def run() -> tuple[pd.DataFrame, dict[str, Any]]:
        took = timed or _time(model, stage, prepare, settings)
        speculation, doubts, kernels = None, [], None
        if levers.layer_skip and decodes(stage):
            speculation = measure_speculation(model, stage, settings)
        try:
            profiles, kernels = _profile(model, stage, prepare, levers, _passes(took))
        except RuntimeError as error:
            if not model.device.startswith("cuda") or _NO_KERNEL in str(error):
                raise
            doubts.append(f"not profiled, so its time is in no row: {_reason(error)}")
            profiles = [Profile([], [], [], [], took.median_s, None)]
        extras = _extras(prepare, stage, model.device, median_s=took.median_s, counter=counter, passes=kernels)
        extras["doubts"] = doubts + extras["doubts"]
        facts = stage_facts(took, profiles, extras, settings.attention)
        return _stage_rows(model, stage, profiles), {**facts, "speculation": speculation}

    with compiling(levers) as compiled:
        table, facts = _run(model, stage, settings.attention, run)
    return table, {**facts, "compiled": dict(compiled)}


def _time(model: Model, stage: Stage, prepare: Callable[[], Work], settings: Settings) -> Measurement:
    warmup = max(settings.warmup, SETTLE if settings.levers.settles else 0)
    name = f"{model.spec.name} {stage.name}"
    return measure_time(prepare, device=model.device, samples=settings.samples, warmup=warmup, label=name)


def _passes(timed: Measurement) -> int:
    """Profiled executions: one alone may be interrupted, so short work is always run several times."""
    return PROFILED_PASSES if timed.median_s < _SHORT_S else min(timed.n, PROFILED_PASSES)


def _profile(
    model: Model, stage: Stage, prepare: Callable[[], Work], levers: Levers, times: int
) -> tuple[list[Profile], list[list[Kernel]] | None]:
    """Profiled executions, and the kernels of those that are told apart by nothing else."""
    if not levers.by_kernel_name:
        module = model.components[stage.component]
        return [profile_once(module, prepare(), model.device) for _ in range(times)], None
    kernels = [run_kernels(prepare(), model.device) for _ in range(times)]
    return kernel_profiles(kernels, on_gpu=model.device.startswith("cuda")), kernels


def _run(model: Model, stage: Stage, attention: str, run: Callable[[], _Found]) -> _Found:
    """What a run finds; an error says which stage failed, and with which shapes."""
    try:
        return with_any_kernel(attention, run)
    except RuntimeError as error:
        size = ", ".join(f"{key} {value}" for key, value in stage.sizes.items())
        name = f"{model.spec.name} {stage.name}"
        raise ValueError(f"{name} failed on {model.device} in {model.dtype} ({size}): {_reason(error)}") from error


def with_any_kernel(attention: str, run: Callable[[], _Found]) -> _Found:
    """What a run finds; with ``flash``, once more with the math path where no fused kernel takes an attention call."""
    with torch.inference_mode():
        try:
            return run()
        except RuntimeError as error:
            if attention != "flash" or _NO_KERNEL not in str(error):
                raise
        with any_kernel():  # a few models attend without a heads dimension
            return run()


def _reason(error: RuntimeError) -> str:
    text = text_of(error, most=200)
    return f"out of memory; use a smaller request or dtype ({text})" if "memory" in text else text


def middle_step(stage: Stage) -> int:
    """The step that a stage is measured at: the middle of those that a KV cache makes different, by length."""
    return _middle(stage)[0]


def _middle(stage: Stage) -> tuple[int, int]:
    """The execution of middle length, and how many are shorter: the step by which the operator table knows it.

    Where two texts are decoded one after the other, the two differ.
    """
    if stage.growth is None:
        return 0, 0
    lengths = sorted(stage.growth.dims)
    middle = lengths[stage.repeats // 2]
    return stage.growth.dims.index(middle), lengths.index(middle)


def _extras(
    prepare: Callable[[], Work],
    stage: Stage,
    device: str,
    *,
    median_s: float,
    counter: Counter | None,
    passes: list[list[Kernel]] | None,
) -> dict[str, Any]:
    """Idle time, memory and energy of one execution, each from a pass of its own; None where there is none. And doubts.

    ``passes`` are the kernels of executions that were recorded already.
    """
    idle, energy, doubts = None, None, []
    if device.startswith("cuda"):
        try:
            idle = idle_facts(passes or [run_kernels(prepare(), device) for _ in range(3)])
        except RuntimeError as error:
            doubts.append(f"idle time is not known: {text_of(error, most=200)}")
    memory = run_memory(prepare(), device)
    if counter:
        fills = not stage.grows and stage.call.cache is not None  # a cache that the next one has to find as it was
        work = (lambda: prepare()()) if fills else prepare()
        most = stage.repeats if stage.grows else sys.maxsize  # a cache that grows has room for no more
        energy = run_energy(work, device, expected_s=median_s, counter=counter, most=most)
    return {"idle_share": idle and idle["share"], "idle": idle, "memory": memory, "energy_j": energy, "doubts": doubts}


def stage_facts(timed: Measurement, profiles: list[Profile], extras: dict[str, Any], attention: str) -> dict[str, Any]:
    """Samples, statistics, coverage and doubts of one stage, with what its other passes found."""
    in_rows = statistics.median(sum(one.time_s) for one in profiles)
    known = in_rows + statistics.median(one.free_s for one in profiles)
    everything = known + statistics.median(one.other_s for one in profiles)
    spans = [one.span_s for one in profiles if one.span_s is not None]
    covered = known / everything if everything else 0.0
    idle, doubts = extras["idle"], timed.doubts
    if in_rows > _DISTURBED * timed.median_s:
        doubts.append(f"{timed.label}: its operators took {in_rows / timed.median_s:.1f}x as long under the profiler")
    if covered < COVERED:
        doubts.append(f"{timed.label}: only {covered:.0%} of its operators' time could be attributed")
    unfused = profiles[0].ran.count("math") if attention not in ("eager", "math") else 0
    if unfused:
        doubts.append(f"{timed.label}: no fused kernel takes the attention of {unfused} rows; the math path ran")
    if idle and idle["launch_bound"]:
        idles = f"the GPU is idle for {idle['share']:.0%} of the span"
        doubts.append(f"{timed.label}: launch bound, {idles} (above {LAUNCH_BOUND:.0%})")
    return {
        **timed.facts(),
        "span_s": statistics.median(spans) if spans else None,
        "coverage": {"of_operators": covered, "of_run": known / timed.median_s},
        **extras,
        "doubts": doubts + [f"{timed.label}: {doubt}" for doubt in extras["doubts"]],
    }


def _stage_rows(model: Model, stage: Stage, profiles: list[Profile]) -> pd.DataFrame:
    """The rows of one stage with their median times, and a row each for what is free and for what is unattributed."""
    first = profiles[0]
    if any(one.rows != first.rows for one in profiles):
        raise ValueError(f"{model.spec.name} {stage.name}: two executions called different operators")
    rows, kernels, ran = list(first.rows), list(first.kernels), list(first.ran)
    times = [statistics.median(each) for each in zip(*(one.time_s for one in profiles), strict=True)]
    free_s = statistics.median(one.free_s for one in profiles)
    other_s = statistics.median(one.other_s for one in profiles)
    other = "unattributed kernels" if model.device.startswith("cuda") else "unattributed operators"
    for row, spent_s, launched in (
        (Row("", "", "views and allocations", "Data movement"), free_s, 0),
        (Row("", "", other, "Uncounted"), other_s, first.other_kernels),
    ):
        if spent_s:
            rows.append(row)
            times, kernels, ran = [*times, spent_s], [*kernels, launched], [*ran, ""]
    frame = counting.rows_frame(rows).assign(step=_middle(stage)[1], repeats=stage.repeats)
    measured = {"time_s": times, "time_kind": "measured", "kernels": kernels, "ran": ran}
    return counting.stage_table(frame, model, stage).assign(**measured)
