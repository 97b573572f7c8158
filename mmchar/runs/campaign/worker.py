"""What the process does that measures the points of a campaign: it says what a point needs, and measures it.

PyTorch is loaded once for many points, and a kernel that crashes takes down this process and not the campaign. A result
is written to disk the moment it is there.
"""

import contextlib
import gc
import os
import sys
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

from mmchar.runs.campaign.grids import Point
from mmchar.runs.own_process import OwnProcess
from mmchar.runs.records import plain

_VERSIONS = ("mmchar", "torch", "transformers", "diffusers")


def start_worker(device: str) -> OwnProcess:
    """A worker; its first answer is its `machine`, then one for each order ``(function, *arguments)``."""
    return OwnProcess(_serve, device)


def _serve(pipe: Connection, device: str) -> None:
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pipe.send(machine(device))
    with contextlib.suppress(EOFError):
        while True:
            function, *arguments = pipe.recv()
            pipe.send(function(*arguments))


def machine(device: str) -> dict[str, Any]:
    """By device its name (never a host's) and memory in bytes, the GPU's compute capability, and versions.

    With ``"cpu"`` no GPU is looked for.
    """
    import torch

    from mmchar.provenance import memory_bytes, package_versions, processor

    gpu = torch.cuda.get_device_properties(0) if device == "cuda" and torch.cuda.is_available() else None
    cpu = f"{processor()}, {torch.get_num_threads()} threads"
    return {
        "hardware": {"cpu": cpu, "cuda": gpu.name if gpu else "no GPU"},
        "capability": [gpu.major, gpu.minor] if gpu else None,
        "memory_bytes": {"cpu": memory_bytes(), "cuda": gpu.total_memory if gpu else None},
        "versions": package_versions(*_VERSIONS),
    }


def expect_point(point: Point) -> dict[str, Any]:
    """What a point needs and takes (`expected`); where it cannot be measured here, a status and the reason.

    ``tight`` says that only memory which is taken now stands in the way: a new process may have it.
    """
    from mmchar.faults import said_by
    from mmchar.measuring.machine import available_bytes
    from mmchar.runs.campaign.expected import expected, why_not

    try:
        guess = expected(point)
        total = machine(point.device)["memory_bytes"][point.device]
        free = available_bytes(point.device) if total else None
        tight = bool(free and total and free < guess["need_bytes"] <= total)
        reason = why_not(point)
    except Exception as error:  # noqa: BLE001  what the library says of a model belongs into the row
        return {"status": "failed", "reason": said_by(error)}
    return {**guess, "status": "skipped" if reason else "", "reason": reason, "tight": tight}


def measure_point(point: Point, out: str, row: dict[str, Any]) -> dict[str, Any]:
    """Measure one point and write its row and table; the row without facts is the answer, with ``again``.

    ``again`` is False where this process should measure nothing more: on a GPU always, because a profiler that was used
    once slows every later launch, and a failed kernel or capture may have left the GPU unusable to it.
    """
    from mmchar.faults import said_by
    from mmchar.measuring.optimization import ladder as levers
    from mmchar.measuring.profiling import measure
    from mmchar.request import from_mapping
    from mmchar.runs.campaign.measured import write_point

    start, table = time.monotonic(), None
    status, reason = "ok", ""
    try:
        settings = {key: getattr(point, key) for key in ("device", "dtype", "attention", "tiny", "samples", "warmup")}
        settings |= {"levers": levers.from_mapping(point.levers), "stages": point.stages}
        table = measure(point.model, from_mapping(point.request), keep_going=True, progress=False, **settings)
        if table.attrs["failed"]:
            status, reason = "partial", "; ".join(f"{stage}: {why}" for stage, why in table.attrs["failed"].items())
    except Exception as error:  # noqa: BLE001  a campaign goes on; the row says what happened
        status, reason = "failed", said_by(error)
    facts = plain(dict(table.attrs)) if table is not None else {}
    answer = {"id": row["id"], "status": status, "reason": reason, "took_s": round(time.monotonic() - start, 3)}
    utc = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        write_point(out, {**row, **answer, "utc": utc, "facts": facts}, table)
    except OSError as error:
        unwritten = f"its result could not be written: {error.strerror}"
        answer |= {"status": "failed", "reason": unwritten, "unwritten": True}
    del table
    _clean_up()
    doubts = sum(map(len, facts.get("doubts", {}).values()))
    return {**answer, "median_s": facts.get("median_s", {}), "doubts": doubts, "again": point.device == "cpu"}


def _clean_up() -> None:
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a GPU that a kernel has broken; the next worker is a new one
            torch.cuda.empty_cache()
