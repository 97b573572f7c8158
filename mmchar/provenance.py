"""What produced a result: versions, source commit, processor, GPUs and time; never a host, a user or a path."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mmchar

PACKAGES = ("mmchar", "torch", "diffusers", "transformers", "pandas")
SOURCE = Path(__file__).resolve().parent.parent
REFERENCE = SOURCE / "data" / "reference"
_PACKAGES = {
    "torch": "needed to count and to measure: pip install torch",
    "diffusers": "needed to build diffusion models: pip install diffusers",
    "transformers": "needed to build transformers and text encoders: pip install transformers",
    "flash-attn": "optional: PyTorch's own flash kernels serve; with a CUDA compiler: pip install -e .[flash-attn]",
    "torchao": "optional: the int8 and fp8 levers of mmchar measure: pip install -e .[quantize]",
    "papermill": "needed for mmchar study only: pip install papermill",
}


def provenance() -> dict[str, Any]:
    """What produced a result: versions, source commit, processor, memory (bytes), GPUs and the time (UTC).

    Holds no host name, user name or path. What is not installed has version None; a source outside git, commit None.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "git_commit": _git_commit(), **machine(), "utc": now}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on, None for one that is not installed."""
    return {"python": platform.python_version()} | package_versions(*PACKAGES)


def package_versions(*packages: str) -> dict[str, str | None]:
    """Version of each installed package, None for one that is not installed; nothing is imported."""
    return {package: package_version(package) for package in packages}


def _git_commit() -> str | None:
    """Commit of the checkout that this file lies in, with "-dirty" when its code differs; None outside a checkout."""
    git = ("git", "-C", str(SOURCE))
    if Path(command_output(*git, "rev-parse", "--show-toplevel") or "/") != SOURCE:
        return None
    commit = command_output(*git, "rev-parse", "--verify", "HEAD")
    code = ("mmchar", ":(glob)notebooks/*.ipynb", "pyproject.toml")  # not the results and figures that a study rewrites
    changed = commit and command_output(*git, "status", "--porcelain", "--", *code)
    return f"{commit}-dirty" if changed else commit or None


@functools.cache
def machine() -> dict[str, Any]:
    """System, cpu, cores, memory_bytes, gpus (their names) and gpu_driver of this machine; asked once per process."""
    gpus = [line.split(", ") for line in _gpu_lines()]
    system = f"{platform.system()} {platform.machine()}"
    found = {"system": system, "cpu": processor(), "cores": cores(), "memory_bytes": memory_bytes()}
    return found | {"gpus": [gpu[0] for gpu in gpus], "gpu_driver": gpus[0][-1] if gpus else None}


def _gpu_lines() -> list[str]:
    return command_output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").splitlines()


def command_output(*command: str) -> str:
    """What a command prints, or "" where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def doctor() -> dict[str, str]:
    """What this machine has, and what to do about what it lacks; works whatever is not installed.

    Returns
    -------
    dict of str to str
        Python, each package, CUDA device, processor, cores, memory. Never a host name or a path.
    """
    report = {"python": platform.python_version()}
    for package, remedy in _PACKAGES.items():
        report[package] = package_version(package) or f"absent ({remedy})"
    report["cuda device"] = _cuda_device()
    report["processor"] = processor()
    report["cores"] = str(cores())
    memory = memory_bytes()
    report["memory"] = f"{memory / 1e9:.1f} GB" if memory else "unknown"
    return report


@functools.cache
def package_version(package: str) -> str | None:
    """Version of an installed package, None for one that is not installed; nothing is imported.

    mmchar's own is that of the code that runs: a checkout need not be installed.
    """
    if package == "mmchar":
        return mmchar.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_device() -> str:
    if package_version("torch") is None:
        return "unknown (torch is absent)"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"unknown (torch does not import: {type(error).__name__}; reinstall it)"
    if not torch.cuda.is_available():
        return "none (counting and projecting need none; measuring runs tiny models on the CPU)"
    device = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {device.name}, {device.total_memory / 1e9:.0f} GB"


def processor() -> str:
    """Model name of the processor, with family and model number where Linux tells them in /proc/cpuinfo.

    Machines of a cloud call all their generations by one name.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    if not said.get("model name"):
        return platform.processor() or platform.machine()
    numbers = [f"{name.split()[-1]} {said[name]}" for name in ("cpu family", "model") if said.get(name)]
    return f"{said['model name']} ({', '.join(numbers)})" if numbers else said["model name"]


def cores() -> int:
    """Cores this process may use, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Bytes of main memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
