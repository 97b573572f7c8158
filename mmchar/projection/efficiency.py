"""What kernels reach of a data sheet, and what a launch costs: few numbers, the same for every model."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Efficiency:
    """Shares of a GPU's peaks, and times, that hold for every model.

    *Fitted* is by `calibration` to the published speeds of ``data/reference`` and to 222 configurations of five
    diffusion transformers that the ML.ENERGY leaderboard (v3, December 2025) measured on one to eight H100.
    """

    # Share of peak of endless matrix products, before Hopper and from Hopper on, whose tensor cores draw more power
    # than the board may take, so that clocks fall. Source: fitted; FlashAttention-2, arXiv 2307.08691, section 1 has
    # 80 to 90 % on an A100.
    matmul: float = 0.89
    matmul_hopper: float = 0.75
    # Share of peak of cuDNN convolutions on PyTorch's own layout: of feature maps that fit into the last-level cache,
    # of the part of a map beyond it, as in image decoders, and of maps over frames too, as in decoders of video.
    # Source: fitted; the last two are far from what the hardware could do.
    convolution: float = 0.443
    convolution_large: float = 0.114
    convolution_3d: float = 0.054
    # Multiply-adds that a tile of a matrix product loses to filling its pipeline and writing its result: a sum of
    # ``depth`` takes as long as ``depth + fill_depth``. Source: fitted.
    fill_depth: float = 287.0
    # Speed of a matrix product in 64 x 64 tiles against 128 x 128 ones, which read operands half as often. Assumed.
    small_tile: float = 0.6
    # Share of peak of a FlashAttention-2 forward on full tiles of endless head_dim, before Hopper. Source: fitted with
    # a prior from arXiv 2307.08691, figure 5 (A100: 190 TFLOP/s at head_dim 64, 225 at 128).
    flash: float = 0.842
    # The same kernel from Hopper on, which it runs with Ampere's warp-level products: FLOP per FLOP of the plain
    # float32 cores, whose rate stands for multiprocessors x clock. Source: fitted with a prior from FlashAttention-3,
    # arXiv 2407.08608, figure 5 (H100: 324 TFLOP/s at head_dim 64, 370 at 128). That Blackwell runs these products no
    # faster per multiprocessor and clock is assumed.
    flash_mma: float = 5.86
    # What the exponential and the bookkeeping of one pair of query and key cost, in columns of head_dim. Source: fitted
    # with a prior from the same figures.
    softmax_depth: float = 23.8
    # Speed of PyTorch's memory-efficient kernel against FlashAttention-2; it also serves masks, float32 and GPUs before
    # Ampere. Source: arXiv 2307.08691, abstract (FlashAttention-2 is twice as fast as kernels before it).
    mem_efficient: float = 0.5
    # Share of memory bandwidth that matrix products, and fused pointwise kernels, reach. Source: NVIDIA developer forum
    # 339083 (2025): 88 to 90 % is the most any kernel gets on an A100; fitted a little below.
    bandwidth: float = 0.857
    # The same of PyTorch's own pointwise kernels, normalizations and copies, which mix number types, broadcast and step
    # through strides. Source: fitted.
    pointwise: float = 0.461
    # What every kernel takes to start, fill the GPU and drain it, on top of its work. Source: fitted.
    kernel_s: float = 3.2e-6
    # Host time per operator of PyTorch in eager mode, with its share of Python modules, views and allocations. Source:
    # fitted to small batches on eight H100; slower hosts take longer (25.5 tokens/s of a LLaMA-7B on an A100, PyTorch
    # blog "Accelerating Generative AI with PyTorch II", 2023-11-30, are 30 us for each of the 1,300 operators counted
    # in transformers' LLaMA-2 7B).
    dispatch_s: float = 22.4e-6
    # Per kernel of a compiled graph: assumed.
    dispatch_compiled_s: float = 3e-6

    def __post_init__(self) -> None:
        bad = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if not _is_number(getattr(self, f.name))]
        if bad:
            raise ValueError(f"efficiency {', '.join(bad)} is not a number of 0 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
