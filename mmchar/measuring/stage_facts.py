"""What one stage's passes add to its time: idle time, memory, energy, coverage, and doubts."""

import statistics
import sys
from collections.abc import Callable
from typing import Any

from mmchar.generation.faults import text_of
from mmchar.generation.recording import Stage
from mmchar.measuring.energy import Counter, run_energy
from mmchar.measuring.kernels import LAUNCH_BOUND, Kernel, idle_facts, run_kernels
from mmchar.measuring.memory import run_memory
from mmchar.measuring.profiles import Profile
from mmchar.measuring.timing import Measurement, Work

COVERED = 0.95  # share of the operators' time that must be in rows known by operator, module or kernel name
_DISTURBED = 1.5  # operators that took this much longer under the profiler than a whole run without it were not alone


def run_extras(
    prepare: Callable[[], Work],
    stage: Stage,
    device: str,
    *,
    median_s: float,
    counter: Counter | None,
    passes: list[list[Kernel]] | None = None,
) -> dict[str, Any]:
    """Idle time, memory and energy of one execution, each from a pass of its own; None where there is none. And doubts.

    One execution was timed to take ``median_s``; ``passes`` are the kernels of executions that were recorded already.
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


def stage_facts(
    timed: Measurement, profiles: list[Profile], extras: dict[str, Any] | None = None, *, attention: str = "flash"
) -> dict[str, Any]:
    """Samples, statistics, coverage and doubts of one stage, with what its other passes found."""
    found = {"idle_share": None, "idle": None, "memory": None, "energy_j": None, "doubts": [], **(extras or {})}
    in_rows = statistics.median(sum(one.time_s) for one in profiles)
    known = in_rows + statistics.median(one.free_s for one in profiles)
    everything = known + statistics.median(one.other_s for one in profiles)
    spans = [one.span_s for one in profiles if one.span_s is not None]
    covered = known / everything if everything else 0.0
    doubts = list(timed.doubts)
    if in_rows > _DISTURBED * timed.median_s:
        doubts.append(f"{timed.label}: its operators took {in_rows / timed.median_s:.1f}x as long under the profiler")
    if covered < COVERED:
        doubts.append(f"{timed.label}: only {covered:.0%} of its operators' time could be attributed")
    unfused = profiles[0].ran.count("math") if attention not in ("eager", "math") else 0
    if unfused:
        doubts.append(f"{timed.label}: no fused kernel takes the attention of {unfused} rows; the math path ran")
    if found["idle"] and found["idle"]["launch_bound"]:
        idles = f"the GPU is idle for {found['idle']['share']:.0%} of the span"
        doubts.append(f"{timed.label}: launch bound, {idles} (above {LAUNCH_BOUND:.0%})")
    return {
        **timed.facts(),
        "span_s": statistics.median(spans) if spans else None,
        "coverage": {"of_operators": covered, "of_run": known / timed.median_s},
        **found,
        "doubts": doubts + [f"{timed.label}: {doubt}" for doubt in found["doubts"]],
    }
