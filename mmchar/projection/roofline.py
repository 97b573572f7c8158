"""Project an operator table onto a GPU: how long would each row take, and what holds it back.

Device time of a row is that of its kernels (`kernel_times`): the longer of the arithmetic they really do and the bytes
they move, and what neither explains. What they really do differs from the row's FLOPs where kernels compute whole
tiles: 16 frames attending to 16 frames fill 1/64 of a flash kernel's tile, and the kernel computes all of it. That is
why temporal attention is slow although it has few FLOPs.

The host hands kernels to the device and runs ahead of it. Only where a whole stage has more host time than device time
does the device wait; the wait then falls on the rows that are shorter than their own dispatch.

A table of several GPUs (`layout.parallelize`) has Communication rows; their time is what their messages keep
the link busy, less what hides behind other work.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import OUTSIDE, count
from mmchar.projection.columns import POINTWISE, Columns, columns_of, holds, launches
from mmchar.projection.communication import Interconnect, exposed_s, message_s
from mmchar.projection.data_sheets import TORCH_DTYPES, Gpu, get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import BOUNDS
from mmchar.projection.kernel_times import kernel_times
from mmchar.tables.shown import whole
from mmchar.tracing.attention import ITEM_BYTES, use_backend

EXECUTIONS = ("eager", "compiled")


def project(
    table: Any,
    *inputs: Any,
    gpu: str | Gpu,
    attention: str | None = None,
    execution: str = "eager",
    efficiency: "Efficiency | Rates | None" = None,
    interconnect: Interconnect | None = None,
    **call: Any,
) -> pd.DataFrame:
    """The table with the time each row would take on a GPU, in seconds for all its calls in one execution.

    ``project(table, gpu="h100-sxm")``, ``project("sdxl-base-1.0", gpu="h100-sxm", steps=4)``,
    ``project(pipe, gpu="h100-sxm", prompt="a cat")``.

    Parameters
    ----------
    table : DataFrame, or what `mmchar.count` takes
        An operator table, counted or measured, which is not changed; or a name, a model or an object of your own, which
        is counted first.
    *inputs, **call
        What the generation is called with, and how it is counted (``dtype``, ``tiny``), as for `mmchar.count`;
        nothing with a table.
    gpu : str or Gpu
        A name from `list_gpus`, or a data sheet of your own.
    attention : {"flash", "eager"}, optional
        Attention kernels to assume; by default those the table names.
    execution : {"eager", "compiled"}
        ``compiled`` fuses pointwise operators (see `fuse_pointwise`) and issues kernels with less host time.
    efficiency : Efficiency or Rates, optional
        What kernels reach, by default as fitted; ``read_efficiency("my-gpu.json").rates`` is that of a GPU of your own.

    Returns
    -------
    DataFrame
        ``time_s``; ``time_kind`` = ``projected``; ``kernels``, the launches the host issues; and ``bound``:
        ``compute``, ``memory``, ``launch`` (the shortest kernel, or waiting for the host), ``communication``, or empty
        where a row costs nothing.
    """
    sheet = get_gpu(gpu)
    _check_execution(execution)
    if not isinstance(table, pd.DataFrame):
        table = count(table, *inputs, **call)
    elif more := [*map(repr, inputs), *call]:
        raise ValueError(f"{', '.join(more)} does not go with a table; give a model or an object to count it anew")
    rates = efficiency if isinstance(efficiency, Rates) else Rates(efficiency or Efficiency())
    rates = rates if interconnect is None else replace(rates, messages=interconnect)
    out = prepare(table, attention=attention, execution=execution)
    device_s, wait_s, bound = row_times(columns_of(out), sheet, rates, execution=execution)
    out = out.assign(
        time_s=device_s + wait_s,
        time_kind=pd.Categorical.from_codes(np.zeros(len(out), dtype=int), ["projected"]),
        bound=pd.Categorical.from_codes(bound, list(BOUNDS)),
    )
    out.attrs = {**table.attrs, "gpu": sheet.name, "execution": execution}
    return whole(out)


def prepare(table: pd.DataFrame, *, attention: str | None, execution: str) -> pd.DataFrame:
    """The table with the attention kernels and the launches of an execution, before any GPU is chosen."""
    _check_execution(execution)
    out = table if attention is None else use_backend(table, attention)
    out = out.assign(kernels=launches(out))
    return fuse_pointwise(out) if execution == "compiled" else out


def _check_execution(execution: str) -> None:
    if execution not in EXECUTIONS:
        raise ValueError(f"unknown execution {execution!r}; choose one of {', '.join(EXECUTIONS)}")


@dataclass(frozen=True)
class Rates:
    """What a projection assumes of kernels and of messages."""

    kernels: Efficiency = field(default_factory=Efficiency)
    messages: Interconnect = field(default_factory=Interconnect)


def row_times(columns: Columns, gpu: Gpu, rates: Rates, *, execution: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of each row on the device, seconds the device waits for the host, and an index into ``BOUNDS``."""
    for dtype in set(TORCH_DTYPES) & set(columns.dtypes) - set(gpu.peak_flop_s):
        if (columns.of_dtype(dtype) & (columns.flop > 0)).any():
            gpu.check_dtype(dtype)  # which the GPU lacks
    kernels, eager = rates.kernels, columns.runs_eager(execution)
    parts = kernel_times(columns, gpu, kernels, execution=execution).parts
    device_s = np.sum(parts, axis=0)
    host_s = columns.launches * np.where(eager, kernels.dispatch_s, kernels.dispatch_compiled_s)
    if columns.sent.any():  # the link works beside the kernels: a message takes the time that nothing hides
        device_s = np.where(columns.sent, 0.0, device_s)
        device_s += exposed_s(columns, device_s, message_s(columns, gpu, rates.messages))
        host_s = host_s + columns.sent * columns.launches * rates.messages.host_s
    wait_s = _host_wait_s(columns, device_s, host_s)
    bound = np.where(wait_s > 0, 3, 1 + np.argmax(parts, axis=0))
    bound[columns.sent & (wait_s == 0)] = 4
    bound[device_s + wait_s == 0] = 0
    return device_s, wait_s, bound


