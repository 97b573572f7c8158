"""Hardware: what each GPU can do at best, by its data sheet, and what this machine is.

The facts are data, in ``mmchar/gpus.json``; every entry names its source.
"""

import difflib
import functools
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmchar

if TYPE_CHECKING:
    import pandas as pd

TORCH_DTYPES = ("float32", "float16", "bfloat16")
_PACKAGES = {
    "torch": "needed to count and to measure: pip install torch",
    "diffusers": "needed to build diffusion models: pip install diffusers",
    "transformers": "needed to build transformers and text encoders: pip install transformers",
    "flash-attn": "optional: PyTorch's own flash kernels serve; with a CUDA compiler: pip install -e .[flash-attn]",
    "torchao": "optional: the int8 and fp8 levers of mmchar measure: pip install -e .[quantize]",
    "papermill": "needed for mmchar study only: pip install papermill",
}


@dataclass(frozen=True)
class Gpu:
    """Data sheet of one GPU.

    Parameters
    ----------
    name : str
        How mmchar calls it, e.g. ``"a100-80gb"``.
    architecture : str
    compute_capability : float
        CUDA compute capability; flash kernels need 8.0 (Ampere).
    year : int
        Year of announcement.
    peak_flop_s : dict of str to float
        FLOP/s of matrix products by numeric type, **dense** (data sheets like to print the double, with sparsity), one
        multiply-add = 2 FLOP, accumulating in float32. ``float32`` is the rate of the plain cores, ``tf32`` that of the
        tensor cores on float32 inputs. A type that is missing is one the GPU has no fast path for.
    bandwidth_bytes_s : float
        Peak bandwidth of the GPU's memory.
    memory_bytes, l2_bytes : float
        Size of memory (decimal GB as sold) and of the last-level cache.
    link_bytes_s : float
        To other GPUs, one direction: half of what data sheets print. NVLink, else PCIe.
    tdp_w : float
        Board power limit.
    multiprocessors : int
    source : str
        Data sheet and date.

    Raises
    ------
    ValueError
        A number is not positive, or a field has no source.
    """

    name: str
    architecture: str
    compute_capability: float
    year: int
    peak_flop_s: dict[str, float]
    bandwidth_bytes_s: float
    memory_bytes: float
    l2_bytes: float
    link_bytes_s: float
    tdp_w: float
    multiprocessors: int
    source: str

    def __post_init__(self) -> None:
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.type in (int, float)} | self.peak_flop_s
        bad = [name for name, value in numbers.items() if not (isinstance(value, int | float) and value > 0)]
        if bad or not self.source or "float32" not in self.peak_flop_s:
            missing = ", ".join(bad) or ("source" if not self.source else "peak_flop_s of float32")
            raise ValueError(f"gpu {self.name!r} in gpus.json: {missing} must be there and above 0")

    def peak(self, dtype: str, *, tf32: bool = False) -> float:
        """FLOP/s of dense matrix products of ``dtype``, through TF32 tensor cores if asked for and there are any."""
        self.check_dtype(dtype)
        return self.peak_flop_s.get("tf32", self.peak_flop_s["float32"]) if tf32 else self.peak_flop_s[dtype]

    def check_dtype(self, dtype: str) -> None:
        """Raise a ValueError if models cannot run in ``dtype`` on this GPU."""
        able = [name for name in TORCH_DTYPES if name in self.peak_flop_s]
        if dtype not in able:
            order = sorted(able, key=lambda name: name == "float32")
            raise ValueError(f"{self.name} has no {dtype or 'dtype without a name'}; use {' or '.join(order)}")

    def ridge_flop_per_byte(self, dtype: str) -> float:
        """FLOP per byte at which this GPU turns from memory bound to compute bound, at data sheet peaks."""
        return self.peak(dtype) / self.bandwidth_bytes_s


@functools.cache
def _gpus() -> dict[str, Gpu]:
    try:
        entries: dict[str, dict[str, Any]] = json.loads((resources.files("mmchar") / "gpus.json").read_text())
        return {name: Gpu(name=name, **entry) for name, entry in entries.items()}
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"gpus.json cannot be read ({error}); restore it: git checkout mmchar/gpus.json") from error


def get_gpu(name: str) -> Gpu:
    """The data sheet of the GPU called ``name``.

    Raises
    ------
    ValueError
        No such GPU; says which names come close and which there are.
    """
    gpus = _gpus()
    if name in gpus:
        return gpus[name]
    text = str(name).lower()
    close = [known for known in gpus if text and known.startswith(text)] or difflib.get_close_matches(text, gpus, n=2)
    hint = f"did you mean {' or '.join(repr(known) for known in close)}? " if close else ""
    raise ValueError(f"unknown gpu {name!r}; {hint}choose one of {', '.join(gpus)}")


def list_gpus() -> "pd.DataFrame":
    """One row per GPU: the fields of `Gpu`, rates as columns ``<dtype>_flop_s`` (NaN where the GPU lacks the type)."""
    import pandas as pd

    rows = []
    for gpu in _gpus().values():
        row = asdict(gpu)
        peaks = {f"{dtype}_flop_s": rate for dtype, rate in row.pop("peak_flop_s").items()}
        source = row.pop("source")
        rows.append({**row, **peaks, "source": source})
    frame = pd.DataFrame(rows)
    return frame[[column for column in frame.columns if column != "source"] + ["source"]]


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
