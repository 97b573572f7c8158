"""Where the time of one execution went, by row: its operators under tracer and profiler, or its kernels by name.

A profiled execution runs under `trace.trace`, with every operator inside a range that names its row. What tracing and
ranges cost falls between the operators: it is in the profiled span, which is therefore no measure of the execution, and
not in the time of the operators.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent, _filter_name
from torch.profiler import profile, record_function

from mmchar.measuring.kernel_names import kernel_category, kernel_name
from mmchar.measuring.kernels import Kernel, launch_head, profiler, span_s, without_head
from mmchar.measuring.timing import Work, measure_time
from mmchar.tracing.trace import Row, trace

_LABEL = "mmchar#"
_RAN = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "mem-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_attention_math": "math",
    "mmchar::scaled_dot_product_attention": "flash-attn",
}
_KERNELS = (
    ("flash_attn", "flash-attn"),
    ("cudnn", "cudnn"),
    ("flash", "flash"),
    ("fmha", "mem-efficient"),
    ("attn_fwd", "flash"),  # of AOTriton, on AMD
)


@dataclass(frozen=True)
class Profile:
    """One profiled execution: the traced rows, and per row its seconds, kernels and attention backend.

    ``free_s`` is the time of operators without a row because they move no data (views, allocations; on a CPU),
    ``other_s`` that of what nothing is known of, in ``other_kernels`` kernels; ``span_s`` that of the whole execution
    with tracer and profiler on (None where the profiler failed). Without a tracer a row is what runs under one name.
    """

    rows: list[Row]
    time_s: list[float]
    kernels: list[int]
    ran: list[str]
    other_s: float
    span_s: float | None
    free_s: float = 0.0
    other_kernels: int = 0


def profile_once(module: Any, work: Work, device: str) -> Profile:
    """One execution under tracer and profiler, with the time of every operator put into its row."""
    on_gpu = device.startswith("cuda")
    kept: dict[str, Any] = {}

    def traced() -> None:
        kept["rows"] = trace(module, work, label=lambda row: record_function(f"{_LABEL}{row}"))

    with profiler(device) as seen:
        if on_gpu:
            launch_head(device)
        span = measure_time(lambda: traced, device=device, warmup=0, samples=1)
    if on_gpu:
        return gpu_profile(kept["rows"], seen.events(), span.median_s)
    return cpu_profile(kept["rows"], _named_and_nested(seen), span.median_s)


def _named_and_nested(seen: profile) -> EventList:
    """The events of a CPU as ``seen.events()`` has them, with no more than names, times and nesting.

    The profiler reads two dozen other properties of each, which takes longer than what is profiled.
    """
    found: Any = seen.profiler.kineto_results
    began_ns = found.trace_start_ns()
    events = EventList(
        FunctionEvent(
            id=event.correlation_id(),
            name=event.name(),
            thread=event.start_thread_id(),
            start_us=(event.start_ns() - began_ns) / 1000,
            end_us=(event.end_ns() - began_ns) / 1000,
            is_async=event.is_async() or event.start_thread_id() != event.end_thread_id(),
            device_type=event.device_type(),
        )
        for event in found.events()
        if not _filter_name(event.name())
    )
    events._build_tree()
    return events


def cpu_profile(rows: list[Row], events: Any, spent_s: float) -> Profile:
    """The profile of one execution on a CPU, from the profiler's events.

    The operators of a row are the direct children of its ranges. A dispatch mode makes every operator appear twice, as
    the call that was caught and, inside, as the one that ran; without a range around it that is a free one. What runs
    without having been caught is unseen.
    """
    time_s, ran, beside = [0.0] * len(rows), [""] * len(rows), {"free": 0.0, "unseen": 0.0, "": 0.0}
    for event in events:
        row = _row_of(event)
        if row is None:
            beside[_beside(event)] += event.time_range.elapsed_us() / 1e6
            continue
        time_s[row] += sum(inner.time_range.elapsed_us() for inner in event.cpu_children) / 1e6
        ran[row] = ran[row] or _backend(event)
    return Profile(rows, time_s, [0] * len(rows), ran, beside["unseen"], spent_s, free_s=beside["free"])


def gpu_profile(rows: list[Row], events: Any, spent_s: float) -> Profile:
    """The profile of one execution on a GPU: of each row the kernels (copies too) that were launched in its ranges.

    It is a RuntimeError where the profiler saw no kernels, or not all (`kernels.without_head`).
    """
    time_s, kernels, ran = [0.0] * len(rows), [0] * len(rows), [""] * len(rows)
    for event in events:
        row = _row_of(event)
        if row is None:
            continue
        for inner in (event, *_inside(event)):
            own = [kernel for kernel in inner.kernels if not kernel.name.startswith(_LABEL)]  # not the range itself
            time_s[row] += sum(kernel.duration for kernel in own) / 1e6
            kernels[row] += len(own)
        ran[row] = ran[row] or _backend(event)
    found = [Kernel(event.name, 0.0, event.time_range.elapsed_us() / 1e6) for event in events if _is_kernel(event)]
    every = [kernel.end_s for kernel in without_head(found)]
    other_s, others = max(0.0, sum(every) - sum(time_s)), max(0, len(every) - sum(kernels))
    return Profile(rows, time_s, kernels, ran, other_s, spent_s, other_kernels=others)


def kernel_profiles(passes: list[list[Kernel]], *, on_gpu: bool) -> list[Profile]:
    """Profiles of executions whose kernels are told apart by name only: the same rows in all, in order of first use.

    What the name of a kernel does not tell the category of is in ``other_s``.
    """
    spent = [_by_site(kernels) for kernels in passes]
    unknown = [found.pop(("", "Uncounted"), []) for found in spent]
    sites = list(dict.fromkeys(site for found in spent for site in found))
    rows = [Row("", "kernel", *site, calls=len(spent[0].get(site, ()))) for site in sites]
    ran = [ran_by(name) if category == "Attention" else "" for name, category in sites]
    profiles = []
    for kernels, found, others in zip(passes, spent, unknown, strict=True):
        times = [sum(found.get(site, ())) for site in sites]
        launched = [len(found.get(site, ())) * on_gpu for site in sites]
        unseen = len(others) * on_gpu
        profiles.append(Profile(rows, times, launched, ran, sum(others), span_s(kernels), other_kernels=unseen))
    return profiles


def _by_site(kernels: list[Kernel]) -> dict[tuple[str, str], list[float]]:
    """Seconds of each kernel by name and category; those of no category under no name."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in kernels:
        category = kernel_category(kernel.name)
        name = "" if category == "Uncounted" else kernel_name(kernel.name)
        found[name, category].append(kernel.end_s - kernel.start_s)
    return found


