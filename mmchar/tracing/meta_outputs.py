"""Outputs of operators on ``meta``, remembered: they follow from the inputs' shapes, strides and types alone.

Most meta kernels are Python that takes up to a millisecond, and a network asks the same of each of its layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmchar.tracing.question import Question, question, tensors

_Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides and type of a tensor
_MOST = 1 << 16  # of these; a network has some hundreds

_remembered: dict[Any, list[_Like | None] | _Like | None] = {}


def meta_output(func: Any, args: tuple, kwargs: dict, asked: Question | None = None) -> Any:
    """What an operator gives on ``meta``; one that was asked the same before is not run again.

    An operator that writes into its inputs, or gives parts of them (a view), always runs. ``asked`` is the `question`
    of the arguments, where it is known already.
    """
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    return remembered(func, args, kwargs, asked or question(args, kwargs)[0])


def remembered(func: Callable[..., Any], args: tuple, kwargs: dict, asked: Question) -> Any:
    """What a function gives that neither writes into its inputs nor gives parts of them, `meta_output`."""
    key = (func, asked, torch.get_default_dtype())
    try:
        seen = _remembered.get(key)
    except TypeError:  # an argument that cannot be looked up
        return func(*args, **kwargs)
    if seen is not None:
        return [_made(part) for part in seen] if isinstance(seen, list) else _made(seen)
    out = func(*args, **kwargs)
    like = _like(out, args)
    if like is not None:
        if len(_remembered) >= _MOST:
            _remembered.clear()
        _remembered[key] = like
    return out


def _like(out: Any, args: tuple) -> list[_Like | None] | _Like | None:
    """What to make again; None for an output that is no new tensor, or no tensor at all."""
    if isinstance(out, (list, tuple)):
        parts = [_like(part, args) for part in out]
        good = all(isinstance(like, tuple) or part is None for like, part in zip(parts, out, strict=True))
        return parts if parts and good else None  # type: ignore[return-value]  # lists do not nest
    if not (type(out) is Tensor and out.is_meta):
        return None
    storage = out.untyped_storage()._cdata
    if any(given.untyped_storage()._cdata == storage for given in tensors(args)):
        return None
    return out.shape, out.stride(), out.dtype


def _made(like: _Like | None) -> Tensor | None:
    return like and torch.empty_strided(like[0], like[1], dtype=like[2], device="meta")
