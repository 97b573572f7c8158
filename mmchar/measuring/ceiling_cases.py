"""The single operators that a machine's ceilings are measured with: which, at which sizes, with how much work.

The sizes are those that the zoo's models run, and around them the ones where kernels change: one token, sizes that no
tile divides, head dimensions between powers of two, thousands of short sequences.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from mmchar.measuring.optimization.backends import MEASURED, ON_CPU
from mmchar.tracing.attention import ITEM_BYTES

_SQUARE = (256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # rows of a product in a decode or a short prefill
_LAYERS = ((4096, 4096), (11008, 4096), (4096, 11008), (3072, 3072), (12288, 3072))  # LLaMA-2 7B, FLUX
_AWKWARD = ((77, 768, 768), (77, 1280, 2048), (4096, 320, 320), (8192, 2560, 320), (257, 1024, 1024),
            (1000, 1000, 1000), (4095, 4097, 1023), (4608, 3072, 15360), (1, 32000, 4096),
            (154, 4096, 4096))  # fmt: skip
# batch, channels in and out, side of the image, side of the kernel, stride: Stable Diffusion, SDXL, their autoencoder
_CONVOLUTIONS = ((2, 4, 320, 64, 3, 1), (2, 320, 320, 64, 3, 1), (2, 320, 320, 64, 3, 2),
                 (2, 960, 320, 64, 3, 1), (2, 640, 640, 32, 3, 1), (2, 1920, 640, 32, 3, 1), (2, 1280, 1280, 16, 3, 1),
                 (2, 2560, 1280, 16, 3, 1), (2, 1280, 1280, 8, 3, 1), (2, 640, 320, 64, 1, 1), (2, 320, 320, 128, 3, 1),
                 (2, 640, 640, 64, 3, 1), (2, 1280, 1280, 32, 3, 1), (1, 512, 512, 64, 3, 1), (1, 512, 512, 128, 3, 1),
                 (1, 512, 512, 256, 3, 1), (1, 256, 256, 512, 3, 1), (1, 128, 128, 512, 3, 1),
                 (1, 128, 128, 1024, 3, 1), (1, 128, 3, 512, 3, 1))  # fmt: skip
_IMAGES = ((320, 64), (640, 32), (1280, 16), (512, 128), (256, 512), (128, 1024))  # channels, side
_LENGTHS = (1, 16, 77, 256, 1024, 4096, 16384)
_HEAD_DIMS = ((8, 40), (16, 64), (16, 72), (24, 128), (1, 512))  # heads, head_dim: SD 1.5, SDXL, PixArt, FLUX, VAE
_WIDTHS = ((77, 768), (4096, 320), (4608, 3072), (1, 4096), (512, 4096), (32768, 1152), (1000, 1001))
_ELEMENTS = tuple(4**power for power in range(5, 15))  # 1 KiB to 1 GiB of float32


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    ``make(device)`` gives its inputs, ``call(*inputs)`` runs it once; ``moved`` is in items, every operand read once
    and every result written once.
    """

    op: str
    sizes: dict[str, Any]
    dtype: str
    flop: int
    moved: int
    make: Callable[[str], tuple[Any, ...]]
    call: Callable[..., Any]
    backend: str = ""

    @property
    def moved_bytes(self) -> int:
        """Bytes of all operands and results."""
        return self.moved * ITEM_BYTES[self.dtype]


def cases(*, device: str, tiny: bool = False) -> Iterator[Case]:
    """Every case, those of the number type that models run in first; few and small ones with ``tiny``."""
    main = "float32" if device.startswith("cpu") else "bfloat16"
    for dtype in dict.fromkeys((main, "bfloat16", "float32", "float16")):
        yield from _products(dtype, tiny)
        yield from _attentions(dtype, device, tiny)
        yield from _convolutions(dtype, tiny)
        if dtype != "float16":  # which moves as many bytes as bfloat16
            yield from _normalizations(dtype, tiny)
            yield from _pointwise(dtype, tiny)


def dispatch_cases() -> list[Case]:
    """What issuing costs: the smallest operators, whose own work is nothing, again and again."""

    def one(device: str) -> tuple[Any, ...]:
        return (torch.zeros(1, device=device),)

    def layer(device: str) -> tuple[Any, ...]:
        return torch.zeros(1, 16, device=device), torch.zeros(16, 16, device=device)

    def module(device: str) -> tuple[Any, ...]:
        return torch.nn.Linear(16, 16, device=device).requires_grad_(False), torch.zeros(1, 16, device=device)

    return [
        Case("dispatch add_", {}, "float32", 0, 3, one, lambda x: x.add_(1)),
        Case("dispatch empty", {}, "float32", 0, 0, one, torch.empty_like),
        Case("dispatch view", {}, "float32", 0, 0, one, lambda x: x.view(1, 1)),
        Case("dispatch linear", {}, "float32", 512, 288, layer, F.linear),
        Case("dispatch nn.Linear", {}, "float32", 512, 304, module, lambda net, x: net(x)),
    ]


def _products(dtype: str, tiny: bool) -> Iterator[Case]:
    """``[m, k] @ [n, k]^T -> [m, n]``, as a linear layer has it."""
    sizes = [(n, n, n) for n in _SQUARE] + [(m, *layer) for layer in _LAYERS for m in _TOKENS] + list(_AWKWARD)
    for m, n, k in [(64, 64, 64), (1, 128, 64)] if tiny else sizes:
        names, flop = dict(m=m, n=n, k=k), 2 * m * n * k
        yield _case("linear", dtype, names, F.linear, (m, k), (n, k), flop=flop, out=m * n)


