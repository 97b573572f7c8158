"""One measurement of others beside what a projection says of it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mmchar.projection.columns import Columns
from mmchar.projection.data_sheets import Gpu
from mmchar.projection.energy_model import BOUNDS, Power, row_energy_j
from mmchar.projection.roofline import Rates, row_times


@dataclass(frozen=True)
class Case:
    """One measurement of others: what was asked for and measured, the work it stands for, and where it ran."""

    asked: dict[str, Any]
    columns: Columns
    gpu: Gpu
    execution: str
    memory: dict[str, Any]


def as_engine(table: pd.DataFrame) -> pd.DataFrame:
    """The table as engines for diffusion transformers run it: attention of the denoiser without a mask.

    diffusers hides the padding of prompts by a mask, which no flash kernel takes; engines cut the padding off and call
    the kernel. Prompts are counted at their full length all the same.

    **Source**: xDiT, ``hunyuan_video_usp_example.py`` (keeps the tokens that the mask leaves, then passes no mask).
    """
    masked = table["stage"].astype(str).str.startswith("denoise") & (table["mask_bytes"] > 0)
    mask_bytes = table["mask_bytes"].where(masked, 0)
    out = table.assign(read_bytes=table["read_bytes"] - mask_bytes, mask_bytes=table["mask_bytes"] - mask_bytes)
    out.attrs = table.attrs
    return out


def predict(case: Case, rates: Rates, power: Power) -> dict[str, Any]:
    """Seconds and joules of a case, their errors (predicted / measured - 1), and what most of the time is bound by."""
    columns, asked = case.columns, case.asked
    device_s, wait_s, bound = row_times(columns, case.gpu, rates, execution=case.execution)
    time_s = device_s + wait_s
    attention_flop = np.where(columns.fused, columns.flop, 0)
    each_j = row_energy_j(time_s, bound, attention_flop, case.gpu, power)
    total_s = float((time_s * columns.repeats).sum())
    total_j = float((each_j * columns.repeats).sum()) * asked["gpus"]
    by_bound = np.bincount(bound, time_s * columns.repeats, minlength=len(BOUNDS))
    return {
        "predicted_s": total_s,
        "predicted_j": total_j,
        "latency_error": total_s / asked["latency_s"] - 1,
        "energy_error": total_j / asked["energy_j"] - 1 if "energy_j" in asked else math.nan,
        "bound": BOUNDS[int(by_bound.argmax())],
        **{name: case.memory[name] for name in ("peak_bytes", "fits") if name in case.memory},
    }
