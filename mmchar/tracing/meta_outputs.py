"""Outputs of operators on ``meta``, remembered: they follow from the inputs' shapes, strides and types alone.

Most meta kernels are Python that takes up to a millisecond, and a network asks the same of each of its layers.
"""

from typing import Any

import torch
from torch import Tensor

_Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # shape, strides and type of a tensor
_MOST = 1 << 16  # of these; a network has some hundreds

_remembered: dict[Any, list[_Like | None] | _Like | None] = {}


def meta_output(func: Any, args: tuple, kwargs: dict) -> Any:
    """What an operator gives on ``meta``; one that was asked the same before is not run again.

    An operator that writes into its inputs, or gives parts of them (a view), always runs.
    """
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    try:
        key = (func, _key(args), _key(tuple(kwargs.items())), torch.get_default_dtype())
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


def _key(part: Any) -> Any:
    """A part of the arguments without values of tensors; 1, 1.0 and True are three different questions."""
    if isinstance(part, Tensor):
        return part.shape, part.stride(), part.dtype, part.device.type
    if isinstance(part, list | tuple):
        return tuple([_key(each) for each in part])
    return type(part), part


def _like(out: Any, args: tuple) -> list[_Like | None] | _Like | None:
    """What to make again; None for an output that is no new tensor, or no tensor at all."""
    if isinstance(out, list | tuple):
        parts = [_like(part, args) for part in out]
        good = all(isinstance(like, tuple) or part is None for like, part in zip(parts, out, strict=True))
        return parts if parts and good else None  # type: ignore[return-value]  # lists do not nest
    if not (type(out) is Tensor and out.is_meta):
        return None
    storage = out.untyped_storage()._cdata
    if any(isinstance(given, Tensor) and given.untyped_storage()._cdata == storage for given in _flat(args)):
        return None
    return out.shape, out.stride(), out.dtype


def _flat(args: Any) -> list[Any]:
    return [each for part in args for each in (_flat(part) if isinstance(part, list | tuple) else [part])]


def _made(like: _Like | None) -> Tensor | None:
    return like and torch.empty_strided(like[0], like[1], dtype=like[2], device="meta")
