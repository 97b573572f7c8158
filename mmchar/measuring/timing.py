"""How long one execution takes, by the clock, and each of its operators, by the profiler. Never both in one pass.

A timed region holds the work and nothing else: inputs, and the KV cache that a decode step extends, are made anew for
every sample outside of it. A profiled execution runs under `trace.trace`, with every operator inside a
range that names its row. What tracing and ranges cost falls between the operators: it is in the profiled span, which
is therefore no measure of the execution, and not in the time of the operators.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mmchar.measuring.kernels import Kernel, launch_head, without_head

if TYPE_CHECKING:
    from mmchar.tracing.trace import Row

Work = Callable[[], Any]
MAX_SAMPLES = 1000  # however short the work: beyond this, more samples say nothing new
WIDE = 0.1  # IQR / median above which a median should not be trusted
_LABEL = "mmchar#"
_RAN = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "mem-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_attention_math": "math",
    "mmchar::scaled_dot_product_attention": "flash-attn",
}


@dataclass(frozen=True)
class Measurement:
    """The samples of one timed piece of work, in seconds; its statistics are computed from them.

    Parameters
    ----------
    samples_s : tuple of float
        Seconds of each execution, in the order they ran, without the warm-up.
    warmup : int
        Executions before the first sample.
    device : str
        Where it ran: ``"cpu"``, timed by ``perf_counter``, or ``"cuda"``, timed by events on the GPU.
    label : str
        What was timed.
    """

    samples_s: tuple[float, ...]
    warmup: int
    device: str
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples_s", tuple(float(sample) for sample in self.samples_s))
        if not self.samples_s:
            raise ValueError("a measurement without samples says nothing; give at least one")
        if not all(math.isfinite(sample) and sample >= 0 for sample in self.samples_s):
            raise ValueError(f"samples_s={self.samples_s} are not all seconds of 0 or more")

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median of the samples, in seconds."""
        return statistics.median(self.samples_s)

    @property
    def iqr_s(self) -> float:
        """Distance between the quartiles (linear between samples), in seconds; NaN for a single sample."""
        if self.n == 1:
            return math.nan
        low, _, high = statistics.quantiles(self.samples_s, n=4, method="inclusive")
        return high - low

    @property
    def spread(self) -> float:
        """IQR / median: 0.1 or less is a median to trust; NaN for a single sample."""
        return self.iqr_s / self.median_s if self.median_s else math.nan

    def __repr__(self) -> str:
        text = f"{self.label or 'work'} on {self.device}: median {_seconds(self.median_s)}"
        if self.n == 1:
            return f"{text} (1 sample, spread unknown; WARNING: take more samples)"
        text += f", IQR {_seconds(self.iqr_s)} ({self.n} samples after {self.warmup} warm-up)"
        if self.spread > WIDE:
            text += f"; WARNING: IQR/median is {self.spread:.0%}, above {WIDE:.0%}: is the machine busy?"
        return text


def measure_time(
    prepare: Callable[[], Work],
    *,
    device: str = "cpu",
    warmup: int = 1,
    samples: int = 5,
    min_total_s: float = 0.0,
    label: str = "",
) -> Measurement:
    """Seconds of ``work()``, where ``work = prepare()`` is made anew, untimed, for every warm-up and every sample.

    Runs under ``torch.inference_mode``. On ``"cpu"`` the clock is ``perf_counter``. On ``"cuda"`` two events are
    recorded around the work on an idle GPU, so that waiting for the host to launch kernels is part of the time. The
    attention backend is whatever is chosen outside.

    Parameters
    ----------
    samples : int
        Timed executions, at least.
    min_total_s : float
        Keep sampling until the samples sum to this many seconds (at most 1000 samples), for work of microseconds.

    Raises
    ------
    ValueError
        A device that is neither ``cpu`` nor ``cuda``, or counts below what makes sense.
    """
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"cannot measure time on device {device!r}; choose cpu or cuda")
    if samples < 1 or warmup < 0:
        raise ValueError(f"samples={samples}, warmup={warmup} is not possible; give at least 1 sample and 0 warm-ups")
    import torch

    sample = _sample_cpu if kind == "cpu" else _sample_cuda
    with torch.inference_mode():
        for _ in range(warmup):
            sample(prepare(), device)
        taken: list[float] = []
        while len(taken) < samples or (sum(taken) < min_total_s and len(taken) < MAX_SAMPLES):
            taken.append(sample(prepare(), device))
    return Measurement(tuple(taken), warmup, device, label)


def _sample_cpu(work: Work, _device: str) -> float:
    start = perf_counter()
    _output = work()  # freeing the output is not the work
    stop = perf_counter()
    return stop - start


def _sample_cuda(work: Work, device: str) -> float:
    import torch

    with torch.cuda.device(device):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        _output = work()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3  # elapsed_time is in milliseconds


