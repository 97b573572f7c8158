"""Model FLOPs utilization (MFU): how much of a GPU's peak a generation uses, projected or measured.

MFU = model FLOPs / (seconds x peak x GPUs). Model FLOPs are those of the counted table, as torch's ``FlopCounterMode``
counts them: matrix products, convolutions and attention, 2 for a multiply-add; attention in full, so that a causal one
is not halved; each once, however many GPUs do it again. The peak is the dense one of the data sheet for the numeric
type that an operator runs in. PyTorch gives float32 to the plain cores, and convolutions in float32 to TF32.

**Source**: PaLM, arXiv 2204.02311, appendix B, which divides tokens per second by those at peak in the same way.
"""

import contextlib
from typing import Any

import numpy as np
import pandas as pd

from mmchar.projection.columns import holds
from mmchar.projection.data_sheets import TORCH_DTYPES, Gpu, gpu_named


def at_peak_s(table: pd.DataFrame, gpu: Gpu) -> "pd.Series[float]":
    """Seconds that all FLOPs of each stage would take one GPU at its peak; MFU is that over the time."""
    work = (table["flop"] * table["repeats"]).to_numpy(dtype=float)
    dtypes = table["dtype"].astype(str).where(holds(table, "dtype", *TORCH_DTYPES), str(table.attrs.get("dtype")))
    rates = {dtype: gpu.peak(dtype) for dtype in set(dtypes[work > 0])}
    rate = dtypes.map(rates).to_numpy(dtype=float)
    tf32 = holds(table, "category", "Convolution") & (dtypes == "float32").to_numpy()
    rate = np.where(tf32, gpu.peak("float32", tf32=True), rate)
    seconds = np.divide(work, rate, out=np.zeros(len(work)), where=work > 0)
    return pd.Series(seconds, index=table["stage"].astype(str)).groupby(level=0, sort=False).sum()


def mfu(table: pd.DataFrame, seconds: "pd.Series[float]", gpu: Gpu, *, gpus: int = 1) -> "pd.Series[float]":
    """MFU of each stage, between 0 and 1, from a counted table and the seconds that all executions of a stage took."""
    return at_peak_s(table, gpu).reindex(seconds.index, fill_value=0.0) / (seconds.where(seconds > 0) * gpus)


def add_mfu(measured: dict[str, Any], counted: pd.DataFrame, device: str) -> None:
    """Let each stage of a summary of measurements say its ``mfu``, by the counted table of the same generation.

    Nothing is added where no data sheet is of a device of that name.
    """
    with contextlib.suppress(ValueError):
        gpu = gpu_named(device)
        seconds = pd.Series({row["stage"]: row["median_s"] * row["repeats"] for row in measured["stages"]})
        for row, value in zip(measured["stages"], mfu(counted, seconds, gpu), strict=True):
            row["mfu"] = float(value)
