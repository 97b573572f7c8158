"""Device time of each row's kernels, kind by kind: matrix products, convolutions, attention, normalizations, the rest.

A row is its main kernel, which takes the longer of its arithmetic and its traffic, and what PyTorch launches around it
in eager mode. A convolution brings copies to channels-last and back, and an addition of its bias; a group norm brings
statistics that one block computes per sample and group. A compiler keeps maps channels-last and fuses both.
"""

from dataclasses import dataclass

import numpy as np

from mmchar.projection.columns import Columns, item_bytes
from mmchar.projection.data_sheets import Gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.tiles import SMALL_TILE, kernel_head_dim, padded_attention_flop, product_share, runs_flash

_EAGER_KERNELS = {"convolution": 4, "group_norm": 2}  # besides the main one: three copies and a bias; statistics


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of each row's kernels: arithmetic, traffic, and what neither explains; the first two overlap."""

    compute_s: np.ndarray
    memory_s: np.ndarray
    layout_s: np.ndarray  # copies of a convolution's maps to channels last and back
    bias_s: np.ndarray  # addition of a convolution's bias
    statistics_s: np.ndarray  # of a group norm, by few blocks
    start_s: np.ndarray  # what kernels take to start and to end

    @property
    def main_s(self) -> np.ndarray:
        """Seconds of the main kernel of each row, without its start."""
        return np.maximum(self.compute_s, self.memory_s)

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """Seconds by what holds a row back: arithmetic, memory, and kernels too short or of too few blocks to fill."""
        computes = self.compute_s > self.memory_s
        around_s, latency_s = self.layout_s + self.bias_s, self.statistics_s + self.start_s
        return np.where(computes, self.main_s, 0.0), np.where(computes, 0.0, self.main_s) + around_s, latency_s


def kernel_times(columns: Columns, gpu: Gpu, rates: Efficiency, *, execution: str) -> KernelTimes:
    """What each row's kernels take on a GPU that never waits for its host."""
    eager = columns.runs_eager(execution)
    more = _EAGER_KERNELS["convolution"] * columns.spatial_kernel + _EAGER_KERNELS["group_norm"] * columns.group_norm
    launches = columns.launches * (1 + more * eager)
    return KernelTimes(
        compute_s=_compute_s(columns, gpu, rates),
        memory_s=_memory_s(columns, gpu, rates, eager),
        layout_s=_layout_s(columns, gpu, rates) * eager,
        bias_s=_bias_s(columns, gpu, rates) * eager,
        statistics_s=_group_statistics_s(columns, gpu, rates) * eager,
        start_s=launches * np.where(eager, rates.kernel_s, rates.kernel_compiled_s),
    )


def _compute_s(columns: Columns, gpu: Gpu, rates: Efficiency) -> np.ndarray:
    """Seconds of arithmetic: real FLOP over peak x efficiency x share of multiprocessors that have work.

    float32 follows PyTorch's defaults: convolutions go through TF32, matrix products and attention do not. Depthwise
    convolutions have nothing for tensor cores to multiply and run on the plain ones.
    """
    flop = columns.flop.astype(float)
    plain = gpu.peak("float32")
    peak = np.full(len(columns), plain)
    peak[columns.convolution] = gpu.peak("float32", tf32=True)
    for dtype in ("float16", "bfloat16"):
        if dtype in gpu.peak_flop_s:
            peak[columns.of_dtype(dtype)] = gpu.peak(dtype)
    convolution = rates.fed_convolution_hopper if gpu.compute_capability >= 9 else rates.fed_convolution
    fed = np.where(columns.convolution, convolution, rates.fed)
    share = product_share(columns, gpu, peak, fed)
    speed = peak * share * columns.k / (columns.k + rates.fill_depth)
    speed = np.where(columns.depthwise, plain * rates.plain, speed)
    if columns.core.any():
        padded, filled = padded_attention_flop(columns, gpu, rates.fill_keys)
        fused = _fused_attention_flop_s(columns, gpu, rates, peak)
        eager = peak * rates.fed / (rates.fed + peak / gpu.multiprocessor_clocks_s * item_bytes(columns) / SMALL_TILE)
        flop = np.where(columns.core, padded, flop)
        speed = np.where(columns.core, np.where(columns.fused, fused, eager) * filled, speed)
    speed = np.where(_one_number_loads(columns), speed * rates.unaligned, speed)
    speed = np.where(columns.of_dtype("float32"), speed, np.minimum(speed, rates.sustained_flop_s(gpu)))
    return np.divide(flop, speed, out=np.zeros(len(columns)), where=flop > 0)


