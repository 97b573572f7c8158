"""What kernels really compute: whole tiles, on as many multiprocessors as there are tiles.

A kernel cannot do less than a tile, and a GPU cannot do less than a wave of them. Short sequences, as in temporal
attention, and small matrix products pay for what they do not use.
"""

import numpy as np

from mmchar.projection.columns import Columns, item_bytes
from mmchar.projection.data_sheets import Gpu

LARGE_TILE, SMALL_TILE = 128, 64  # sides of the output tile one block of a matrix product computes
SPLIT_DEPTH = 512  # a product with few output tiles is split along its inner dimension, not finer than this
MMA_DEPTH = 16  # tensor cores take the inner dimension of a product in steps of 16 half-precision numbers
_BUILT = np.array([32, 64, 96, 128, 192, 256])  # head_dim that fused kernels are built for


def padded_attention_flop(columns: Columns, gpu: Gpu, fill_keys: float) -> tuple[np.ndarray, np.ndarray]:
    """FLOP that attention kernels really do for all calls of each row, and the share of multiprocessors they fill.

    A fused kernel gives each block 128 queries (64 if memory-efficient), walks over tiles of keys, and pads head_dim to
    the size it was built for; with a causal mask it skips tiles above the diagonal. Before the first tile and after the
    last it waits as long as ``fill_keys`` more keys would take. When blocks do not fill the GPU,
    the flash kernel also splits the keys, with 64 queries per block. Eager attention is two batched matrix products,
    padded to ``SMALL_TILE`` in their outputs and ``MMA_DEPTH`` in depth.

    **Source**: Dao-AILab/flash-attention, ``flash_fwd_launch_template.h`` (tiles by head_dim) and ``flash_api.cpp``
    (``num_splits_heuristic``); 64 x 64 for the memory-efficient kernel is that of CUTLASS's example 41.
    """
    q, kv, d = columns.q_len, columns.kv_len, columns.head_dim
    pairs = columns.batch * columns.heads
    flash = runs_flash(columns, gpu)

    blocks = pairs * _tiles(q, 128)
    split = flash & (blocks < 0.8 * gpu.multiprocessors)
    q_tile = np.where(flash & ~split, 128, 64)
    kv_tile = np.where(flash & (d <= 64), 128, 64)
    q_pad, kv_pad = _tiles(q, q_tile) * q_tile, _tiles(kv, kv_tile) * kv_tile
    causal = columns.causal & (q > 1)
    visible = np.where(causal, 1 - (q_pad - q_tile) / np.maximum(2 * kv_pad, 1), 1.0)
    walked = kv_pad * visible + np.where(split, 0.0, fill_keys)
    fused_flop = 4.0 * pairs * q_pad * walked * kernel_head_dim(d)
    fused_blocks = pairs * _tiles(q, q_tile) * np.where(split, _tiles(kv, kv_tile), 1)

    q_gemm, kv_gemm, d_gemm = (_tiles(x, SMALL_TILE) * SMALL_TILE for x in (q, kv, d))
    kv_deep, d_deep = (_tiles(x, MMA_DEPTH) * MMA_DEPTH for x in (kv, d))
    # [q, d] @ [d, kv] and [q, kv] @ [kv, d]
    eager_flop = 2.0 * pairs * (q_gemm * kv_gemm * d_deep + q_gemm * kv_deep * d_gemm)
    eager_blocks = pairs * _tiles(q, SMALL_TILE) * _tiles(d, SMALL_TILE)

    flop = np.where(columns.fused, fused_flop, eager_flop) * columns.calls
    return flop, np.minimum(1.0, np.where(columns.fused, fused_blocks, eager_blocks) / gpu.multiprocessors)


def product_share(columns: Columns, gpu: Gpu, flop_s: np.ndarray, fed: np.ndarray) -> np.ndarray:
    """Share of ``flop_s``, the peak of each row, that a product or convolution reaches, with the best of four tiles.

    One block per output tile, one tile per multiprocessor at a time: 109 tiles on 108 multiprocessors take two waves,
    and what of a tile lies beyond the output is computed in vain. A product with few tiles is split along its depth;
    tiles of few rows are as many rows high as tensor cores take at once. A tile of h x w reads h + w operands for each
    h w multiply-adds, and what a multiprocessor is fed with, ``fed`` bytes per clock, comes on top of its arithmetic:
    so the faster tensor cores are, the smaller the share that they reach, and the more they need large tiles.
    """
    rows = np.clip(-(-columns.m // MMA_DEPTH) * MMA_DEPTH, MMA_DEPTH, SMALL_TILE)
    wide = np.clip(-(-columns.n // MMA_DEPTH) * MMA_DEPTH, MMA_DEPTH, SMALL_TILE)
    per_clock = flop_s / gpu.multiprocessor_clocks_s
    shares = []
    for high, across, parts in (
        (LARGE_TILE, LARGE_TILE, 1),
        (LARGE_TILE, SMALL_TILE, 1),
        (SMALL_TILE, SMALL_TILE, 1),
        (rows, wide, np.ceil(columns.k / SPLIT_DEPTH)),
    ):
        blocks = np.ceil(columns.m / high) * np.ceil(columns.n / across) * parts
        waves = np.maximum(np.ceil(blocks / gpu.multiprocessors), 1)
        useful = columns.m * columns.n * parts / (waves * gpu.multiprocessors * high * across)
        needed = per_clock * item_bytes(columns) * (high + across) / (2 * high * across)  # bytes per clock
        shares.append(useful * fed / (fed + needed))
    return np.maximum(np.max(shares, axis=0), 1e-9)


def kernel_head_dim(head_dim: np.ndarray) -> np.ndarray:
    """The head_dim that a fused kernel computes: the next size it is built for."""
    index = np.searchsorted(_BUILT, head_dim)
    return np.where(index < len(_BUILT), _BUILT[np.minimum(index, len(_BUILT) - 1)], head_dim)


def runs_flash(columns: Columns, gpu: Gpu) -> np.ndarray:
    """Whether a row asked for flash gets it: half precision on Ampere or later, else the memory-efficient kernel."""
    return columns.flash & ~columns.of_dtype("float32") & (gpu.compute_capability >= 8.0)


def _tiles(length: np.ndarray, tile: int | np.ndarray) -> np.ndarray:
    return -(-length // tile)
