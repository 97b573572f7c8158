"""Project an operator table onto a GPU: how long would each row take, and what holds it back.

Device time of a row is the largest of three: the arithmetic it really does over the rate a kernel reaches, the bytes it
moves over the bandwidth a kernel reaches, and the shortest time a kernel can take. What it really does differs from its
FLOPs where kernels compute whole tiles: 16 frames attending to 16 frames fill 1/64 of a flash kernel's tile, and the
kernel computes all of it. That is why temporal attention is slow although it has few FLOPs.

The host hands kernels to the device and runs ahead of it. Only where a whole stage has more host time than device time
does the device wait; the wait then falls on the rows that are shorter than their own dispatch.

Not in this version: reuse in the L2 cache, clocks that fall under load, channels-last models, several GPUs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmchar.attention import kernels_per_call, use_backend
from mmchar.counting import executions
from mmchar.hardware import TORCH_DTYPES, Gpu, get_gpu
from mmchar.tiles import FUSED_BACKENDS, filled_by_matmul, holds, padded_attention_flop, runs_flash

if TYPE_CHECKING:
    import pandas as pd

EXECUTIONS = ("eager", "compiled")
BOUNDS = ("", "compute", "memory", "launch")
WHOLE_NORMS = ("native_group_norm", "native_layer_norm", "_fused_rms_norm")


@dataclass(frozen=True)
class Efficiency:
    """What kernels reach of the data sheet, and what a launch costs. Few numbers, the same for every model.

    Parameters
    ----------
    matmul : float
        Share of peak of large matrix products. **Source**: FlashAttention-2, arXiv 2307.08691, section 1 (80-90 %).
    convolution : float
        Share of peak of cuDNN convolutions. Assumed, to be fitted.
    small_tile : float
        Speed of a matrix product in 64 x 64 tiles against 128 x 128 ones, which read operands half as often. Assumed.
    flash : float
        Share of peak of a FlashAttention-2 forward on full tiles, before Hopper. **Source**: arXiv 2307.08691,
        abstract (50-73 % on A100).
    flash_hopper : float
        The same kernel on Hopper, whose tensor cores it does not keep busy. **Source**: FlashAttention-3, arXiv
        2407.08608, abstract (35 % on H100). Taken for Blackwell too, which is assumed.
    mem_efficient : float
        Share of peak of PyTorch's memory-efficient kernel, which also serves masks, float32 and GPUs before Ampere.
        **Source**: arXiv 2307.08691, abstract, of kernels before FlashAttention-2 (25-40 %).
    bandwidth : float
        Share of memory bandwidth that streaming kernels reach. **Source**: NVIDIA developer forum 339083 (2025): 88 to
        90 % is the most any kernel gets on an A100; a little less assumed for everyday kernels.
    kernel_s : float
        Shortest time from one kernel's start to the next's. Assumed, to be fitted.
    dispatch_s, dispatch_compiled_s : float
        Host time per operator of PyTorch in eager mode, with its share of Python modules, views and allocations.
        **Source**: 25.5 tokens/s of a host-bound LLaMA-7B on an A100 (PyTorch blog "Accelerating Generative AI with
        PyTorch II", 2023-11-30) are 39 ms, for the 1,300 operators counted in transformers' LLaMA-2 7B; that the two
        implementations issue equally many is assumed. Per kernel of a compiled graph: assumed.
    """

    matmul: float = 0.80
    convolution: float = 0.55
    small_tile: float = 0.6
    flash: float = 0.62
    flash_hopper: float = 0.35
    mem_efficient: float = 0.33
    bandwidth: float = 0.85
    kernel_s: float = 3e-6
    dispatch_s: float = 30e-6
    dispatch_compiled_s: float = 3e-6


def project(
    table: "pd.DataFrame",
    *,
    gpu: str | Gpu,
    attention: str | None = None,
    execution: str = "eager",
    efficiency: Efficiency | None = None,
) -> "pd.DataFrame":
    """The table with the time each row would take on a GPU, in seconds for all its calls in one execution.

    Parameters
    ----------
    table : DataFrame
        An operator table, counted or measured; it is not changed.
    gpu : str or Gpu
        A name from `list_gpus`, or a data sheet of your own.
    attention : {"flash", "eager"}, optional
        Attention kernels to assume; by default those the table names.
    execution : {"eager", "compiled"}
        ``compiled`` fuses pointwise operators (see `fuse_pointwise`) and issues kernels with less host time.
    efficiency : Efficiency, optional
        What kernels reach of the data sheet.

    Returns
    -------
    DataFrame
        ``time_s``; ``time_kind`` = ``projected``; ``kernels``, the launches the host issues; and ``bound``:
        ``compute``, ``memory``, ``launch`` (the shortest kernel, or waiting for the host), or empty where a row costs
        nothing.

    Raises
    ------
    ValueError
        Unknown GPU, attention or execution; the GPU lacks the table's numeric type.
    """
    import pandas as pd

    sheet = gpu if isinstance(gpu, Gpu) else get_gpu(gpu)
    rates = efficiency or Efficiency()
    if execution not in EXECUTIONS:
        raise ValueError(f"unknown execution {execution!r}; choose one of {', '.join(EXECUTIONS)}")
    _check_dtypes(table, sheet)
    out = table if attention is None else use_backend(table, attention)
    out = out.assign(kernels=_kernels(out))
    if execution == "compiled":
        out = fuse_pointwise(out)

    compute_s, memory_s, copies_s = _compute_s(out, sheet, rates), *_memory_s(out, sheet, rates)
    shortest_s = out["kernels"].to_numpy() * rates.kernel_s
    device_s = np.maximum.reduce([compute_s, memory_s, shortest_s]) + copies_s
    dispatch_s = rates.dispatch_s if execution == "eager" else rates.dispatch_compiled_s
    wait_s = _host_wait_s(out, device_s, out["kernels"].to_numpy() * dispatch_s)
    bound = np.where(wait_s > 0, 3, 1 + np.argmax([compute_s, memory_s + copies_s, shortest_s], axis=0))
    bound[device_s + wait_s == 0] = 0

    out = out.assign(
        time_s=device_s + wait_s,
        time_kind=pd.Categorical.from_codes(np.zeros(len(out), dtype=int), ["projected"]),
        bound=pd.Categorical.from_codes(bound, list(BOUNDS)),
    )
    out.attrs = {**table.attrs, "gpu": sheet.name, "execution": execution}
    return out


def summarize(table: "pd.DataFrame", *, gpu: str | Gpu | None = None) -> dict[str, Any]:
    """Totals of a projected table, in seconds and joules, as ``mmchar project --json`` prints them.

    Totals are ``value * repeats``: a stage's ``time_s`` is that of one execution (the mean, where steps differ), and
    ``total_s`` that of all its repeats. Categories and bounds are totals and add up to ``time_s``. ``energy_j`` is time
    x board power limit, an upper bound.

    Parameters
    ----------
    gpu : str or Gpu, optional
        Whose power to take; by default the GPU the table was projected on.
    """
    name = gpu or table.attrs.get("gpu")
    if "bound" not in table.columns or name is None:
        raise ValueError("summarize needs a projected table; call project(table, gpu=…) first, or pass gpu=… as well")
    sheet = name if isinstance(name, Gpu) else get_gpu(name)
    total = (table["time_s"] * table["repeats"]).rename("time_s")
    runs = executions(table)
    stages = total.groupby(table["stage"], observed=True, sort=False).sum()
    categories = total.groupby(table["category"], observed=True).sum().sort_values(ascending=False)
    bounds = total.groupby(table["bound"].astype(str)).sum()
    return {
        "time_s": float(total.sum()),
        "energy_j": float(total.sum()) * sheet.tdp_w,
        "stages": [
            {"stage": str(name), "repeats": int(runs[name]), "time_s": total_s / int(runs[name]), "total_s": total_s}
            for name, total_s in stages.to_dict().items()
        ],
        "categories": {str(category): float(time_s) for category, time_s in categories.items()},
        "bound": {bound: float(bounds.get(bound, 0.0)) for bound in BOUNDS[1:]},
    }


def fuse_pointwise(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table as a compiler runs it: pointwise operators of one module call become one kernel.

    Rule: of the Elementwise rows, and of the normalizations written out in pointwise operators, that share stage, step
    and module, the one that moves most bytes stays, as the kernel that reads its input and writes its output; the
    others happen in registers and cost nothing. Fusion across modules, and into matrix products, is left out.
    """
    written_out = holds(table, "category", "Normalization") & ~_whole_norm(table)
    pointwise = (holds(table, "category", "Elementwise") | written_out) & (table["kernels"].to_numpy() > 0)
    rows = table[pointwise].reset_index(drop=True)
    moved = (rows["read_bytes"] + rows["write_bytes"]).rename("moved")
    modules = [rows[column] for column in ("model", "stage", "step", "component", "module")]
    survivors = moved.groupby(modules, observed=True, sort=False).idxmax().to_numpy()
    absorbed = np.delete(np.flatnonzero(pointwise), survivors)
    fused = {}
    for column in ("read_bytes", "write_bytes", "kernels"):
        values = table[column].to_numpy(copy=True)
        values[absorbed] = 0
        fused[column] = values
    return table.assign(**fused)


def _compute_s(table: "pd.DataFrame", gpu: Gpu, rates: Efficiency) -> np.ndarray:
    """Seconds of arithmetic: real FLOP over peak x efficiency x share of multiprocessors that have work.

    float32 follows PyTorch's defaults: convolutions go through TF32, matrix products and attention do not.
    """
    flop = table["flop"].to_numpy().astype(float)
    filled = filled_by_matmul(table, gpu, rates.small_tile)
    core = holds(table, "category", "Attention") & (table["q_len"].to_numpy() > 0)
    if core.any():
        padded, share = padded_attention_flop(table[core], gpu)
        flop[core], filled[core] = padded, share
    convolution = holds(table, "category", "Convolution")
    fused = core & holds(table, "backend", *FUSED_BACKENDS)
    reached = np.where(convolution, rates.convolution, rates.matmul)
    reached[fused] = rates.mem_efficient
    reached[fused & runs_flash(table, gpu)] = rates.flash if gpu.compute_capability < 9 else rates.flash_hopper
    peak = np.full(len(table), gpu.peak("float32"))
    peak[convolution] = gpu.peak("float32", tf32=True)
    for dtype in ("float16", "bfloat16"):
        if dtype in gpu.peak_flop_s:
            peak[holds(table, "dtype", dtype)] = gpu.peak(dtype)
    return np.divide(flop, peak * reached * filled, out=np.zeros(len(table)), where=flop > 0)


def _memory_s(table: "pd.DataFrame", gpu: Gpu, rates: Efficiency) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of memory traffic of the kernel itself, and of the copies around it.

    A fused normalization reads its input twice: for the statistics, then to scale it. Convolutions on tensor cores want
    channels last and PyTorch's tensors are channels first, so cuDNN copies input, weight and output to the other
    layout: each is read and written once more.
    """
    read, write = table["read_bytes"].to_numpy(), table["write_bytes"].to_numpy()
    streamed = read * np.where(_whole_norm(table), 2.0, 1.0) + write
    copied = 2.0 * (read + write) * holds(table, "category", "Convolution")
    reached = gpu.bandwidth_bytes_s * rates.bandwidth
    return streamed / reached, copied / reached


def _host_wait_s(table: "pd.DataFrame", device_s: np.ndarray, host_s: np.ndarray) -> np.ndarray:
    """Seconds each row's device waits for the host: a stage takes the longer of its host's and its device's total.

    The difference is shared among the rows in proportion to how much shorter they are than their own dispatch, so no
    row takes longer than the longer of its two times.
    """
    stage = table.groupby(["model", "stage"], observed=True, sort=False).ngroup().to_numpy()
    repeats = table["repeats"].to_numpy()
    short_s = np.maximum(host_s - device_s, 0.0)
    idle = np.maximum(np.bincount(stage, repeats * (host_s - device_s)), 0.0)
    share = np.divide(idle, np.bincount(stage, repeats * short_s), out=np.zeros(len(idle)), where=idle > 0)
    return short_s * share[stage]


def _kernels(table: "pd.DataFrame") -> np.ndarray:
    """Launches the host issues for all calls of a row; a row that does and moves nothing launches nothing."""
    each = np.ones(len(table), dtype="int64")
    masked = table["mask_bytes"].to_numpy() > 0
    for backend in ("eager", "math"):
        here = holds(table, "backend", backend)
        each[here & ~masked] = kernels_per_call(backend, False)
        each[here & masked] = kernels_per_call(backend, True)
    works = (table["flop"] + table["read_bytes"] + table["write_bytes"]).to_numpy() > 0
    return table["calls"].to_numpy() * each * works


def _whole_norm(table: "pd.DataFrame") -> np.ndarray:
    """Normalizations that one operator computes, as opposed to ones written out in pointwise operators."""
    return holds(table, "category", "Normalization") & holds(table, "op", *WHOLE_NORMS)


def _check_dtypes(table: "pd.DataFrame", gpu: Gpu) -> None:
    for dtype in TORCH_DTYPES:
        if dtype not in gpu.peak_flop_s and (holds(table, "dtype", dtype) & (table["flop"].to_numpy() > 0)).any():
            gpu.check_dtype(dtype)
