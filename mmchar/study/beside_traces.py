"""A trace that someone else recorded beside the projection of the same rows on the same GPU."""

from dataclasses import replace

import pandas as pd

from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.study.measured_shares import sheet_name

_SAME_KERNEL = {"cudnn": "flash", "flash-attn": "flash"}  # a projection has one flash kernel


def beside_trace(table: pd.DataFrame, *, gpu: str | None = None, efficiency: Efficiency | None = None) -> pd.DataFrame:
    """The table of `mmchar.read_trace` with ``projected_s`` and ``bound``: what its rows would take by our model.

    Both are times of kernels, without waiting for the host. ``projected_s`` is missing where the trace does not say
    what a row computes: kernels by name, copies from and to the host, operators without recorded shapes.
    ``attrs["gpu"]`` names the data sheet: ``gpu``, else that of the GPU which the trace names; a ValueError where there
    is none, or where it is not NVIDIA's, of whose kernels alone there is evidence.
    """
    device = table.attrs["device"]
    if not (name := gpu or sheet_name(device)):
        raise ValueError(
            f"no data sheet of {device or 'the GPU, whose name was not recorded'}; name a GPU that has one"
        )
    if gpu is None and get_gpu(name).vendor != "NVIDIA":
        raise ValueError(f"there is no evidence of how fast kernels of {device} are; name an NVIDIA GPU to project on")
    waits = replace(efficiency or Efficiency(), dispatch_s=0.0, dispatch_compiled_s=0.0)
    alike = table.assign(backend=table["backend"].astype(str).replace(_SAME_KERNEL))
    timed = project(alike, gpu=name, efficiency=waits)
    sized = table["flop"] + table["read_bytes"] + table["write_bytes"] > 0
    out = table.assign(projected_s=timed["time_s"].where(sized), bound=timed["bound"])
    out.attrs = {**table.attrs, "gpu": timed.attrs["gpu"]}
    return out


def compared(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Measured and projected seconds by a column, the longest first: ``time_s, share, known_s, projected_s, ratio``.

    ``known_s`` is the measured time of the rows that have a projection, ``ratio`` projected / measured of those.
    """
    columns = {"time_s": table["time_s"], "known_s": table["time_s"].where(table["projected_s"].notna())}
    sums = pd.DataFrame(columns | {"projected_s": table["projected_s"]}).groupby(table[by].astype(str)).sum()
    sums.insert(1, "share", sums["time_s"] / sums["time_s"].sum())
    sums["ratio"] = (sums["projected_s"] / sums["known_s"]).where(sums["known_s"] > 0)
    return sums.sort_values("time_s", ascending=False).rename_axis(by).reset_index()
