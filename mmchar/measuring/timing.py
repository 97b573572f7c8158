"""How long one execution takes, by the clock.

A timed region holds the work and nothing else: inputs, and the KV cache that a decode step extends, are made anew for
every sample outside of it.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

Work = Callable[[], Any]
MAX_SAMPLES = 1000  # however short the work: beyond this, more samples say nothing new
WIDE = 0.1  # IQR / median above which a median should not be trusted


@dataclass(frozen=True)
class Measurement:
    """The samples of one timed piece of work, in the order they ran; its statistics are computed from them.

    ``warmup`` executions ran before the first sample. On ``"cpu"`` the clock was ``perf_counter``, on ``"cuda"`` events
    on the GPU.
    """

    samples_s: tuple[float, ...]
    warmup: int
    device: str
    label: str = ""

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

    @property
    def doubts(self) -> list[str]:
        """A line where the spread is wide or not known."""
        return [] if self.spread <= WIDE else [repr(self)]

    def facts(self) -> dict[str, Any]:
        """Samples, median and IQR in seconds, the latter None for a single sample."""
        iqr_s = self.iqr_s if self.n > 1 else None
        return {"samples": list(self.samples_s), "median_s": self.median_s, "iqr_s": iqr_s}

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
    attention backend is whatever is chosen outside. Sampling goes on until the samples sum to ``min_total_s`` (at most
    1000 samples), for work of microseconds. Another device, or fewer than one sample, is a ValueError.
    """
    sample = {"cpu": _sample_cpu, "cuda": _sample_cuda}.get(device.split(":")[0])
    if sample is None:
        raise ValueError(f"cannot measure time on device {device!r}; choose cpu or cuda")
    check_counts(samples, warmup)
    with torch.inference_mode():
        for _ in range(warmup):
            sample(prepare(), device)
        taken: list[float] = []
        while len(taken) < samples or (sum(taken) < min_total_s and len(taken) < MAX_SAMPLES):
            taken.append(sample(prepare(), device))
    return Measurement(tuple(taken), warmup, device, label)


def check_counts(samples: int, warmup: int) -> None:
    """Refuse fewer than one sample, and a negative number of warm-ups."""
    if samples < 1 or warmup < 0:
        raise ValueError(f"samples={samples}, warmup={warmup} is not possible; give at least 1 sample and 0 warm-ups")


def _sample_cpu(work: Work, _device: str) -> float:
    start = perf_counter()
    _output = work()  # freeing the output is not the work
    stop = perf_counter()
    return stop - start


def _sample_cuda(work: Work, device: str) -> float:
    with torch.cuda.device(device):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        _output = work()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3  # elapsed_time is in milliseconds


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"