@dataclass(frozen=True)
class Profile:
    """One profiled execution: the traced rows, and per row its seconds, kernels and attention backend.

    ``free_s`` is the time of operators without a row because they move no data (views, allocations; on a CPU),
    ``other_s`` that of what nothing is known of, in ``other_kernels`` kernels; ``span_s`` that of the whole execution
    with tracer and profiler on (None where the profiler failed). Without a tracer a row is what runs under one name.
    """

    rows: "list[Row]"
    time_s: list[float]
    kernels: list[int]
    ran: list[str]
    other_s: float
    span_s: float | None
    free_s: float = 0.0
    other_kernels: int = 0


def profile_once(module: Any, work: Work, device: str) -> Profile:
    """One execution under tracer and profiler, with the time of every operator put into its row."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from mmchar.tracing.trace import trace

    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    if not on_gpu:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # two lines on stderr per pass otherwise

    kept: dict[str, Any] = {}

    def traced() -> None:
        kept["rows"] = trace(module, work, label=lambda row: record_function(f"{_LABEL}{row}")).rows

    with profile(activities=activities) as profiler:
        if on_gpu:
            launch_head(device)
        span = measure_time(lambda: traced, device=device, warmup=0, samples=1)
    rows, events = kept["rows"], profiler.events()
    if on_gpu:
        time_s, launched, ran, other_s, other_kernels = gpu_time(events, len(rows))
        return Profile(rows, time_s, launched, ran, other_s, span.median_s, other_kernels=other_kernels)
    time_s, ran, free_s, other_s = cpu_time(events, len(rows))
    return Profile(rows, time_s, [0] * len(rows), ran, other_s, span.median_s, free_s=free_s)


def cpu_time(events: Any, rows: int) -> tuple[list[float], list[str], float, float]:
    """Per row the seconds of its operators and the attention backend that ran; seconds of free and of unseen operators.

    The operators of a row are the direct children of its ranges. A dispatch mode makes every operator appear twice, as
    the call that was caught and, inside, as the one that ran; without a range around it that is a free one. What runs
    without having been caught is unseen.
    """
    time_s, ran, free_s, unseen_s = [0.0] * rows, [""] * rows, 0.0, 0.0
    for event in events:
        row = _row_of(event)
        if row is not None:
            time_s[row] += sum(inner.time_range.elapsed_us() for inner in event.cpu_children) / 1e6
            ran[row] = ran[row] or _backend(event)
        elif _runs_unlabelled(event):
            free_s += event.time_range.elapsed_us() / 1e6
        elif _runs_unseen(event):
            unseen_s += event.time_range.elapsed_us() / 1e6
    return time_s, ran, free_s, unseen_s


def gpu_time(events: Any, rows: int) -> tuple[list[float], list[int], list[str], float, int]:
    """Per row the seconds and number of kernels (copies too) launched in its ranges, and the attention backend.

    Last the seconds and the number of the kernels that were launched in no range.

    Raises
    ------
    RuntimeError
        The profiler saw no kernels, or not all (`kernels.without_head`).
    """
    time_s, kernels, ran = [0.0] * rows, [0] * rows, [""] * rows
    for event in events:
        row = _row_of(event)
        if row is None:
            continue
        for inner in (event, *_inside(event)):
            own = [kernel for kernel in inner.kernels if not kernel.name.startswith(_LABEL)]  # not the range itself
            time_s[row] += sum(kernel.duration for kernel in own) / 1e6
            kernels[row] += len(own)
        ran[row] = ran[row] or _backend(event)
    on_gpu = [Kernel(event.name, 0.0, event.time_range.elapsed_us() / 1e6) for event in events if _is_kernel(event)]
    seen = [kernel.end_s for kernel in without_head(on_gpu)]
    return time_s, kernels, ran, max(0.0, sum(seen) - sum(time_s)), max(0, len(seen) - sum(kernels))


def _row_of(event: Any) -> int | None:
    """The row that a range names, on the side of the host (the GPU shows the range once more)."""
    from torch.autograd import DeviceType

    if not event.name.startswith(_LABEL) or event.device_type != DeviceType.CPU:
        return None
    return int(event.name.removeprefix(_LABEL))


def _inside(event: Any) -> Iterator[Any]:
    for inner in event.cpu_children:
        yield inner
        yield from _inside(inner)


def _backend(event: Any) -> str:
    return next((_RAN[inner.name] for inner in _inside(event) if inner.name in _RAN), "")


def _runs_unlabelled(event: Any) -> bool:
    """Whether it is the inner of two events of one operator that the dispatch mode let through without a range."""
    if not event.name.startswith("aten::"):
        return False
    above = [outer.name for outer in _around(event)]
    caught = next((name for name in above if name.startswith("aten::")), "")
    return caught == event.name and not any(name.startswith(_LABEL) for name in above)


def _runs_unseen(event: Any) -> bool:
    """Whether it is an outermost operator that no dispatch mode caught."""
    if not event.name.startswith("aten::"):
        return False
    above = [outer.name for outer in _around(event)]
    if any(name.startswith(("aten::", _LABEL)) for name in above):
        return False
    return not any(inner.name.startswith((_LABEL, "PythonDispatchMode")) for inner in _inside(event))


def _around(event: Any) -> Iterator[Any]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def _is_kernel(event: Any) -> bool:
    from torch.autograd import DeviceType

    return event.device_type == DeviceType.CUDA and not event.name.startswith(_LABEL)


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"
