"""The state that a GPU is measured in: clocks, power limit, driver, and who else is on it."""

import gc
import os
from typing import Any

from mmchar.provenance import command_output

# nvidia-smi's names, ours, and whether it is a number. `nvidia-smi --help-query-gpu` lists them.
_FIELDS = (
    ("name", "name", False),
    ("driver_version", "driver", False),
    ("clocks.sm", "sm_clock_mhz", True),
    ("clocks.mem", "memory_clock_mhz", True),
    ("clocks.max.sm", "max_sm_clock_mhz", True),
    ("clocks.max.mem", "max_memory_clock_mhz", True),
    ("power.limit", "power_limit_w", True),
    ("power.draw", "power_draw_w", True),
    ("temperature.gpu", "temperature_c", True),
    ("memory.used", "memory_used_mib", True),
    ("mig.mode.current", "mig", False),
)


def gpu_state(device: str = "cuda") -> dict[str, Any] | None:
    """What nvidia-smi says of the GPU that PyTorch calls ``device``, and how many other processes use it.

    None on another device, or where there is no nvidia-smi; a field that it does not know is None.
    ``other_processes`` counts the compute processes but this one; in a container they may be hidden from it.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    ask = ("nvidia-smi", "--format=csv,noheader,nounits", f"--id=GPU-{uuid.removeprefix('GPU-')}")
    line = command_output(*ask, f"--query-gpu={','.join(field for field, _, _ in _FIELDS)}")
    if not line:
        return None
    users = command_output(*ask, "--query-compute-apps=pid")
    return parse_state(line) | {"other_processes": others(users, os.getpid())}


def is_usable(device: str) -> bool:
    """Whether the device still computes; a kernel that failed, or a capture that broke off, can end that for good."""
    if not device.startswith("cuda"):
        return True
    import torch

    gc.collect()
    try:
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # refused by an allocator that still thinks it is in a capture
    except RuntimeError:
        return False
    return True


def parse_state(line: str) -> dict[str, Any]:
    """The fields of one line of ``nvidia-smi --query-gpu``, numbers as numbers; None for ``[N/A]`` and the like."""
    values = [value.strip() for value in line.splitlines()[0].split(",")]
    if len(values) != len(_FIELDS):  # words of a driver that could not answer
        return {name: None for _, name, _ in _FIELDS}
    found: dict[str, Any] = {}
    for (_, name, is_number), value in zip(_FIELDS, values, strict=True):
        try:
            found[name] = None if value.startswith("[") else float(value) if is_number else value
        except ValueError:
            found[name] = None
    return found


def others(lines: str, own: int) -> int:
    """How many of the process numbers, one per line, are not our own."""
    pids = [line.strip() for line in lines.splitlines() if line.strip().isdigit()]
    if len(pids) == 1 and str(own) not in pids:
        return 0  # the only one there: ourselves, under the number that the host knows us by
    return len([pid for pid in pids if pid != str(own)])