def _convolutions(dtype: str, tiny: bool) -> Iterator[Case]:
    for layout, sizes in product(("first", "last"), [(1, 8, 8, 16, 3, 1)] if tiny else _CONVOLUTIONS):
        batch, c_in, c_out, side, kernel, stride = sizes
        names = dict(batch=batch, c_in=c_in, c_out=c_out, side=side, kernel=kernel, stride=stride, channels=layout)
        image, weight = (batch, c_in, side, side), (c_out, c_in, kernel, kernel)
        out = batch * c_out * ((side - 1) // stride + 1) ** 2
        flop, call = 2 * out * c_in * kernel * kernel, partial(F.conv2d, stride=stride, padding=kernel // 2)
        yield _case("convolution", dtype, names, call, image, weight, flop=flop, out=out, last=layout == "last")


def _attentions(dtype: str, device: str, tiny: bool) -> Iterator[Case]:
    for sizes in [(1, 2, 16, 16, 8, False), (1, 2, 1, 16, 8, False)] if tiny else _attention_sizes():
        batch, heads, q_len, kv_len, head_dim, causal = sizes
        names = dict(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim, causal=causal)
        flop = 4 * batch * heads * q_len * kv_len * head_dim
        # [b, q, h, d] in memory, as models leave it after their projections
        shapes = [(batch, length, heads, head_dim) for length in (q_len, kv_len, kv_len)]
        call = partial(F.scaled_dot_product_attention, is_causal=causal)
        for backend in ON_CPU if device.startswith("cpu") else MEASURED:
            yield _case("attention", dtype, names, call, *shapes, flop=flop, swapped=True, backend=backend)


def _attention_sizes() -> Iterator[tuple[int, int, int, int, int, bool]]:
    yield from ((2, heads, n, n, d, False) for (heads, d), n in product(_HEAD_DIMS, _LENGTHS))
    yield from ((2, 8, n, 77, 40, False) for n in (256, 1024, 4096))  # cross attention of an image to a prompt
    yield from ((1, 32, n, n, 128, True) for n in (512, 2048, 8192))  # prefill
    yield from ((batch, 32, 1, n, 128, False) for batch in (1, 8) for n in (256, 1024, 4096, 16384))  # decode
    yield from ((batch, 8, 16, 16, 40, False) for batch in (64, 1024, 4096, 9216))  # temporal: a sequence per pixel
    yield from ((batch, 20, 49, 49, 64, False) for batch in (1350, 5400))


def _normalizations(dtype: str, tiny: bool) -> Iterator[Case]:
    for rows, width in [(8, 32)] if tiny else _WIDTHS:
        names, x, w = dict(rows=rows, width=width), (rows, width), (width,)
        yield _case("layer_norm", dtype, names, lambda x, w: F.layer_norm(x, w.shape, w), x, w)
        yield _case("rms_norm", dtype, names, lambda x, w: F.rms_norm(x, w.shape, w), x, w)
        yield _case("softmax", dtype, names, lambda x: torch.softmax(x, -1), x)
    for channels, side in [(32, 8)] if tiny else _IMAGES:
        names = dict(batch=2, channels=channels, side=side)
        yield _case("group_norm", dtype, names, lambda x: F.group_norm(x, 32), (2, channels, side, side))


def _pointwise(dtype: str, tiny: bool) -> Iterator[Case]:
    """Elementwise work and copies, by number of elements; the large ones are the bandwidth of the memory."""
    for n in (256, 4096) if tiny else _ELEMENTS:
        yield _case("copy", dtype, dict(elements=n), torch.clone, (n,))
        yield _case("add", dtype, dict(elements=n), torch.add, (n,), (n,))
        yield _case("silu", dtype, dict(elements=n), F.silu, (n,))
        yield _case("gelu", dtype, dict(elements=n), F.gelu, (n,))
        side = math.isqrt(n)
        yield _case("transposed copy", dtype, dict(rows=side, width=side), lambda x: x.t().contiguous(), (side, side))
    # heads and tokens, or frames and pixels, change places: what spatial and temporal attention copy for
    for shape in [(2, 4, 16, 8)] if tiny else [(2, 4096, 8, 40), (2, 16, 4096, 320), (1, 49, 1350, 1920)]:
        names = dict(shape="x".join(map(str, shape)), swapped="1,2")
        yield _case("permuted copy", dtype, names, lambda x: x.transpose(1, 2).contiguous(), shape)


def _case(
    op: str,
    dtype: str,
    sizes: dict[str, Any],
    call: Callable[..., Any],
    *shapes: tuple[int, ...],
    flop: int = 0,
    out: int | None = None,
    last: bool = False,
    swapped: bool = False,
    backend: str = "",
) -> Case:
    """A case on random inputs of these shapes, whose result has ``out`` items, or as many as the first input.

    With ``last`` channels are last in memory, with ``swapped`` axes 1 and 2 are swapped.
    """

    def make(device: str) -> tuple[Any, ...]:
        made = [torch.randn(shape, device=device, dtype=getattr(torch, dtype)) for shape in shapes]
        if last:
            made = [x.contiguous(memory_format=torch.channels_last) for x in made]
        return tuple(x.transpose(1, 2) for x in made) if swapped else tuple(made)

    items = [math.prod(shape) for shape in shapes]
    return Case(op, sizes, dtype, flop, sum(items) + (out or items[0]), make, call, backend)