def fuse_pointwise(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a compiler runs it: what one module call does between matrix products becomes one kernel.

    Rule: of the Elementwise, Normalization and Data movement rows that share stage, step and module, the one that moves
    most bytes stays, as the kernel that reads their input and writes their output; the others happen in registers and
    cost nothing. What enters and leaves the kernel is in the model's own type, also where the arithmetic is done in
    float32. Fusion across modules, and into matrix products, is left out.
    """
    pointwise = holds(table, "category", *POINTWISE) & (table["kernels"].to_numpy() > 0)
    pointwise &= ~holds(table, "stage", OUTSIDE)
    rows = table[pointwise].reset_index(drop=True)
    moved = (rows["read_bytes"] + rows["write_bytes"]).rename("moved")
    modules = [rows[column] for column in ("model", "stage", "step", "component", "module")]
    survivors = moved.groupby(modules, observed=True, sort=False).idxmax().to_numpy()
    absorbed = np.delete(np.flatnonzero(pointwise), survivors)
    wider = _times_wider(table) * pointwise
    fused = {}
    for column in ("read_bytes", "write_bytes", "kernels"):
        values = table[column].to_numpy(copy=True)
        values[absorbed] = 0
        fused[column] = values if column == "kernels" else values // np.maximum(wider, 1)
    return table.assign(**fused)


def _times_wider(table: pd.DataFrame) -> np.ndarray:
    """How many times as wide as the model's own type each row's type is, where it is wider; else 1."""
    own = ITEM_BYTES.get(str(table.attrs.get("dtype")), max(ITEM_BYTES.values()))
    item = table["dtype"].astype(str).map(ITEM_BYTES).fillna(own).to_numpy().astype("int64")
    return np.maximum(item // own, 1)


def _host_wait_s(columns: Columns, device_s: np.ndarray, host_s: np.ndarray) -> np.ndarray:
    """Seconds each row's device waits for the host: a stage takes the longer of its host's and its device's total.

    The difference is shared among the rows in proportion to how much shorter they are than their own dispatch, so no
    row takes longer than the longer of its two times.
    """
    short_s = np.maximum(host_s - device_s, 0.0)
    idle = np.maximum(np.bincount(columns.stage, columns.repeats * (host_s - device_s)), 0.0)
    able = np.bincount(columns.stage, columns.repeats * short_s)
    share = np.divide(idle, able, out=np.zeros(len(idle)), where=idle > 0)
    return short_s * share[columns.stage]
