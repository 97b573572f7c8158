"""Energy of a projected generation: what a board draws depends on what holds each row back."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmchar.projection.columns import FUSED_BACKENDS, holds
from mmchar.projection.data_sheets import Gpu

BOUNDS = ("", "compute", "memory", "launch", "communication")  # what can hold a projected row back


@dataclass(frozen=True)
class Power:
    """Board power by what a GPU is busy with, as shares of its power limit. The same for every GPU and model."""

    idle: float = 0.15  # with a context, between kernels, at full clocks. Assumed: 100 W of an H100's 700
    compute: float = 0.980  # tensor cores are the limit; boards then run into their power limit. Source: fitted
    memory: float = 0.792  # memory is the limit. Source: fitted
    launch: float = 0.308  # the device waits for the host between short kernels. Source: fitted
    communication: float = 0.442  # the link is the limit: copy kernels run on few multiprocessors. Source: fitted
    # Joules on top of idling that FlashAttention-2 takes per FLOP from Hopper on: it does the same instructions there
    # whatever the tensor cores could do, so a board whose limit is higher draws less of it. Source: fitted on H100;
    # that Blackwell, which is made in the same process, needs as much is assumed.
    attention_j_per_flop: float = 1.81e-12


def energy_j(table: pd.DataFrame, gpu: Gpu, power: Power | None = None) -> float:
    """Joules of a projected table on all of its GPUs: while one of ``attrs["gpus"]`` works all do."""
    bound = table["bound"].astype(str).map(BOUNDS.index).to_numpy()
    attends = holds(table, "category", "Attention") & holds(table, "backend", *FUSED_BACKENDS)
    each_j = row_energy_j(table["time_s"].to_numpy(), bound, np.where(attends, table["flop"], 0), gpu, power or Power())
    return float((each_j * table["repeats"].to_numpy()).sum()) * int(table.attrs.get("gpus", 1))


def row_energy_j(
    time_s: np.ndarray, bound: np.ndarray, attention_flop: np.ndarray, gpu: Gpu, power: Power
) -> np.ndarray:
    """Joules of one GPU in each row: time x (idle + utilization x (limit - idle)), and never more than the limit.

    ``bound`` indexes `BOUNDS`; ``attention_flop`` are those of fused attention, 0 in other rows.
    """
    shares = np.array([power.idle, power.compute, power.memory, power.launch, power.communication])
    drawn_j = time_s * gpu.tdp_w * shares[bound]
    if gpu.compute_capability >= 9:
        attends = (attention_flop > 0) & (bound == BOUNDS.index("compute"))
        attention_j = time_s * gpu.tdp_w * power.idle + attention_flop * power.attention_j_per_flop
        drawn_j = np.where(attends, np.minimum(attention_j, time_s * gpu.tdp_w), drawn_j)
    return drawn_j
