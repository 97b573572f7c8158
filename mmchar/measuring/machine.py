"""The machine that is measured on: clocks and other users of its GPU, busy cores, free memory, PyTorch's settings."""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from mmchar.provenance import command_output

# nvidia-smi's names and ours. `nvidia-smi --help-query-gpu` lists them.
_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "clocks.sm": "sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.max.mem": "max_memory_clock_mhz",
    "power.limit": "power_limit_w",
    "power.draw": "power_draw_w",
    "temperature.gpu": "temperature_c",
    "memory.used": "memory_used_mib",
    "mig.mode.current": "mig",
}
_WORDS = ("name", "driver", "mig")  # the others are numbers


def gpu_state(device: str = "cuda") -> dict[str, Any] | None:
    """What nvidia-smi says of the GPU that PyTorch calls ``device``, and how many other processes use it.

    None on another device, or where there is no nvidia-smi; a field that it does not know is None.
    ``other_processes`` counts the compute processes but this one; in a container they may be hidden from it.
    """
    if not device.startswith("cuda"):
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    ask = ("nvidia-smi", "--format=csv,noheader,nounits", f"--id=GPU-{uuid.removeprefix('GPU-')}")
    line = command_output(*ask, f"--query-gpu={','.join(_FIELDS)}")
    if not line:
        return None
    users = command_output(*ask, "--query-compute-apps=pid")
    return parse_state(line) | {"other_processes": others(users, os.getpid())}


def parse_state(line: str) -> dict[str, Any]:
    """The fields of one line of ``nvidia-smi --query-gpu``, numbers as numbers; None for ``[N/A]`` and the like."""
    values = [value.strip() for value in line.splitlines()[0].split(",")]
    if len(values) != len(_FIELDS):  # words of a driver that could not answer
        return dict.fromkeys(_FIELDS.values())
    return {name: _parsed(name, value) for name, value in zip(_FIELDS.values(), values, strict=True)}


def _parsed(name: str, value: str) -> str | float | None:
    if value.startswith("["):
        return None
    try:
        return value if name in _WORDS else float(value)
    except ValueError:
        return None


def others(lines: str, own: int) -> int:
    """How many of the process numbers, one per line, are not our own."""
    pids = [line.strip() for line in lines.splitlines() if line.strip().isdigit()]
    if len(pids) == 1 and str(own) not in pids:
        return 0  # the only one there: ourselves, under the number that the host knows us by
    return len([pid for pid in pids if pid != str(own)])


def is_usable(device: str) -> bool:
    """Whether the device still computes; a kernel that failed, or a capture that broke off, can end that for good."""
    if not device.startswith("cuda"):
        return True
    gc.collect()
    try:
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # refused by an allocator that still thinks it is in a capture
    except RuntimeError:
        return False
    return True


def available_bytes(device: str) -> int:
    """Bytes that a new model may take on the device now."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def torch_settings() -> dict[str, Any]:
    """Threads, and whether a GPU's products and convolutions in float32 may use TF32."""
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return {"threads": torch.get_num_threads(), "allow_tf32": tf32}


@contextmanager
def other_cores() -> Iterator[list[float]]:
    """A list that holds, at the end, the mean number of cores that were busy with anything but this process.

    Time that a hypervisor gave to other machines counts too. Two threads that share a core's caches and its memory slow
    each other down, so a measurement beside a busy core is not that of a quiet machine.
    """
    found: list[float] = []
    wall, busy, own = time.perf_counter(), _busy_s(), time.process_time()
    try:
        yield found
    finally:
        wall = time.perf_counter() - wall
        beside = _busy_s() - busy - (time.process_time() - own)
        found.append(max(0.0, beside / wall) if wall > 0 else 0.0)


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return sum(times) - idle - getattr(times, "guest", 0.0)  # guest is in user
