"""What operators return on ``meta`` by their shapes alone, where torch has no kernel for them or takes them apart."""

from typing import Any

import torch
from torch import Tensor

from mmchar.tracing import operators
from mmchar.tracing.meta_outputs import remembered
from mmchar.tracing.operator_flop import core_sizes
from mmchar.tracing.question import Question, tensors


def is_answered(name: str, args: tuple) -> bool:
    """Whether the output of this call comes from `answer`."""
    return (name in operators.ATTENTION_CORES or name in operators.GROUPED) and args[0].is_meta


def answer(name: str, args: tuple, kwargs: dict, asked: Question) -> Tensor:
    """The output of an attention core or of a grouped product, in its shape and in the layout that kernels give it."""
    return remembered(_grouped if name in operators.GROUPED else _attention, args, kwargs, asked)


def flex_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output of ``flex_attention``, and the log-sum-exp and the maximum of each query's scores, ``(b, h, q)``."""
    out = _attention(q, k, v)
    lse, most = (q.new_empty(out.shape[:-1], dtype=torch.float32) for _ in range(2))
    return out, lse, most


def _attention(*args: Any, **_more: Any) -> Tensor:
    q, k, v = args[:3]
    _, heads, q_len, _, _ = core_sizes(args)
    shape = (*torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3]), heads, q_len, v.shape[-1])
    if q.dim() < 4:
        shape = (*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2]), q_len, v.shape[-1])
    if shape == q.shape:
        return torch.empty_like(q)  # kernels lay the output out as the queries are
    if q.dim() < 4 or shape[:-1] != q.shape[:-1]:
        return q.new_empty(shape)
    # a fused kernel writes [b, q, h, d] and returns it transposed, so that merging the heads is free
    return q.new_empty(*shape[:-3], q_len, heads, v.shape[-1]).transpose(-2, -3)


def _grouped(*args: Any, **kwargs: Any) -> Tensor:
    """Rows of one matrix ``(rows, n)``, or one matrix per group ``(groups, m, n)``; see `operators.grouped_flop`."""
    (a, b), more = args[:2], (*args[2:], *kwargs.values())
    own = a.dtype if a.element_size() > 1 else torch.bfloat16  # of 8-bit numbers the result is wider
    dtype = next((value for value in more if isinstance(value, torch.dtype)), own)
    shape: tuple[int, ...] = (a.shape[-2], b.shape[-1])
    if a.dim() == b.dim():  # [groups, m, k] @ [groups, k, n], or groups along the inner dimension
        ends = next((t for t in tensors(more) if not t.is_floating_point()), a)
        shape = (a.shape[0] if a.dim() == 3 else ends.shape[0], *shape)
    return a.new_empty(shape, dtype=dtype)
