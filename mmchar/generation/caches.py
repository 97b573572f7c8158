"""What a network remembers of earlier tokens: how long it is, and how it becomes longer without running the network."""

from typing import Any

import torch
from torch import Tensor

from mmchar.tracing.known_values import given


def length(cache: Any) -> int:
    """Tokens that a cache has seen, as it says itself or as a layer holds; 0 where it remembers no tokens."""
    every = layers(cache)
    said = int(cache.get_seq_length()) if any(hasattr(layer, "get_seq_length") for layer in every) else 0
    return said or next((held for layer in every if (held := _layer_length(layer))), 0)  # some ask a layer without


def layers(cache: Any) -> list[Any]:
    """The layers of a cache that remember a decoder's own tokens."""
    return list(getattr(getattr(cache, "self_attention_cache", cache), "layers", ()))


def layer_kinds(cache: Any) -> tuple[Any, ...]:
    """What a longer cache has in common: how many layers, and what the first and the last hold but for the length."""
    every = layers(cache)
    return (len(every), *((type(layer).__name__, _shape(layer)) for layer in every[:: max(1, len(every) - 1)]))


def lengths(cache: Any) -> tuple[int, ...]:
    """Tokens that each layer holds, and tokens that it has seen."""
    found: list[int] = []
    for layer in layers(cache):
        found += [_layer_length(layer), _seen(layer)]
    return tuple(found)


def growing(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """The layers that a call made longer, given `lengths` before and after it."""
    changed = [a != b for a, b in zip(before, after, strict=True)] if len(before) == len(after) else []
    return tuple(index for index in range(len(changed) // 2) if changed[2 * index] or changed[2 * index + 1])


def advance(cache: Any, tokens: int, which: tuple[int, ...]) -> None:
    """Make some layers of a cache ``tokens`` longer, in place, as the library does when a network has run.

    Keys and values that are new are empty on ``meta`` and random elsewhere.
    """
    if cache is None or not tokens:
        return
    every = layers(cache)
    with torch.inference_mode():
        for index in which:
            layer = every[index]
            if type(layer).__name__ == "DynamicLayer" and layer.keys.is_meta:
                layer.keys, layer.values = (_longer(part, tokens) for part in (layer.keys, layer.values))
            else:
                layer.update(*(_more(part, tokens) for part in (layer.keys, layer.values)))
                if isinstance(getattr(layer, "indexer_keys", None), Tensor):  # of sparse attention, beside its keys
                    layer.update_indexer(_more(layer.indexer_keys, tokens))


def advance_first(cache: Any, tokens: int, which: tuple[int, ...]) -> None:
    """Make a cache longer in its first layer only, where it says its length; `catch_up` does the rest."""
    advance(cache, tokens, which[:1])
    cache.behind = getattr(cache, "behind", 0) + tokens


def catch_up(cache: Any, which: tuple[int, ...]) -> None:
    """Make the other layers of a cache as long as `advance_first` has made the first."""
    advance(cache, getattr(cache, "behind", 0), which[1:])
    cache.behind = 0


def fingerprint(cache: Any) -> tuple[int, ...]:
    """Identities of what the layers hold, but for the first: they change where something touches the cache."""
    return tuple(id(getattr(layer, "keys", None)) for layer in layers(cache)[1:])


def to_meta(cache: Any) -> None:
    """Put what a cache holds on ``meta``, in place."""
    ends = layers(cache)[:1] + layers(cache)[-1:]
    if ends and all(isinstance(keys := getattr(layer, "keys", None), Tensor) and keys.is_meta for layer in ends):
        return
    parts = [cache, *(getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache"))]
    for part in parts:
        for layer in getattr(part, "layers", ()):
            for name, value in vars(layer).items():
                if isinstance(value, Tensor) and not value.is_meta:
                    setattr(layer, name, given(value))


def restore(cache: Any, state: Any) -> None:
    """Give a cache the content of another one, in place."""
    vars(cache).clear()
    vars(cache).update(vars(state))


def _longer(part: Tensor, tokens: int) -> Tensor:
    return part.new_empty(*part.shape[:-2], part.shape[-2] + tokens, part.shape[-1])


def _more(part: Tensor, tokens: int) -> Tensor:
    shape = (*part.shape[:-2], tokens, part.shape[-1])
    return part.new_empty(shape) if part.is_meta else torch.randn(shape, dtype=part.dtype, device=part.device)


def _layer_length(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return keys.shape[-2] if isinstance(keys, Tensor) and keys.dim() > 2 else 0


def _seen(layer: Any) -> int:
    seen = getattr(layer, "cumulative_length", 0)
    return seen if isinstance(seen, int) else 0


def _shape(layer: Any) -> tuple[int, ...]:
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, Tensor) or keys.dim() < 3:
        return ()
    return (*keys.shape[:-2], keys.shape[-1])
