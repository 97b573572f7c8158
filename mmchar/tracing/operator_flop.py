"""What one operator call costs: FLOP and bytes, read off the shapes of its arguments and results."""

import functools
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmchar.tracing import attention, operators
from mmchar.tracing.question import Question, tensors

Size = Callable[[Tensor], int]  # the bytes of a tensor


class Cost(NamedTuple):
    """What one call costs: FLOP, ``(m, n, k)`` (`product_sizes`), and bytes."""

    flop: int
    sizes: tuple[int, int, int]
    read_bytes: int
    write_bytes: int


class Costs:
    """Costs of calls, of which ``size`` gives the bytes of a tensor; of those that look alike the first is worked out.

    They follow from what the call was asked and what it returned, as `question` says it; real numbers do not matter.
    """

    def __init__(self, size: Size) -> None:
        self._size = size
        self._known: dict[Any, Cost] = {}

    def of(
        self, name: str, looks: tuple[Question, Question], args: tuple, inputs: list[Tensor], outputs: list[Tensor]
    ) -> Cost:
        """The cost of one call, of the tensors ``inputs`` and ``outputs``; ``looks`` are those of both."""
        key = name, looks
        try:
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be looked up
            return self._worked_out(name, args, inputs, outputs)
        if known is None:
            known = self._known[key] = self._worked_out(name, args, inputs, outputs)
        return known

    def _worked_out(self, name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> Cost:
        written = sum(map(self._size, outputs))
        work = flop(name, args, outputs)
        return Cost(work, product_sizes(name, args, work), read_bytes(name, args, inputs, written, self._size), written)


def flop(name: str, args: tuple, outputs: list[Tensor]) -> int:
    """FLOP of one call; 0 where an operator moves numbers or does next to nothing for each (`operators.category`)."""
    name = operators.out_of_place(name)
    if name in operators.ATTENTION_CORES:
        batch, heads, q_len, kv_len, head_dim = core_sizes(args)
        value_dim = args[2].shape[-1]
        return attention.attention_flop(q_len, kv_len, batch=batch, heads=heads, head_dim=head_dim, value_dim=value_dim)
    if name in operators.PRODUCTS or name in operators.SUMS:  # [..., m, k] @ [..., k, n] -> [..., m, n]
        return operators.matmul_flop(outputs[0].numel(), args[name in operators.SUMS].shape[-1], 1)
    if name == "convolution":
        image = args[0] if args[6] else outputs[0]  # args[6]: transposed
        return operators.convolution_flop(image.shape[2:], args[1].shape, batch=image.shape[0])
    if name in operators.GROUPED:
        return operators.grouped_flop(args[0].shape, args[1].shape)
    if name in operators.RECURRENT:
        return operators.recurrent_flop(prod(args[0].shape[:-1]), [w.shape for w in tensors(args[1:5]) if w.dim() == 2])
    if name in operators.FFT:
        real = outputs[0] if name == "_fft_c2r" else args[0]
        size = prod(real.shape[dim] for dim in args[1])
        return operators.fft_flop(size, transforms=real.numel() // max(size, 1))
    return _rare_flop(name, args, outputs)


def _rare_flop(name: str, args: tuple, outputs: list[Tensor]) -> int:
    if name in ("dot", "vdot"):  # [k] @ [k]
        return operators.matmul_flop(1, args[0].numel(), 1)
    if name == "addr":  # [m, 1] @ [1, n]
        return operators.matmul_flop(outputs[0].numel(), 1, 1)
    if name == "addbmm":  # [b, m, k] @ [b, k, n], summed over b
        b, m, k = args[1].shape
        return operators.matmul_flop(m, k, args[2].shape[-1], batch=b)
    if name == "_euclidean_dist":  # |x|^2 - 2 x y + |y|^2 as one product: [m, d + 2] @ [d + 2, n]
        return operators.matmul_flop(outputs[0].numel(), args[0].shape[-1] + 2, 1)
    if name == "_cdist_forward":  # a difference and a multiply-add for each number of each pair
        return 3 * outputs[0].numel() * args[0].shape[-1]
    if name in ("_linalg_solve_ex", "linalg_solve_triangular"):
        # [n, n] x = [n, k]: a triangular factor of each matrix, 2 n^3 / 3, and a multiply-add for each of its numbers
        n, columns = args[0].shape[-1], outputs[0].numel()
        factor = 2 * args[0].numel() * n // 3 if name == "_linalg_solve_ex" else 0
        return factor + (2 if name == "_linalg_solve_ex" else 1) * columns * n
    if name == "_trilinear":  # nn.Bilinear of x [b, n], weight [o, n, m], y [b, m]
        b, n = args[0].shape
        o, _, m = args[1].shape  # [b, n] @ [n, o m], then [o, m] @ [m] per b
        return operators.matmul_flop(b, n, o * m) + operators.matmul_flop(b, m, o)
    if name == "conv_tbc":  # [time, batch, in], [kernel, in, out]
        return operators.matmul_flop(outputs[0].numel(), prod(args[1].shape[:2]), 1)
    return 0


@functools.cache
def has_sizes(name: str) -> bool:
    """Whether an operator has sizes ``m, n, k`` (`product_sizes`)."""
    name = operators.out_of_place(name)
    products = operators.PRODUCTS | operators.SUMS | operators.GROUPED
    return name in products or name in operators.WHOLE_NORMS | operators.SOFTMAX or name == "convolution"


def product_sizes(name: str, args: tuple, flop: int) -> tuple[int, int, int]:
    """``(m, n, k)`` of a call: a product ``[m, k] @ [k, n]``, with m of all batches or groups together.

    A convolution is the product of its implicit form: n channels of output and k numbers under the kernel, of one
    group. A normalization or softmax has m rows of k numbers each, and n = 0. Other operators have zeros.
    """
    name = operators.out_of_place(name)
    if name == "native_group_norm":  # (input, weight, bias, batch, channels, positions, groups, eps)
        batch, channels, positions, groups = args[3:7]
        return batch * groups, 0, channels * positions // groups
    if name in operators.WHOLE_NORMS:  # (input, shape of what is normalized, …)
        k = prod(args[1])
        return args[0].numel() // max(k, 1), 0, k
    if name in operators.SOFTMAX:  # (input, dimension, …)
        k = args[0].shape[args[1]] if args[0].dim() else 1
        return args[0].numel() // max(k, 1), 0, k
    if not has_sizes(name):
        return 0, 0, 0
    n, k = _weight_sizes(name, args)
    return flop // max(2 * n * k, 1), n, k


def _weight_sizes(name: str, args: tuple) -> tuple[int, int]:
    """``(n, k)`` of a product or convolution."""
    if name == "convolution":
        weight = args[1].shape  # (out, in / groups, *kernel), or transposed (in, out / groups, *kernel)
        if args[6]:
            return prod(weight[1:]), weight[0] // args[8]
        return weight[0] // args[8], prod(weight[1:])
    a, b = args[1:3] if name in operators.SUMS else args[:2]
    if name == "linear":
        return b.shape[0], b.shape[-1]
    return b.shape[-1] if b.dim() > 1 else 1, a.shape[-1]


def read_bytes(name: str, args: tuple, inputs: list[Tensor], written: int, size: Size) -> int:
    """Bytes that one call reads; of a table or of experts' weights only what is picked."""
    if name in operators.GATHER:
        return written + sum(size(t) for t in inputs[1:] if not t.is_floating_point())
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        row = args[0].shape[-1] * args[0].element_size()
        return args[1].numel() * row + sum(size(t) for t in inputs[1:])
    if operators.overwrites(name):
        inputs = inputs[1:]  # the destination is written, not read
    unused = _unused_bytes(args[0], args[1]) if name in operators.GROUPED else 0
    return sum(size(t) for t in inputs) - unused


def _unused_bytes(a: Tensor, b: Tensor) -> int:
    """Bytes of the experts that no row was given to, if as many were chosen as can be: at most one per row.

    That is exact for one token, whose experts all differ, and a lower bound for several, which may share some.
    """
    if a.dim() == b.dim():
        return 0
    weights, rows = (b, a.shape[0]) if b.dim() == 3 else (a, b.shape[-1])
    experts = weights.shape[0]
    return distinct_bytes(weights) // experts * max(experts - rows, 0)


def core_sizes(args: tuple) -> tuple[int, int, int, int, int]:
    """``(batch, heads, q_len, kv_len, head_dim)`` of an attention call ``(q, k, v, …)``; see `attention.core_sizes`."""
    return attention.core_sizes(args[0].shape, args[1].shape, args[2].shape)


def dtype_of(inputs: list[Tensor], other: torch.dtype | None = None) -> torch.dtype | None:
    """The number type that an operator works in: that of its first real numbers, else of its first tensor."""
    for tensor in inputs:
        if (dtype := tensor.dtype).is_floating_point:
            return dtype
    return inputs[0].dtype if inputs else other


def mask_of(args: tuple, kwargs: dict) -> Tensor | None:
    """The mask or bias that an attention call adds to its scores."""
    return args[3] if len(args) > 3 else kwargs.get("attn_mask")


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: a dimension that was broadcast (stride 0) is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride != 0:
            size *= length
    return size
