"""What each GPU can do at best, by its data sheet.

The facts are data, in ``mmchar/projection/gpus.json``; every entry names its source.
"""

import difflib
import functools
import json
from dataclasses import asdict, dataclass, fields
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

TORCH_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Gpu:
    """Data sheet of one GPU; every number is above 0 and the sheet, with its date, is the ``source``.

    Parameters
    ----------
    compute_capability : float
        CUDA's; flash kernels need 8.0 (Ampere). Of another vendor's GPU that whose kernels a projection assumes for
        want of its own, of which it has no evidence.
    year : int
        Year of announcement.
    peak_flop_s : dict of str to float
        FLOP/s of matrix products by numeric type, **dense** (data sheets like to print the double, with sparsity), one
        multiply-add = 2 FLOP, accumulating in float32. ``float32`` is the rate of the plain cores, ``tf32`` that of the
        tensor cores on float32 inputs. A type that is missing is one the GPU has no fast path for.
    memory_bytes, l2_bytes : float
        Size of memory (decimal GB as sold) and of the last-level cache.
    link_bytes_s, host_link_bytes_s : float
        To other GPUs (NVLink, else PCIe) and to the host, one direction: half of what data sheets print.
    tdp_w : float
        Board power limit.
    device_names : tuple of str
        What CUDA or ROCm call it.
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
    host_link_bytes_s: float
    tdp_w: float
    multiprocessors: int
    source: str
    vendor: str = "NVIDIA"
    device_names: tuple[str, ...] = ()

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

    @property
    def multiprocessor_clocks_s(self) -> float:
        """Clocks per second of all multiprocessors together, from the rate of their plain cores (64 or 128 of each)."""
        lanes = 64 if self.compute_capability < 8.6 else 128  # CUDA programming guide, arithmetic instructions
        return self.peak_flop_s["float32"] / (2 * lanes)

    def ridge_flop_per_byte(self, dtype: str) -> float:
        """FLOP per byte at which this GPU turns from memory bound to compute bound, at data sheet peaks."""
        return self.peak(dtype) / self.bandwidth_bytes_s


@functools.cache
def _gpus() -> dict[str, Gpu]:
    try:
        entries = json.loads((resources.files("mmchar.projection") / "gpus.json").read_text())
        return {
            name: Gpu(**{**entry, "name": name, "device_names": tuple(entry["device_names"])})
            for name, entry in entries.items()
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"gpus.json cannot be read ({error}); restore it with git") from error


def get_gpu(name: str | Gpu) -> Gpu:
    """The data sheet of the GPU called ``name``, or one of your own as it is; an error says which names come close."""
    if isinstance(name, Gpu):
        return name
    gpus = _gpus()
    if name in gpus:
        return gpus[name]
    text = str(name).lower()
    close = [known for known in gpus if text and known.startswith(text)] or difflib.get_close_matches(text, gpus, n=2)
    hint = f"did you mean {' or '.join(repr(known) for known in close)}? " if close else ""
    raise ValueError(f"unknown gpu {name!r}; {hint}choose one of {', '.join(gpus)}")


def gpu_named(device_name: str) -> Gpu:
    """The data sheet of a GPU by what CUDA or ROCm call the device (``NVIDIA H100 80GB HBM3``), or by its name here."""
    wanted = device_name.casefold().strip()
    for gpu in _gpus().values():
        if wanted in {gpu.name, *map(str.casefold, gpu.device_names)}:
            return gpu
    raise ValueError(
        f"no data sheet of a device {device_name!r}; choose one of {', '.join(_gpus())}, or add it to gpus.json"
    )


def list_gpus() -> "pd.DataFrame":
    """One row per GPU: the fields of `Gpu`, rates as columns ``<dtype>_flop_s`` (NaN where the GPU lacks the type)."""
    import pandas as pd

    rows = []
    for gpu in _gpus().values():
        peaks = {f"{dtype}_flop_s": rate for dtype, rate in gpu.peak_flop_s.items()}
        rows.append({name: value for name, value in asdict(gpu).items() if name != "peak_flop_s"} | peaks)
    frame = pd.DataFrame(rows)
    return frame[[*frame.columns.drop("source"), "source"]]
