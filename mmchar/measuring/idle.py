"""Idle time of a GPU: the share of an execution's span in which no kernel runs."""

import statistics
from collections.abc import Iterable
from typing import Any

from mmchar.measuring.kernels import Kernel

# Above this share the host, which launches the kernels, and not the GPU sets the time: with a third of the span empty,
# faster kernels would give at most the other two thirds. It is our choice, not a published number.
LAUNCH_BOUND = 0.3


def busy_s(kernels: Iterable[Kernel]) -> float:
    """Seconds in which at least one kernel runs: the length of the union of their intervals."""
    total, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda each: each.start_s):
        total += max(0.0, kernel.end_s - max(kernel.start_s, until))
        until = max(until, kernel.end_s)
    return total


def span_s(kernels: Iterable[Kernel]) -> float:
    """Seconds from the start of the first kernel to the end of the last."""
    kernels = list(kernels)
    return max(each.end_s for each in kernels) - min(each.start_s for each in kernels)


def idle_share(kernels: Iterable[Kernel]) -> float | None:
    """Share of the span, 0 to 1, in which no kernel runs; None where there is no kernel, as on a CPU."""
    kernels = list(kernels)
    span = span_s(kernels) if kernels else 0.0
    return 1 - busy_s(kernels) / span if span > 0 else None


def idle_facts(executions: list[list[Kernel]]) -> dict[str, Any] | None:
    """Idle time of one stage from the kernels of several of its executions; None where none launched a kernel.

    Returns
    -------
    dict
        ``share`` (the median), ``steps`` (of every execution), ``busy_s``, ``span_s`` (medians), ``kernels`` (of the
        first execution) and ``launch_bound``: whether the share is above `LAUNCH_BOUND`.
    """
    steps = [share for each in executions if (share := idle_share(each)) is not None]
    if not steps:
        return None
    share = statistics.median(steps)
    return {
        "share": share,
        "steps": steps,
        "busy_s": statistics.median(busy_s(each) for each in executions),
        "span_s": statistics.median(span_s(each) for each in executions),
        "kernels": len(executions[0]),
        "launch_bound": share > LAUNCH_BOUND,
    }
