"""The flash-attn package in place of PyTorch's attention, without touching the libraries that call it.

A function mode answers ``scaled_dot_product_attention`` with an operator of our own, which keeps its name and its
arguments: the tracer sees one attention core with its lengths, and ``torch.compile`` an operator that it need not open.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("mmchar::scaled_dot_product_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    from flash_attn import flash_attn_func

    if mask is not None:
        raise ValueError("flash-attn takes no mask; use attention flash")
    each = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [b, h, q, d] -> [b, q, h, d]
    return flash_attn_func(*each, dropout_p=dropout, softmax_scale=scale, causal=is_causal).transpose(1, 2)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_more: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)


class FlashAttn(TorchFunctionMode):
    """Every attention call of PyTorch answered by the flash-attn package."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The package's answer to an attention call, PyTorch's to any other."""
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        kwargs.pop("enable_gqa", None)  # the package repeats keys and values by itself
        names = {"query": "q", "key": "k", "value": "v", "attn_mask": "mask", "dropout_p": "dropout"}
        return _attend(*args, **{names.get(name, name): value for name, value in kwargs.items()})
