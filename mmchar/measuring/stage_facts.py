"""What one stage's passes add to its time: rows by kernel name, idle time, memory, energy, coverage, and doubts."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from mmchar.measuring.energy import Counter, run_energy
from mmchar.measuring.idle import LAUNCH_BOUND, idle_facts
from mmchar.measuring.kernels import Kernel, kernel_category, kernel_name, run_kernels
from mmchar.measuring.memory import run_memory
from mmchar.measuring.timing import WIDE, Measurement, Profile, Work

COVERED = 0.95  # share of the operators' time that must be in rows known by operator, module or kernel name
_DISTURBED = 1.5  # operators that took this much longer under the profiler than a whole run without it were not alone
_NAMES = (("flash_attn", "flash-attn"), ("cudnn", "cudnn"), ("flash", "flash"), ("fmha", "mem-efficient"))


def kernel_profiles(passes: list[list[Kernel]], *, on_gpu: bool) -> list[Profile]:
    """Profiles of executions whose kernels are told apart by name only: the same rows in all, in order of first use.

    What the name of a kernel does not tell the category of is in ``other_s``.
    """
    from mmchar.tracing.trace import Row

    spent: list[dict[tuple[str, str], list[float]]] = []
    for kernels in passes:
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for kernel in kernels:
            found[kernel_name(kernel.name), kernel_category(kernel.name)].append(kernel.end_s - kernel.start_s)
        spent.append(found)
    sites = [site for site in dict.fromkeys(site for each in spent for site in each) if site[1] != "Uncounted"]
    rows = [Row("", "kernel", *site, calls=len(spent[0].get(site, ()))) for site in sites]
    ran = [_backend(name) if category == "Attention" else "" for name, category in sites]
    profiles = []
    for each, kernels in zip(spent, passes, strict=True):
        launched = [len(each.get(site, ())) * on_gpu for site in sites]
        unknown = [seconds for (_, category), found in each.items() if category == "Uncounted" for seconds in found]
        span = max((k.end_s for k in kernels), default=0.0) - min((k.start_s for k in kernels), default=0.0)
        times = [sum(each.get(site, ())) for site in sites]
        profiles.append(Profile(rows, times, launched, ran, sum(unknown), span, other_kernels=len(unknown) * on_gpu))
    return profiles


def _backend(name: str) -> str:
    return next((backend for part, backend in _NAMES if part in name.lower()), "")


def run_extras(
    prepare: Callable[[], Work],
    device: str,
    *,
    median_s: float,
    most: int,
    counter: Counter | None,
    passes: list[list[Kernel]] | None = None,
    anew: bool = False,
) -> dict[str, Any]:
    """Idle time, memory and energy of one execution, each from a pass of its own; None where there is none. And doubts.

    Parameters
    ----------
    median_s : float
        Seconds of one execution, as timed.
    most : int
        Executions that may follow each other on the same inputs: those that a KV cache has room for.
    passes : list of list of Kernel, optional
        The kernels of executions that were recorded already.
    anew : bool
        Whether every execution needs arguments of its own, as one that fills a cache which has to be empty.
    """
    idle, doubts = None, []
    if device.startswith("cuda"):
        try:
            idle = idle_facts(passes or [run_kernels(prepare(), device) for _ in range(3)])
        except RuntimeError as error:
            doubts.append(f"idle time is not known: {' '.join(str(error).split())[:200]}")
    memory = run_memory(prepare(), device)
    energy = None
    if counter:
        work = (lambda: prepare()()) if anew else prepare()
        energy = run_energy(work, device, expected_s=median_s, counter=counter, most=most)
    return {"idle_share": idle and idle["share"], "idle": idle, "memory": memory, "energy_j": energy, "doubts": doubts}


def stage_facts(
    timed: Measurement, profiles: list[Profile], extras: dict[str, Any] | None = None, *, attention: str = "flash"
) -> dict[str, Any]:
    """Samples, statistics, coverage and doubts of one stage, with what its other passes found."""
    extras = extras or {}
    in_rows, free, unknown = (statistics.median(column) for column in zip(*map(_parts, profiles), strict=True))
    everything = in_rows + free + unknown
    spans = [one.span_s for one in profiles if one.span_s is not None]
    covered = (in_rows + free) / everything if everything else 0.0
    return {
        "samples": list(timed.samples_s),
        "median_s": timed.median_s,
        "iqr_s": timed.iqr_s if timed.n > 1 else None,
        "span_s": statistics.median(spans) if spans else None,
        "coverage": {"of_operators": covered, "of_run": (in_rows + free) / timed.median_s},
        **{"idle_share": None, "idle": None, "memory": None, "energy_j": None, **extras},
        "doubts": [
            *_doubts(timed, profiles, in_rows, covered, extras.get("idle"), attention),
            *(f"{timed.label}: {doubt}" for doubt in extras.get("doubts", ())),
        ],
    }


def _parts(one: Profile) -> tuple[float, float, float]:
    return sum(one.time_s), one.free_s, one.other_s


def _doubts(
    timed: Measurement, profiles: list[Profile], in_rows: float, covered: float, idle: dict | None, attention: str
) -> list[str]:
    doubts = [] if timed.spread <= WIDE else [repr(timed)]  # NaN, of a single sample, is a doubt too
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
    return doubts
