"""What produced a result: versions, source commit, processor, GPUs and time; never a host, a user or a path."""

import functools
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmchar.hardware import cores, memory_bytes, package_version, processor

PACKAGES = ("mmchar", "torch", "diffusers", "transformers", "pandas")
SOURCE = Path(__file__).resolve().parent.parent


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
