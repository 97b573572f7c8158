"""Memory of one execution: its peak, and how it rises and falls, from every allocation that the allocator reports."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.autograd import DeviceType

from mmchar.measuring.kernels import profiler

MOST_POINTS = 200  # of a timeline; between them only the highest is kept


def run_memory(work: Callable[[], Any], device: str) -> dict[str, Any]:
    """Bytes that one execution allocates beyond what is there when it starts (weights, inputs, a filled cache).

    Returns
    -------
    dict
        ``peak_bytes``, the most alive at once; ``reserved_bytes``, what PyTorch's allocator then holds of a GPU,
        weights and inputs included (None on a CPU); ``allocated_bytes``, what is alive when it starts (None on a CPU,
        which does not tell); ``timeline``, as ``time_s`` since the first allocation and ``bytes``.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with torch.inference_mode(), profiler(device, profile_memory=True) as seen:
        _output = work()
        if on_gpu:
            torch.cuda.synchronize(device)
    times, alive = timeline(_allocations(seen, on_gpu))
    facts = {"peak_bytes": max(alive, default=0), "reserved_bytes": None, "allocated_bytes": None}
    if on_gpu:
        facts = {"peak_bytes": torch.cuda.max_memory_allocated(device) - before, "allocated_bytes": before}
        facts["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return {**facts, "timeline": {"time_s": times, "bytes": alive}}


def timeline(changes: Sequence[tuple[float, int]], most: int = MOST_POINTS) -> tuple[list[float], list[int]]:
    """Seconds since the first change, and bytes alive from then on, from ``(seconds, bytes)`` of each change.

    What was there before may be freed, so bytes can fall below 0. At most about ``most`` points are kept: of each part
    of the timeline the highest, so that the peak stays.
    """
    changes = sorted(changes, key=lambda change: change[0])
    points = list(zip((at for at, _ in changes), accumulate(size for _, size in changes), strict=True))
    part = -(-len(points) // most) or 1
    kept = [max(points[start : start + part], key=lambda p: p[1]) for start in range(0, len(points), part)]
    return [at - points[0][0] for at, _ in kept], [size for _, size in kept]


def _allocations(seen: Any, on_gpu: bool) -> list[tuple[float, int]]:
    where = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        (event.start_ns() / 1e9, event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == where
    ]
