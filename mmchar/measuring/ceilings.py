"""What a machine reaches at best: single operators, timed by size, and what issuing one costs.

A roofline is fitted to these numbers. Inputs are taken in turn from more memory than a cache holds, as a model's
weights are (small ones from 64 places, which a cache may hold), and short work is repeated within a sample: what a
sample takes is divided by how often.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from mmchar.faults import text_of
from mmchar.measuring.ceiling_cases import Case, cases, dispatch_cases
from mmchar.measuring.machine import gpu_state, is_usable, torch_settings
from mmchar.measuring.optimization.backends import attention_backend, check_backend
from mmchar.measuring.timing import Measurement, Work, measure_time
from mmchar.models.loading import check_device
from mmchar.provenance import provenance
from mmchar.tables.stored import write_table

COLUMNS = ("op", "sizes", "dtype", "backend", "how", "status", "reason", "median_s", "iqr_s", "samples", "executions",
           "flop", "bytes")  # fmt: skip
_SAMPLE_S = 2e-3  # long beside what a clock and the start of a sample cost
_TOTAL_S = 0.03
_COLD_BYTES = {"cpu": 128e6, "cuda": 256e6}  # more than a last-level cache: 50 MB of an H100 or H200
_MOST = 256  # executions in a sample
_SHORT_S = 100e-6  # below, on a GPU, the operator is also replayed from a CUDA graph, which costs the host nothing
_CPU_FLOP, _CPU_BYTES = 20e9, 600e6  # more would take seconds per execution
_CHAIN = 200  # operators issued in one go, to see what one costs


def measure_ceilings(
    *,
    device: str = "cpu",
    budget_s: float = math.inf,
    tiny: bool = False,
    keep: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row per operator, size, number type, backend and way to run it, with the seconds of one execution.

    No case starts after ``budget_s``; ``tiny`` has few small cases, for tests; the table so far is written into the
    folder ``keep`` every half minute. Raises a ValueError for a device that is not there.

    Returns
    -------
    DataFrame
        op; sizes (JSON); dtype; backend of attention; how: ``eager`` (back to back, so the longer of kernel and host),
        ``graph`` (replayed from a CUDA graph: kernels only), ``graph of one`` (a replay of one kernel) or ``host``
        (issuing alone); status: ok, skipped, failed, not reached, and its reason; median_s and iqr_s of one execution;
        samples, and executions in each; flop, bytes (operands and results once) of one execution. ``attrs``: hardware,
        versions, settings, machine.
    """
    check_device(device, "float32")
    end, saved_s = time.monotonic() + budget_s, time.monotonic()
    rows: list[dict[str, Any]] = []
    unusable = ""
    plan = [*dispatch_cases(), *cases(device=device, tiny=tiny)]
    for case in tqdm(plan, desc="ceilings", unit="case", file=sys.stderr, disable=not progress):
        rows += _row_or_reason(case, device, end, unusable)
        if rows[-1]["status"] == "failed" and not unusable and not is_usable(device):
            unusable = f"the GPU was left unusable by {case.op} {json.dumps(case.sizes)} in {case.dtype}"
        if keep and time.monotonic() - saved_s > 30:
            save_ceilings(keep, _table(rows, device))
            saved_s = time.monotonic()
    return _table(rows, device)


def save_ceilings(folder: str | Path, table: pd.DataFrame) -> Path:
    """Path of ``ceilings.parquet`` in the folder; its ``attrs`` say what it was measured on."""
    return write_table(Path(folder) / "ceilings.parquet", table)


def _row_or_reason(case: Case, device: str, end: float, unusable: str) -> list[dict[str, Any]]:
    """The rows of one case: one per way to run it, or one that says why there is none."""
    common: dict[str, Any] = {"op": case.op, "sizes": json.dumps(case.sizes), "dtype": case.dtype, "how": "eager"}
    common |= {"backend": case.backend, "flop": case.flop, "bytes": case.moved_bytes}
    if unusable or time.monotonic() >= end:
        return [{**common, "status": "not reached", "reason": unusable or "the budget ended before"}]
    if device == "cpu" and (case.flop > _CPU_FLOP or case.moved_bytes > _CPU_BYTES):
        return [{**common, "status": "skipped", "reason": "too large for a cpu"}]
    rows: list[dict[str, Any]] = []
    try:
        with _backend(case, device):
            for how, timed, times in _ways(case, device):
                spread = timed.iqr_s / times if timed.n > 1 else None
                found = {"median_s": timed.median_s / times, "iqr_s": spread, "samples": timed.n, "executions": times}
                rows.append({**common, "how": how, "status": "ok", "reason": "", **found})
    except (ValueError, RuntimeError, ImportError, MemoryError) as error:
        status = "skipped" if isinstance(error, ValueError) or "No available kernel" in str(error) else "failed"
        rows.append({**common, "status": status, "reason": text_of(error, most=200)})
    if rows[-1]["status"] != "ok" and device == "cuda":
        with suppress(RuntimeError):  # a GPU that a kernel has broken
            torch.cuda.empty_cache()  # only now does the error hold its operands no more
    return rows


def _ways(case: Case, device: str) -> Iterator[tuple[str, Measurement, int]]:
    """How a case was run, its timing, and how many executions each sample held."""
    chain = case.op.startswith("dispatch")
    copies = 1 if chain else math.ceil(min(_MOST, _COLD_BYTES[device] / max(case.moved_bytes, 1)))
    inputs = itertools.cycle([case.make(device) for _ in range(min(copies, 64))])
    once = measure_time(lambda: _repeat(case, inputs, 1), device=device, warmup=2, samples=3)
    times = _CHAIN if chain else math.ceil(min(_MOST, max(1.0, _SAMPLE_S / max(once.median_s, 1e-9))))
    work = _repeat(case, inputs, times)
    yield "eager", _time(work, device), times
    if device == "cpu":
        return
    if chain:  # the clock of the host, and no waiting for the GPU
        yield "host", measure_time(lambda: work, device="cpu", warmup=2, samples=10), times
    if once.median_s < _SHORT_S:
        replay = _graph(_repeat(case, inputs, max(times, _CHAIN)), device)
        yield "graph", _time(replay, device), max(times, _CHAIN)
    if case.op == "dispatch add_":
        yield "graph of one", _time(_graph(_repeat(case, inputs, 1), device), device), 1


def _repeat(case: Case, inputs: Iterator[tuple[Any, ...]], times: int) -> Work:
    def work() -> None:
        for given in itertools.islice(inputs, times):
            case.call(*given)

    return work


def _time(work: Work, device: str) -> Measurement:
    return measure_time(lambda: work, device=device, warmup=2, samples=10, min_total_s=_TOTAL_S)


def _graph(work: Work, device: str) -> Work:
    """The replay of a CUDA graph of the work."""
    with torch.inference_mode():
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    return graph.replay


def _backend(case: Case, device: str) -> AbstractContextManager[None]:
    if not case.backend:
        return nullcontext()
    check_backend(case.backend, device=device, dtype=case.dtype)
    if case.backend == "flash":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION])
    return attention_backend(case.backend)


def _table(rows: list[dict[str, Any]], device: str) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.astype({"samples": "Int64", "executions": "Int64", "median_s": "float64", "iqr_s": "float64"})
    hardware = torch.cuda.get_device_name() if device == "cuda" else None
    table.attrs = {"device": device, "hardware": hardware, **torch_settings()}
    table.attrs |= {"machine": gpu_state(device), "provenance": provenance()}
    return table
