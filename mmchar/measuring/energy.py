"""Energy of one execution in joules, from the counter that the machine keeps; None where it keeps none.

Sources: NVML API reference, ``nvmlDeviceGetTotalEnergyConsumption`` (millijoules since the driver was loaded, Volta and
newer); the Linux kernel's documentation of powercap (``energy_uj``, ``max_energy_range_uj``). NVML is called directly:
a GPU machine has the library with its driver, and needs no package for one function.
"""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
LONG_ENOUGH_S = 1.0  # the GPU's counter moves every 20 to 100 ms: a second is read to within some percent
MOST = 2000

Counter = Callable[[], float]


def energy_counter(device: str) -> Counter | None:
    """A function that returns joules used so far, by the GPU, or by all processor packages; None where none is kept."""
    return _nvml_counter(device) if device.startswith("cuda") else _rapl_counter()


def run_energy(
    work: Callable[[], Any], device: str, *, expected_s: float, counter: Counter, most: int = MOST
) -> float | None:
    """Joules of one execution: of as many, one after the other, as take a second, divided by their number.

    The counter is of the whole device: what else runs there, and what it draws when idle, is in it. None where it did
    not move meanwhile. One execution was timed to take ``expected_s``; there are ``most`` at most, as the tokens that
    they add to a KV cache stay there meanwhile.
    """
    times = min(most, MOST, max(1, math.ceil(LONG_ENOUGH_S / max(expected_s, 1e-6))))
    before = counter()
    with torch.inference_mode():
        for _ in range(times):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
    used = counter() - before
    return used / times if used > 0 else None


def _nvml_counter(device: str) -> Counter | None:
    """Joules of the GPU that PyTorch calls ``device``, found by its UUID, as the two may number GPUs differently."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, uuid = ctypes.c_void_p(), str(torch.cuda.get_device_properties(device).uuid)
    name = f"GPU-{uuid.removeprefix('GPU-')}"
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)):
        return None

    def read() -> float:
        millijoules = ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return math.nan if failed else millijoules.value / 1e3

    return None if math.isnan(read()) else read


def _rapl_counter() -> Counter | None:
    """Joules of all processor packages, by the sum of what each has added since the last reading (they wrap)."""
    packages = [zone for zone in POWERCAP.glob("intel-rapl:*") if zone.name.count(":") == 1]  # not their parts

    def microjoules(name: str) -> list[int]:
        return [int((package / name).read_text()) for package in packages]

    try:
        wraps, last = microjoules("max_energy_range_uj"), microjoules("energy_uj")
    except (OSError, ValueError):
        return None
    total = 0

    def read() -> float:
        nonlocal total, last
        now = microjoules("energy_uj")
        total += sum(new - old + wrap * (new < old) for new, old, wrap in zip(now, last, wraps, strict=True))
        last = now
        return total / 1e6

    return read if packages else None
