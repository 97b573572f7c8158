"""Walk what a network is called with, and what it returns: tensors inside tuples, dicts, outputs and caches.

A *leaf* is a tensor or a plain value. Objects of the libraries that hold tensors (model outputs, distributions, caches)
are walked through their attributes.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Path = tuple[Any, ...]
Change = Callable[[Path, Any], Any]  # what becomes of a leaf
_LEAVES = (Tensor, nn.Module, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Generator)


def is_cache(value: Any) -> bool:
    """Whether this is transformers' memory of earlier tokens, which a network extends in place."""
    kind: Any = type(value)
    return _is_cache(kind)


@functools.cache
def _is_cache(kind: Any) -> bool:
    return any(base.__name__ == "Cache" or base.__name__.endswith("CacheLayerMixin") for base in kind.__mro__)


def leaves(
    value: Any, path: Path = (), *, whole: Callable[[Any], bool] = lambda _: False
) -> Iterator[tuple[Path, Any]]:
    """Every tensor and plain value inside ``value``, each with the way to it, in a fixed order.

    Parts for which ``whole`` says yes are given as they are.
    """
    parts = None if whole(value) else _parts(value)
    if parts is None:
        yield path, value
        return
    for key, part in parts:
        yield from leaves(part, (*path, key), whole=whole)


def tensors(value: Any) -> list[Tensor]:
    """The tensors inside ``value``."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def as_it_is(_path: Path, leaf: Any) -> Any:
    """No change of a leaf."""
    return leaf


def copied(value: Any) -> Any:
    """``value`` in containers and objects of its own, with the same leaves."""
    return mapped(value, as_it_is)


def mapped(value: Any, change: Change, path: Path = (), *, keep: Callable[[Any], bool] = lambda _: False) -> Any:
    """``value`` with every leaf exchanged for ``change(path, leaf)``; containers and objects are copied, not changed.

    Parts for which ``keep`` says yes are passed on as they are.
    """
    if keep(value):
        return value
    parts = _parts(value)
    if parts is None:
        return change(path, value)
    new = {key: mapped(part, change, (*path, key), keep=keep) for key, part in parts}
    return _rebuilt(value, new)


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """Keys and parts of a container or of an object with tensors in it; None of a leaf."""
    if isinstance(value, _LEAVES):
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if is_cache(value) or _holds_tensors(value):
        return [(key, part) for key, part in vars(value).items() if not callable(part)]
    return None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, type) or callable(value) or not hasattr(value, "__dict__"):
        return False
    return any(isinstance(part, Tensor) for part in vars(value).values())


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(value, tuple):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())
    if isinstance(value, list):
        return list(parts.values())
    if isinstance(value, Mapping):
        kind: Any = type(value)
        return kind(**parts) if hasattr(value, "to_tuple") else kind(parts)
    new = copy.copy(value)
    vars(new).update(parts)
    return new
