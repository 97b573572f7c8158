"""What kernels reach of a data sheet, and what a launch costs: few numbers, the same for every model."""

from dataclasses import dataclass, fields

from mmchar.projection.data_sheets import Gpu


@dataclass(frozen=True)
class Efficiency:
    """What kernels reach per clock, of bandwidth and of power, and times that a launch takes: the same for every model.

    *Kernels* are times of single kernels in ``data/reference/kernel_times.csv``; *fitted* is by `calibration` to whole
    generations, those of ``data/reference/published_speeds.csv`` and 222 configurations of five diffusion transformers
    that the ML.ENERGY leaderboard (v3, December 2025) measured on one to eight H100, with the kernels as priors.
    """

    # Bytes of operands per clock and multiprocessor that a matrix product is fed with beside its arithmetic. Source:
    # kernels (89 % of an A100's peak, 80 % of an H100's); fitted.
    fed: float = 237.0
    # The same of cuDNN's convolutions, which gather their operands from feature maps: number by number before Hopper,
    # by a copy engine from Hopper on. Source: fitted on V100, T4 and A100; from Hopper on between kernels that disagree
    # (78 % of peak in FLUX's decoder on an H200, torch 2.13; 23 to 56 % in Wan's on an H100, older).
    fed_convolution: float = 24.4
    fed_convolution_hopper: float = 88.9
    # Multiply-adds that a tile of a matrix product loses to filling its pipeline and writing its result: a sum of
    # ``depth`` takes as long as ``depth + fill_depth``. Source: kernels (products of A100 and H100 by k).
    fill_depth: float = 146.0
    # Speed of products in half precision whose rows vectors cannot load (77, 197, 3,137 tokens), against those that
    # they can. Source: kernels (0.28 to 0.40 in eager attention on an H100).
    unaligned: float = 0.36
    # Share of the plain float32 cores' peak that depthwise convolutions reach, of which tensor cores have no use.
    # Assumed.
    plain: float = 0.3
    # Joules per FLOP of tensor cores in half precision, by manufacturing process: what a board's power limit allows
    # decides where it is tight, as on T4 and A10. Source: fitted (12 and 8 nm); 7 and 4 nm: the prior, below which
    # sustained products of an A100 PCIe and an H200 would draw more than their limits.
    joules_12nm: float = 4.53e-12
    joules_8nm: float = 3.02e-12
    joules_7nm: float = 1.2e-12
    joules_4nm: float = 0.75e-12
    # Share of peak of a FlashAttention-2 forward on full tiles of endless head_dim, before Hopper. Source: fitted with
    # a prior from arXiv 2307.08691, figure 5 (A100: 190 TFLOP/s at head_dim 64, 225 at 128).
    flash: float = 0.869
    # The same kernel from Hopper on, which it runs with Ampere's warp-level products: FLOP per FLOP of the plain
    # float32 cores, whose rate stands for multiprocessors x clock. Source: kernels (four timings on H100, 355 to 370
    # TFLOP/s at head_dim 128, beside `calibration.PRIORS`). That Blackwell runs these products no faster per
    # multiprocessor and clock is assumed.
    flash_mma: float = 6.32
    # What the exponential and the bookkeeping of one pair of query and key cost, in columns of head_dim. Source:
    # kernels (21 on an H100, 29 on an A100, beside `calibration.PRIORS`).
    softmax_depth: float = 28.2
    # Keys whose time a block of queries takes to start and to end. Source: kernels (causal attention of an A100 by
    # length; 2307.08691, figure 5 by length).
    fill_keys: float = 98.9
    # Speed of the same kernels under a causal mask, where blocks have unequal work, on the tiles that they compute.
    # Source: kernels (A100).
    causal: float = 0.88
    # Speed of PyTorch's memory-efficient kernel against FlashAttention-2; it also serves masks, float32 and GPUs before
    # Ampere. Source: fitted with a prior from arXiv 2307.08691, abstract (FlashAttention-2 is twice as fast as kernels
    # before it).
    mem_efficient: float = 0.490
    # Share of memory bandwidth that kernels reach which stream whole vectors. Source: kernels (85 to 92 % on H100).
    bandwidth: float = 0.860
    # The same of matrix products of few rows before Ada, as in a decoding step. Source: kernels (A100, all sizes above
    # 100 MB; 73 % with their launch).
    product: float = 0.779
    # The same of copies between channels first and channels last. Source: kernels (56 % on H100, 51 % on H200).
    layout: float = 0.546
    # Numbers per clock and multiprocessor of kernels that compute an index for each number: they broadcast (the bias of
    # a convolution, the scale of a norm), change strides, widen a type, or normalize rows. Source: kernels (1.2 to 1.4
    # on H100, 0.9 where the operands differ in type).
    one_by_one: float = 1.04
    # The same of the statistics of a group norm, of which each sample and group is one block on one multiprocessor.
    # Source: kernels (H200: 1.29e9 numbers per second and block).
    statistics: float = 0.636
    # Bytes per clock and multiprocessor from the last-level cache, and the share of it that still holds what the row
    # before has written. Source: fitted with a prior of 5 TB/s on an RTX 4090; the share is assumed.
    cache_bytes: float = 14.4
    cache_share: float = 0.5
    # What every kernel takes to start, fill the GPU and drain it, on top of its work, in eager mode and in a graph,
    # where kernels follow each other without gaps. Source: fitted; kernels (2.4 us for the smallest product).
    kernel_s: float = 3.94e-6
    kernel_compiled_s: float = 2.49e-6
    # Host time per operator of PyTorch in eager mode, with its share of Python modules, views and allocations. Source:
    # fitted to small batches on eight H100; slower hosts take longer (25.5 tokens/s of a LLaMA-7B on an A100, PyTorch
    # blog "Accelerating Generative AI with PyTorch II", 2023-11-30, are 30 us for each of the 1,300 operators counted
    # in transformers' LLaMA-2 7B).
    dispatch_s: float = 22.3e-6
    # Per kernel of a compiled graph: assumed.
    dispatch_compiled_s: float = 3e-6

    def product_bandwidth(self, gpu: Gpu) -> float:
        """Share of memory bandwidth that matrix products of few rows reach on a GPU."""
        return self.bandwidth if gpu.compute_capability >= 8.9 else self.product

    def sustained_flop_s(self, gpu: Gpu) -> float:
        """FLOP/s in half precision that a board's power limit allows."""
        at_least = ((8.9, self.joules_4nm), (8.6, self.joules_8nm), (8.0, self.joules_7nm), (0, self.joules_12nm))
        return gpu.tdp_w / next(joules for first, joules in at_least if gpu.compute_capability >= first)

    def __post_init__(self) -> None:
        bad = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if not _is_number(getattr(self, f.name))]
        if bad:
            raise ValueError(f"efficiency {', '.join(bad)} is not a number of 0 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
