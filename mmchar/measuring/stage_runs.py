"""One stage on a real device: timed, profiled, and run once more for each fact that a pass of its own tells."""

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from mmchar.counting import operator_table as counting
from mmchar.measuring.energy import Counter
from mmchar.measuring.kernels import run_kernels
from mmchar.measuring.optimization.backends import any_kernel
from mmchar.measuring.optimization.execution import by_kernel_name, compiling, preparer, settle
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.speculation import decodes, measure_speculation
from mmchar.measuring.stage_facts import kernel_profiles, run_extras, stage_facts
from mmchar.measuring.timing import Measurement, Profile, Work, measure_time, profile_once
from mmchar.models.loading import Model

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

_Found = TypeVar("_Found")
_NO_KERNEL = "No available kernel"  # how PyTorch says that no attention backend allowed takes a call
PROFILED_PASSES = 3  # a row's time is its median over this many profiled executions
_SHORT_S = 1.0  # a longer execution is profiled no more often than it is timed


def measure_stage(
    model: Model, stage: "Stage", *, samples: int, warmup: int, attention: str = "flash", levers: Levers | None = None
) -> tuple[Measurement, list[Profile]]:
    """The timing of one stage without a profiler, and its profiled executions; a growing stage at its middle step."""
    levers, middle = levers or Levers(), stage.at(middle_step(stage))
    prepare = preparer(model, middle, levers)

    def run() -> tuple[Measurement, list[Profile]]:
        timed = _time(model, stage, prepare, samples=samples, warmup=settle(levers, warmup))
        return timed, _profile(model, middle, prepare, levers, _passes(timed))[0]

    return _run(model, middle, attention, run)


def time_stage(
    model: Model, stage: "Stage", levers: Levers, attention: str, *, samples: int, warmup: int
) -> Measurement:
    """The timing of one stage alone, in a process that may not have profiled yet.

    Kineto leaves CUPTI attached when a session ends (pytorch issue 144455), and each launch is slower from then on.
    """
    middle = stage.at(middle_step(stage))
    prepare = preparer(model, middle, levers)
    return _run(model, middle, attention, lambda: _time(model, stage, prepare, samples=samples, warmup=warmup))


