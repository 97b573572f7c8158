"""Which kernels ran and when, from a profiler pass that records nothing else, and how long the GPU was idle meanwhile.

With only the GPU's activities recorded, and no tracer, the host is slowed by about a microsecond per launch; this is
the pass from which idle time is read, and the one that attributes compiled executions, by the names of their kernels.
"""

import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Above this share the host, which launches the kernels, and not the GPU sets the time: with a third of the span empty,
# faster kernels would give at most the other two thirds. It is our choice, not a published number.
LAUNCH_BOUND = 0.3
_HEAD = "spin_kernel"  # what torch.cuda._sleep launches, and no model does
_sessions = itertools.count(1)  # of this process


class Kernel(NamedTuple):
    """One kernel or copy: its name, and when it started and ended, in seconds of one clock."""

    name: str
    start_s: float
    end_s: float


def profiler(device: str, *, operators: bool = True, **options: Any) -> profile:
    """PyTorch's profiler, of a CPU's operators, or of a GPU's kernels and, with ``operators``, what launches them."""
    on_gpu = device.startswith("cuda")
    if not on_gpu:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines on stderr per pass otherwise
    host = operators or not on_gpu
    return profile(activities=[ProfilerActivity.CPU] * host + [ProfilerActivity.CUDA] * on_gpu, **options)


def run_kernels(work: Callable[[], Any], device: str) -> list[Kernel]:
    """The kernels of one execution, in order of their start; on a CPU its outermost operators and compiled loops."""
    on_gpu = device.startswith("cuda")
    with torch.inference_mode(), profiler(device, operators=False) as seen:
        if on_gpu:
            launch_head(device)
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    counts = _of_gpu if on_gpu else _of_cpu
    found = [
        Kernel(event.name(), event.start_ns() / 1e9, event.end_ns() / 1e9)
        for event in seen.profiler.kineto_results.events()
        if counts(event)
    ]
    found.sort(key=lambda kernel: (kernel.start_s, -kernel.end_s))
    return without_head(found) if on_gpu else _outermost(found)


def launch_head(device: str) -> None:
    """Launch the kernels that a profiling session may lose, and wait for them.

    CUPTI of CUDA 12.6 to 13.0 gives wrong times to the first k kernels of the k-th session of a process, and Kineto
    drops them without a word (pytorch issue 192021; fixed in CUDA 13.1). So each session starts with more than that of
    a kernel of another name; where none of it is seen, what follows is not complete either.
    """
    with torch.cuda.device(device):
        for _ in range(100 + 10 * next(_sessions)):
            torch.cuda._sleep(1)
        torch.cuda.synchronize()


def without_head(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that follow those of `launch_head`; a RuntimeError where nothing of the head, or nothing else, is."""
    found = [kernel for kernel in kernels if _HEAD not in kernel.name]
    if not found:
        raise RuntimeError("the profiler saw no GPU kernel; is another profiler attached, or CUPTI missing?")
    if len(found) == len(kernels):
        raise RuntimeError("the profiler lost the first GPU kernels of its session, so it may have lost more")
    return found


def _of_gpu(event: Any) -> bool:
    return event.device_type() == DeviceType.CUDA and not event.is_user_annotation()


def _of_cpu(event: Any) -> bool:
    return event.name().startswith("aten::") or "cpp_fused" in event.name()


def _outermost(events: Sequence[Kernel]) -> list[Kernel]:
    """Those that lie in no other; the events are ordered by start, the longer first."""
    kept: list[Kernel] = []
    for event in events:
        if not kept or event.end_s > kept[-1].end_s:
            kept.append(event)
    return kept


def busy_s(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel runs: the length of the union of their intervals."""
    total, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda each: each.start_s):
        total += max(0.0, kernel.end_s - max(kernel.start_s, until))
        until = max(until, kernel.end_s)
    return total


def span_s(kernels: Sequence[Kernel]) -> float:
    """Seconds from the start of the first kernel to the end of the last; 0 where there is none."""
    return max((each.end_s for each in kernels), default=0.0) - min((each.start_s for each in kernels), default=0.0)


def idle_share(kernels: Sequence[Kernel]) -> float | None:
    """Share of the span, 0 to 1, in which no kernel runs; None where there is no kernel, as on a CPU."""
    span = span_s(kernels)
    return 1 - busy_s(kernels) / span if span > 0 else None


def idle_facts(executions: list[list[Kernel]]) -> dict[str, Any] | None:
    """Idle time of one stage from the kernels of several of its executions; None where none launched a kernel.

    ``share`` is the median of ``steps``, the share of every execution; ``busy_s`` and ``span_s`` are medians,
    ``kernels`` is of the first execution, ``launch_bound`` says whether the share is above `LAUNCH_BOUND`.
    """
    steps = [share for each in executions if (share := idle_share(each)) is not None]
    if not steps:
        return None
    share = statistics.median(steps)
    return {
        "share": share,
        "steps": steps,
        "busy_s": statistics.median(map(busy_s, executions)),
        "span_s": statistics.median(map(span_s, executions)),
        "kernels": len(executions[0]),
        "launch_bound": share > LAUNCH_BOUND,
    }
