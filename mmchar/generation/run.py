"""Run a generation with its networks on ``meta``, and write down what it does."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mmchar.generation import caches
from mmchar.generation.faults import one_line
from mmchar.generation.hollow import hollow_if_meta, record_outside
from mmchar.generation.names import names
from mmchar.generation.recording import Recording, Subject
from mmchar.generation.structure import as_it_is, is_cache
from mmchar.generation.watch import Execution, Watch
from mmchar.tracing.known_values import given, given_if_tensor
from mmchar.tracing.trace import Row


def _on_meta(_path: Any, leaf: Any) -> Any:
    """An argument on ``meta``; a cache is put there in place."""
    if is_cache(leaf):
        caches.to_meta(leaf)
    return given_if_tensor(leaf)


ON_META = Execution(_on_meta, lambda _path, leaf: hollow_if_meta(leaf), as_it_is)  # on meta nothing is written


def record(subject: Subject) -> Recording:
    """What a generation does when it runs once: its stages with their rows, and what runs between them.

    The networks are on ``meta`` (`on_meta`) and pretend to be on the CPU meanwhile. Raises ValueError, in one line, for
    whatever the generation's own code raises.
    """
    watch = Watch(subject.networks, ON_META)
    with one_line(subject.name), watch.catching(), _pretending(watch):
        output, outside = record_outside(subject.work)
    return recording_of(watch, subject, output, outside)


def recording_of(watch: Watch, subject: Subject, output: Any, outside: list[Row]) -> Recording:
    """What was watched as stages, each with its name."""
    every = [seen for seen in watch.seen if seen.rows]  # some calls only look something up
    named = names(every, renamed=subject.renamed, makes=subject.makes)
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
    with suppress(ImportError):  # measuring does not need it
        from diffusers import ModelMixin

        classes.append(ModelMixin)
    with ExitStack() as stack:
        for cls in classes:
            stack.enter_context(patch.object(cls, "device", _device_outside(cls, watch)))
        yield


def _device_outside(cls: Any, watch: Watch) -> property:
    original = cls.device

    def device(self: Any) -> torch.device:
        where = original.fget(self)
        return where if watch.is_inside or where.type != "meta" else torch.device("cpu")

    return property(device)