def _fused_attention_flop_s(columns: Columns, gpu: Gpu, rates: Efficiency, peak: np.ndarray) -> np.ndarray:
    """FLOP/s of fused attention kernels on full tiles.

    Every pair of a query and a key costs ``head_dim`` multiply-adds twice, and an exponential that takes as long as
    ``softmax_depth`` more. From Hopper on, kernels built of warp-level products reach what a multiprocessor does per
    clock with these, whatever its tensor cores could do; the rate of the plain float32 cores stands for
    multiprocessors x clock.
    """
    depth = kernel_head_dim(columns.head_dim)
    half = ~columns.of_dtype("float32")
    most = rates.flash * peak
    if gpu.compute_capability >= 9:
        most = np.where(half, np.minimum(most, rates.flash_mma * gpu.peak("float32")), most)
    kernel = np.where(runs_flash(columns, gpu), 1.0, rates.mem_efficient) * np.where(columns.causal, rates.causal, 1.0)
    return most * kernel * depth / (depth + rates.softmax_depth)


def _memory_s(columns: Columns, gpu: Gpu, rates: Efficiency, eager: np.ndarray) -> np.ndarray:
    """Seconds of the main kernel's traffic.

    In eager mode, kernels that handle one number at a time are as fast as multiprocessors issue instructions, where
    that is slower than memory. So is the softmax of long rows that vectors cannot load. A compiled group norm reads its
    input twice: for the statistics, then to scale it.
    """
    compiled_norm = columns.group_norm & ~eager
    moved = columns.read_bytes * np.where(compiled_norm, 2.0, 1.0) + columns.write_bytes
    product = (columns.flop > 0) | columns.core
    loads = np.where(_one_number_loads(columns), rates.unaligned, 1.0)
    reached = np.where(product, rates.product_bandwidth(gpu) * loads, rates.bandwidth)
    dram_s = moved / (gpu.bandwidth_bytes_s * reached)
    memory_s = np.where(product, dram_s, _through_cache_s(moved, columns.calls, dram_s, gpu, rates))
    memory_s = np.maximum(memory_s, columns.one_by_one * eager / _numbers_s(gpu, rates.one_by_one))
    return np.maximum(memory_s, columns.slow_softmax / _numbers_s(gpu, rates.statistics))


def _one_number_loads(columns: Columns) -> np.ndarray:
    """Which products in half precision load one number at a time, as their rows are not aligned to vectors."""
    return ~columns.of_dtype("float32") & ~columns.fused & ~columns.aligned


def _layout_s(columns: Columns, gpu: Gpu, rates: Efficiency) -> np.ndarray:
    """Seconds of a convolution's layout copies.

    Tensor cores want channels last and PyTorch's maps are channels first, so cuDNN copies input, weight and output to
    the other layout: each is read and written once more. A kernel of one position has no need of it.
    """
    copied = 2.0 * (columns.read_bytes + columns.write_bytes) * columns.spatial_kernel
    return copied / (gpu.bandwidth_bytes_s * rates.layout)


def _bias_s(columns: Columns, gpu: Gpu, rates: Efficiency) -> np.ndarray:
    """Seconds of adding a convolution's bias, a broadcast over its output. That it has one is assumed."""
    moved = 2.0 * columns.write_bytes * columns.convolution
    dram_s = moved / (gpu.bandwidth_bytes_s * rates.bandwidth)
    numbers_s = moved / 2 / item_bytes(columns) / _numbers_s(gpu, rates.one_by_one)
    return np.maximum(_through_cache_s(moved, columns.calls, dram_s, gpu, rates), numbers_s)


def _group_statistics_s(columns: Columns, gpu: Gpu, rates: Efficiency) -> np.ndarray:
    """Seconds of a group norm's statistics: each sample and group is summed by one block, on one multiprocessor."""
    blocks = np.minimum(np.maximum(columns.m, 1), gpu.multiprocessors)
    each_s = _numbers_s(gpu, rates.statistics) / gpu.multiprocessors
    return columns.group_norm * columns.calls * columns.m * columns.k / (blocks * each_s)


def _through_cache_s(
    moved: np.ndarray, calls: np.ndarray, dram_s: np.ndarray, gpu: Gpu, rates: Efficiency
) -> np.ndarray:
    """Seconds of pointwise traffic, of which what fits into the last-level cache is still there from the row before."""
    each = moved / np.maximum(calls, 1)
    cached = np.minimum(1.0, rates.cache_share * gpu.l2_bytes / np.maximum(each, 1))
    cached_s = np.minimum(dram_s, moved / (rates.cache_bytes * gpu.multiprocessor_clocks_s))
    return cached * cached_s + (1 - cached) * dram_s


def _numbers_s(gpu: Gpu, per_clock: float) -> float:
    """Numbers per second of a kernel that handles so many per clock and multiprocessor."""
    return per_clock * gpu.multiprocessor_clocks_s
