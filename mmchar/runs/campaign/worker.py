"""The process that measures the points of a campaign, one after the other, and how a campaign talks to it.

PyTorch is loaded once for many points, and a kernel that crashes takes down the worker and not the campaign. Orders and
answers are lines of JSON; a result is written to disk by the worker itself, the moment it is there.
"""

import contextlib
import gc
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from mmchar.provenance import SOURCE
from mmchar.runs.campaign.grids import Point

_TICK_S = 0.5
_END_S = 3.0  # for a worker that is told to stop, before it is killed
_VERSIONS = ("mmchar", "torch", "transformers", "diffusers")


class WorkerDied(RuntimeError):
    """The worker ended without an answer."""


class Worker:
    """A running worker; its first answer, without an order, is `machine`."""

    def __init__(self, device: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        answers, theirs = os.pipe()
        command = [sys.executable, "-m", "mmchar.runs.campaign.worker", device, str(theirs)]
        paths = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(  # a session of its own: Ctrl-C is for the campaign, which ends the worker
            command, stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors, pass_fds=(theirs,),
            start_new_session=True, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        os.close(theirs)
        self._answers, self._line = answers, b""

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, order: dict[str, Any]) -> None:
        """Give one order; the answer is fetched with `answer`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerDied(self._last_words()) from error

    def answer(self, wait_s: float) -> dict[str, Any] | None:
        """The next answer, None if there is none within so many seconds.

        Raises
        ------
        WorkerDied
            With the signal or exit code that it ended with, and its last line.
        """
        end = time.monotonic() + wait_s
        while b"\n" not in self._line:
            left = end - time.monotonic()
            if not select.select([self._answers], [], [], max(0.0, min(left, _TICK_S)))[0]:
                if self._process.poll() is not None:  # its children may still hold the pipe open
                    raise WorkerDied(self._last_words())
                if left <= 0:
                    return None
                continue
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise WorkerDied(self._last_words())
            self._line += part
        line, _, self._line = self._line.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the process, whatever it does."""
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, end)  # a compiler's own processes too
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
                break
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        with contextlib.suppress(OSError):
            os.close(self._answers)
        self._errors.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        code = self._process.returncode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", as the system does when memory runs out"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the worker ended ({how})" + (f": {' '.join(lines[-1].split())[:200]}" if lines else "")


def main(device: str, answers: int) -> None:
    """Serve orders from stdin until it closes."""
    out = os.fdopen(answers, "w")

    def reply(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer, allow_nan=False) + "\n")
        out.flush()

    orders: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    reply(machine(device))
    actions: dict[str, Callable[..., dict[str, Any]]] = {"expect": expect_point, "measure": measure_point}
    while True:
        order = json.loads(orders.get())
        point = Point(**{**order["point"], "stages": order["point"]["stages"] and tuple(order["point"]["stages"])})
        reply(actions[order["do"]](point, **order.get("with", {})))


def _listen(orders: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the campaign has ended, however: what is being measured is nobody's any more


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
    """What a point needs and takes (`expected`), and why it cannot be measured here: "" where it can.

    ``tight`` says that only memory which is taken now stands in the way: a new process may have it.
    """
    from mmchar.measuring.profiling import available_bytes, one_line
    from mmchar.runs.campaign.expected import expected

    try:
        guess = expected(point)
        total = machine(point.device)["memory_bytes"][point.device]
        free = available_bytes(point.device) if total else None
        tight = bool(free and total and free < guess["need_bytes"] <= total)
        return {**guess, "skip": _why_not(point, guess, free), "tight": tight}
    except Exception as error:  # noqa: BLE001  what the library says of a model belongs into the row
        return {"skip": "", "failed": one_line(error)}


def _why_not(point: Point, guess: dict[str, float], free: int | None) -> str:
    from mmchar.measuring.optimization import ladder as levers
    from mmchar.measuring.optimization.backends import check_backend
    from mmchar.measuring.optimization.execution import check_levers
    from mmchar.models.loading import check_device

    try:
        check_device(point.device, point.dtype)
        check_backend(point.attention, device=point.device, dtype=point.dtype)
        check_levers(levers.from_mapping(point.levers), device=point.device)
    except ValueError as error:
        return str(error)
    need = guess["need_bytes"]
    if free is not None and need > free:
        weights = guess["weight_bytes"]
        has = f"{point.device} has {free / 1e9:.3g} GB free"
        return f"it needs {need / 1e9:.3g} GB (weights {weights / 1e9:.3g}), and {has}"
    return _no_kernel(point)


def _no_kernel(point: Point) -> str:
    from mmchar.counting import operator_table as counting
    from mmchar.measuring.optimization.backends import byte_model, check_shapes
    from mmchar.request import from_mapping

    asked = from_mapping(point.request)
    table = counting.count(
        point.model, asked, dtype=point.dtype, attention=byte_model(point.attention), tiny=point.tiny
    )
    rows = table[table["stage"].isin(point.stages)] if point.stages else table
    try:
        check_shapes(point.attention, rows, device=point.device)
    except ValueError as error:
        return str(error)
    return ""


def measure_point(point: Point, *, out: str, row: dict[str, Any]) -> dict[str, Any]:
    """Measure one point and write its row and table; the row without facts is the answer, with ``again``.

    ``again`` is False where this process should measure nothing more: on a GPU always, because a profiler that was used
    once slows every later launch, and a failed kernel or capture may have left the GPU unusable to it.
    """
    from mmchar.measuring.optimization import ladder as levers
    from mmchar.measuring.profiling import measure, one_line
    from mmchar.request import from_mapping
    from mmchar.runs.campaign.measured import write_point

    start, table = time.monotonic(), None
    status, reason = "ok", ""
    try:
        settings = {key: getattr(point, key) for key in ("device", "dtype", "attention", "tiny", "samples", "warmup")}
        pulled, asked = levers.from_mapping(point.levers), from_mapping(point.request)
        table = measure(
            point.model, asked, levers=pulled, stages=point.stages, keep_going=True, progress=False, **settings
        )
        if table.attrs["failed"]:
            status, reason = "partial", "; ".join(f"{stage}: {why}" for stage, why in table.attrs["failed"].items())
    except Exception as error:  # noqa: BLE001  a campaign goes on; the row says what happened
        status, reason = "failed", one_line(error)
    row = {**row, "status": status, "reason": reason, "utc": datetime.now(UTC).isoformat(timespec="seconds")}
    row |= {"took_s": round(time.monotonic() - start, 3), "facts": dict(table.attrs) if table is not None else {}}
    try:
        write_point(out, _plain(row), table)
    except OSError as error:
        row |= {"status": "failed", "reason": f"its result could not be written: {error.strerror}", "unwritten": True}
    del table
    _clean_up()
    keep = ("id", "status", "reason", "took_s", "unwritten")
    median = {stage: float(value) for stage, value in row["facts"].get("median_s", {}).items()}
    doubts = sum(map(len, row["facts"].get("doubts", {}).values()))
    again = point.device == "cpu"
    return {**{key: row[key] for key in keep if key in row}, "median_s": median, "doubts": doubts, "again": again}


def _clean_up() -> None:
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a GPU that a kernel has broken; the next worker is a new one
            torch.cuda.empty_cache()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_number), parse_constant=lambda _: None)  # NaN is nothing


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def order(do: str, point: Point, **given: Any) -> dict[str, Any]:
    """An order to a worker, in JSON types."""
    return {"do": do, "point": asdict(point), "with": given}


if __name__ == "__main__":
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], int(sys.argv[2]))
