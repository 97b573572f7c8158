"""A KV cache of fixed length in place of one that grows: what a compiled or captured decode step needs.

A work of :mod:`mmchar.calls` holds its filled cache; its layers are exchanged for transformers' static ones, which hold
the same keys and values, have room for the tokens to come, and are attended to in full, under a mask.
"""

import functools
from collections.abc import Callable
from typing import Any


def make_static(work: Callable[[], Any], *, tokens: int, room: int) -> int:
    """Exchange the growing layers of every cache that a work holds, in place; how many layers were exchanged.

    Parameters
    ----------
    tokens : int
        Tokens in the layers that grow; others hold what a cross attention looks at, and get no room. They are exchanged
        all the same: transformers masks the room only where every layer is static.
    room : int
        Tokens that a growing layer has room for beyond those in it.

    Raises
    ------
    ValueError
        A layer of a kind that has no static form here.
    """
    from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

    exchanged = 0
    counted = any(isinstance(each, EncoderDecoderCache) for each in _held(work))
    for cache in _caches(work):
        for index, layer in enumerate(cache.layers):
            if type(layer) is not DynamicLayer:
                raise ValueError(f"no static KV cache for layers of kind {type(layer).__name__}; use execution eager")
            grows = layer.keys.shape[-2] == tokens
            cache.layers[index] = _static(layer, room if grows else 0, counted=counted)
            exchanged += 1
    return exchanged


def rewind(work: Callable[[], Any]) -> list[Any]:
    """Set every static cache that a work holds back to the tokens that it was made with.

    Returns the keys and values that the next execution reads. One that exchanges them (the reordering of beams) drops
    them, and a graph of it reads them again.
    """
    from transformers.cache_utils import EncoderDecoderCache

    for cache in _caches(work):
        for layer in cache.layers:
            if hasattr(layer, "filled"):
                layer.cumulative_length.fill_(layer.filled)
    both = [each for each in _held(work) if isinstance(each, EncoderDecoderCache)]
    caches = [*_caches(work), *(each.cross_attention_cache for each in both)]
    return [part for cache in caches for layer in cache.layers for part in (layer.keys, layer.values)]


def _static(layer: Any, room: int, *, counted: bool) -> Any:
    """A static layer with the keys and values of a growing one.

    With ``counted`` it tells its length as a number, always the one that it was filled to: the decoders with cross
    attention of some versions of transformers branch on it, for which a GPU that has it would be waited for.
    """
    from transformers.cache_utils import StaticLayer

    filled = layer.keys.shape[-2]
    static = (_counted_layer() if counted else StaticLayer)(max_cache_len=filled + room)
    static.lazy_initialization(layer.keys, layer.values)
    static.keys[..., :filled, :].copy_(layer.keys)
    static.values[..., :filled, :].copy_(layer.values)
    static.cumulative_length.fill_(filled)
    static.filled = filled
    return static


@functools.cache  # of another class each time, it would be compiled anew each time
def _counted_layer() -> Any:
    from transformers.cache_utils import StaticLayer

    class Counted(StaticLayer):
        def get_seq_length(self) -> int:
            return self.filled

    return Counted


def _caches(work: Callable[[], Any]) -> list[Any]:
    """The self-attention caches in a function's closure; those of a cross attention have their final length."""
    from transformers.cache_utils import Cache, EncoderDecoderCache

    held = _held(work)
    found = [each.self_attention_cache for each in held if isinstance(each, EncoderDecoderCache)]
    return found + [each for each in held if isinstance(each, Cache) and not isinstance(each, EncoderDecoderCache)]


def _held(work: Callable[[], Any]) -> list[Any]:
    return [cell.cell_contents for cell in work.__closure__ or ()]
