"""Run a generation with its networks on ``meta``, and write down what it does."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.generation import caches
from mmchar.generation.hollow import hollow, record_outside
from mmchar.generation.names import names
from mmchar.generation.recording import Recording
from mmchar.generation.structure import is_cache
from mmchar.generation.watch import Watch
from mmchar.tracing.known_values import given
from mmchar.tracing.trace import Row, trace


class OnMeta:
    """Networks on ``meta`` under the tracer; what they return goes on as zeros on the CPU."""

    def given(self, _path: Any, leaf: Any) -> Any:
        """An argument on ``meta``; a cache is put there in place."""
        if is_cache(leaf):
            caches.to_meta(leaf)
        return given(leaf) if isinstance(leaf, Tensor) else leaf

    def returned(self, _path: Any, leaf: Any) -> Any:
        """A part of an output, hollow."""
        return hollow(leaf) if isinstance(leaf, Tensor) and leaf.is_meta else leaf

    def kept(self, _path: Any, leaf: Any) -> Any:
        """A tensor as it is: on ``meta`` nothing is written to it."""
        return leaf

    def run(self, network: nn.Module, work: Callable[[], Any]) -> tuple[Any, list[Row]]:
        """What a call returns, and its rows."""
        kept: list[Any] = []
        rows = trace(network, lambda: kept.append(work())).rows
        return kept[0], rows


def record(
    networks: Mapping[str, nn.Module],
    work: Callable[[], Any],
    *,
    renamed: Mapping[str, str] | None = None,
    makes: str | None = None,
) -> Recording:
    """What a generation does when ``work`` runs it: its stages with their rows, and what runs between them.

    Parameters
    ----------
    networks : mapping
        The networks by role, on ``meta`` (`on_meta`). They pretend to be on the CPU meanwhile.
    work : callable
        Runs the generation once, e.g. calls the pipeline that holds the networks.
    renamed, makes
        How stages are called (`names.names`).
    """
    watch = Watch(networks, OnMeta())
    with watch.catching(), _pretending(watch):
        output, outside = record_outside(work)
    return recording_of(watch, output, outside, renamed=renamed, makes=makes)


def recording_of(
    watch: Watch,
    output: Any,
    outside: list[Row],
    *,
    renamed: Mapping[str, str] | None = None,
    makes: str | None = None,
) -> Recording:
    """What was watched as stages, each with its name."""
    every = [seen for seen in watch.seen if seen.rows]  # some calls only look something up
    named = names(every, renamed=renamed, makes=makes)
    stages = tuple(seen.stage(name) for seen, name in zip(every, named, strict=True))
    rows = {name: seen.rows for seen, name in zip(every, named, strict=True)}
    return Recording(stages, rows, outside, output)


def on_meta(network: nn.Module) -> nn.Module:
    """A network of the same structure on ``meta``; the one given stays as it is, and no weight is copied."""
    twin = copy.deepcopy(network, meta_memo(network))
    group_experts(twin)
    return twin


def group_experts(network: nn.Module) -> None:
    """Let a mixture of experts run as grouped products: one by one they ask which tokens chose them."""
    for module in network.modules():
        if getattr(getattr(module, "config", None), "_experts_implementation", None) == "eager":
            module.config._experts_implementation = "grouped_mm"


def meta_memo(network: nn.Module) -> dict[int, Any]:
    """For ``copy.deepcopy``: tensors on ``meta`` in place of a network's weights."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _moved(tensor)
        config = getattr(module, "config", None)
        if isinstance(config, dict):  # diffusers' is frozen, and a copy of it loses what was set on it
            memo[id(config)] = config
    return memo


def _moved(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    empty = given(tensor.detach())
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def _pretending(watch: Watch) -> Iterator[None]:
    """Networks say that they are on the CPU to whoever asks from outside."""
    from transformers import PreTrainedModel

    classes: list[type] = [PreTrainedModel]
    try:
        from diffusers import ModelMixin

        classes.append(ModelMixin)
    except ImportError:  # measuring does not need it
        pass
    with ExitStack() as stack:
        for cls in classes:
            stack.enter_context(_device_of(cls, watch))
        yield


@contextmanager
def _device_of(cls: Any, watch: Watch) -> Iterator[None]:
    original = cls.device

    def device(self: Any) -> torch.device:
        where = original.fget(self)
        return where if watch.is_inside or where.type != "meta" else torch.device("cpu")

    cls.device = property(device)
    try:
        yield
    finally:
        cls.device = original