def measure_fully(
    model: Model,
    stage: "Stage",
    levers: Levers,
    attention: str,
    samples: int,
    warmup: int,
    counter: Counter | None,
    timed: Measurement | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and facts of one stage, all from the same inputs, compiled or captured once.

    What a GPU's profiler fails at is a doubt, and costs no timing: rows that are not known are one, unattributed.
    """
    middle = stage.at(middle_step(stage))
    prepare = preparer(model, middle, levers)
    on_gpu = model.device.startswith("cuda")

    def run(timed: Measurement | None = timed) -> tuple[pd.DataFrame, dict[str, Any]]:
        timed = timed or _time(model, stage, prepare, samples=samples, warmup=settle(levers, warmup))
        speculation, doubts, kernels = None, [], None
        if levers.layer_skip and decodes(stage):
            speculation = measure_speculation(model, middle, levers, samples=samples, warmup=warmup)
        try:
            profiles, kernels = _profile(model, middle, prepare, levers, _passes(timed))
        except RuntimeError as error:
            if not on_gpu or _NO_KERNEL in str(error):
                raise
            doubts.append(f"{timed.label}: not profiled, so its time is in no row: {_reason(error)}")
            profiles = [Profile([], [], [], [], timed.median_s, None)]
        extras = run_extras(
            prepare,
            model.device,
            median_s=timed.median_s,
            most=stage.repeats if stage.grows else sys.maxsize,
            counter=counter,
            passes=kernels,
            anew=_fills(stage),
        )
        facts = stage_facts(timed, profiles, extras, attention=attention)
        facts["doubts"] += doubts
        return _stage_rows(model, stage, profiles), {**facts, "speculation": speculation}

    with compiling(levers) as compiled:
        table, facts = _run(model, middle, attention, run)
    return table, {**facts, "compiled": dict(compiled)}


def _time(model: Model, stage: "Stage", prepare: Callable[[], Work], *, samples: int, warmup: int) -> Measurement:
    name = f"{model.spec.name} {stage.name}"
    return measure_time(prepare, device=model.device, samples=samples, warmup=warmup, label=name)


def _passes(timed: Measurement) -> int:
    """Profiled executions: one alone may be interrupted, so short work is always run several times."""
    return PROFILED_PASSES if timed.median_s < _SHORT_S else min(timed.n, PROFILED_PASSES)


def _profile(
    model: Model, stage: "Stage", prepare: Callable[[], Work], levers: Levers, times: int
) -> tuple[list[Profile], Any]:
    if not by_kernel_name(levers):
        module = model.components[stage.component]
        return [profile_once(module, prepare(), model.device) for _ in range(times)], None
    kernels = [run_kernels(prepare(), model.device) for _ in range(times)]
    return kernel_profiles(kernels, on_gpu=model.device.startswith("cuda")), kernels


def _run(model: Model, stage: "Stage", attention: str, run: Callable[[], _Found]) -> _Found:
    """What a run finds; an error says which stage failed, and with which shapes."""
    try:
        return with_any_kernel(attention, run)
    except RuntimeError as error:
        size = ", ".join(f"{key} {value}" for key, value in stage.sizes.items())
        name = f"{model.spec.name} {stage.name}"
        raise ValueError(f"{name} failed on {model.device} in {model.dtype} ({size}): {_reason(error)}") from error


def with_any_kernel(attention: str, run: Callable[[], _Found]) -> _Found:
    """What a run finds; with ``flash``, once more with the math path where no fused kernel takes an attention call."""
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        try:
            return run()
        except RuntimeError as error:
            if attention != "flash" or _NO_KERNEL not in str(error):
                raise
        stack.enter_context(any_kernel())  # a few models attend without a heads dimension
        return run()


def middle_step(stage: "Stage") -> int:
    """The step that a stage is measured at: the middle of those that a KV cache makes different, by length."""
    return _middle(stage)[0]


def _middle(stage: Any) -> tuple[int, int]:
    """The execution of middle length, and how many are shorter: the step by which the operator table knows it.

    Where two texts are decoded one after the other, the two differ.
    """
    if not stage.grows:
        return 0, 0
    lengths = sorted(stage.growth.dims)
    middle = lengths[stage.repeats // 2]
    return stage.growth.dims.index(middle), lengths.index(middle)


def _fills(stage: Any) -> bool:
    """Whether an execution fills a cache that has to be as it was for the next one."""
    return not stage.grows and stage.call.cache is not None


def _stage_rows(model: Model, stage: Any, profiles: list[Profile]) -> pd.DataFrame:
    """The rows of one stage with their median times, and a row each for what is free and for what is unattributed."""
    from mmchar.tracing.trace import Row

    if any(one.rows != profiles[0].rows for one in profiles):
        raise ValueError(f"{model.spec.name} {stage.name}: two executions called different operators")
    free_s = statistics.median(one.free_s for one in profiles)
    other_s = statistics.median(one.other_s for one in profiles)
    times = [statistics.median(each) for each in zip(*(one.time_s for one in profiles), strict=True)]
    rows, kernels = list(profiles[0].rows), list(profiles[0].kernels)
    on_gpu = model.device.startswith("cuda")
    other = "unattributed kernels" if on_gpu else "unattributed operators"
    for op, category, spent_s, launched in (
        ("views and allocations", "Data movement", free_s, 0),
        (other, "Uncounted", other_s, profiles[0].other_kernels),
    ):
        if spent_s:
            rows.append(Row("", "", op, category))
            times, kernels = [*times, spent_s], [*kernels, launched]
    frame = counting.rows_frame(rows).assign(step=_middle(stage)[1], repeats=stage.repeats)
    return counting.stage_table(frame, model, stage).assign(
        time_s=times,
        time_kind="measured",
        kernels=kernels,
        ran=[*profiles[0].ran, *[""] * (len(rows) - len(profiles[0].ran))],
    )


def _reason(error: RuntimeError) -> str:
    text = " ".join(str(error).split())[:200]
    if "memory" in text:
        return f"out of memory; use a smaller request or dtype ({text})"
    return text