def ran_by(name: str) -> str:
    """The backend of attention whose kernel has this name, or ""."""
    return next((backend for part, backend in _KERNELS if part in name.lower()), "")


def _row_of(event: Any) -> int | None:
    """The row that a range names, on the side of the host (the GPU shows the range once more)."""
    if not event.name.startswith(_LABEL) or event.device_type != DeviceType.CPU:
        return None
    return int(event.name.removeprefix(_LABEL))


def _inside(event: Any) -> Iterator[Any]:
    for inner in event.cpu_children:
        yield inner
        yield from _inside(inner)


def _around(event: Any) -> Iterator[Any]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def _backend(event: Any) -> str:
    return next((_RAN[inner.name] for inner in _inside(event) if inner.name in _RAN), "")


def _beside(event: Any) -> str:
    """What an operator outside of all ranges is: ``free``, ``unseen``, or "" for a part of another one.

    A free one is the inner of two events of one operator that the dispatch mode let through without a range; an unseen
    one is an outermost operator that no dispatch mode caught.
    """
    above = [outer.name for outer in _around(event)]
    if not event.name.startswith("aten::") or any(name.startswith(_LABEL) for name in above):
        return ""
    outer = next((name for name in above if name.startswith("aten::")), None)
    if outer is not None:
        return "free" if outer == event.name else ""
    caught = any(inner.name.startswith((_LABEL, "PythonDispatchMode")) for inner in _inside(event))
    return "" if caught else "unseen"


def _is_kernel(event: Any) -> bool:
    return event.device_type == DeviceType.CUDA and not event.name.startswith(_LABEL)
