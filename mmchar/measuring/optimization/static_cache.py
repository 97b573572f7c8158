"""A KV cache of fixed length in place of one that grows: what a compiled or captured decode step needs.

The arguments of a call hold its filled cache; its layers are exchanged for transformers' static ones, which hold the
same keys and values, have room for the tokens to come, and are attended to in full, under a mask.
"""

from collections.abc import Collection
from typing import Any

from transformers.cache_utils import DynamicLayer, EncoderDecoderCache, StaticLayer

from mmchar.generation import caches
from mmchar.generation.structure import is_cache, leaves, mapped


def make_static(held: Any, *, room: int, growing: Collection[int] | None = None) -> int:
    """Exchange the growing layers of every filled cache among arguments, in place; how many layers were exchanged.

    A layer of ``growing`` (else one as long as the cache says that it is) gets room for ``room`` tokens beyond those in
    it. Others hold what a cross attention looks at, and get no room. They are exchanged all the same: transformers
    masks the room only where every layer is static. A layer of a kind that has no static form here is a ValueError.
    """
    exchanged = 0
    for cache in _held(held):
        layers, length = caches.layers(cache), caches.length(cache)
        if not length:
            continue
        for index, layer in enumerate(layers):
            if type(layer) is not DynamicLayer:
                raise ValueError(f"no static KV cache for layers of kind {type(layer).__name__}; use execution eager")
            grows = index in growing if growing is not None else layer.keys.shape[-2] == length
            static = _static(layer, room if grows else 0, counted=isinstance(cache, EncoderDecoderCache))
            _own(cache).layers[index] = static
            exchanged += 1
    return exchanged


def rewind(held: Any, before: Any = None) -> list[Any]:
    """Set every cache among arguments back to the tokens that it had before the first execution.

    Those that are not static become what they were in ``before``, the same arguments as they were. Returns the keys and
    values that the next execution reads: one that exchanges them (the reordering of beams) drops them, and a graph of
    it reads them again.
    """
    every = _held(held)
    for cache, was in zip(every, _held(before) if before is not None else every, strict=True):
        if any(hasattr(layer, "filled") for layer in caches.layers(cache)):
            for layer in caches.layers(cache):
                layer.cumulative_length.fill_(layer.filled)
        elif before is not None:
            caches.restore(cache, mapped(was, lambda _path, leaf: leaf))
    crossed = [cache.cross_attention_cache for cache in every if isinstance(cache, EncoderDecoderCache)]
    layers = [layer for cache in (*map(_own, every), *crossed) for layer in cache.layers]
    return [part for layer in layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))]


def _static(layer: Any, room: int, *, counted: bool) -> Any:
    """A static layer with the keys and values of a growing one.

    With ``counted`` it tells its length as a number, always the one that it was filled to: the decoders with cross
    attention of some versions of transformers branch on it, for which a GPU that has it would be waited for.
    """
    filled = layer.keys.shape[-2]
    static = (_Counted if counted else StaticLayer)(max_cache_len=filled + room)
    static.lazy_initialization(layer.keys, layer.values)
    static.keys[..., :filled, :].copy_(layer.keys)
    static.values[..., :filled, :].copy_(layer.values)
    static.cumulative_length.fill_(filled)
    static.filled = filled
    return static


class _Counted(StaticLayer):
    def get_seq_length(self) -> int:
        return self.filled


def _own(cache: Any) -> Any:
    """The self-attention cache; that of a cross attention has its final length."""
    return getattr(cache, "self_attention_cache", cache)


def _held(held: Any) -> list[Any]:
    return [leaf for _, leaf in leaves(held, whole=is_cache) if is_cache(leaf)]
