"""A counted generation with its autoencoder sliced or tiled, as the library's own code does it on ``meta``."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd

from mmchar.counting.operator_table import count, rows_frame, split_call
from mmchar.models.loading import Model, get_spec, load
from mmchar.provenance import package_versions
from mmchar.tables.cache import cached_table, source_hash

if TYPE_CHECKING:
    from torch import nn

    from mmchar.generation.recording import Stage, Subject

DECODERS = {"whole": (), "sliced": ("slicing",), "tiled": ("tiling", "slicing")}  # what is enabled of an autoencoder


@dataclass(frozen=True, eq=False)
class Generation:
    """A generation that was counted; its ``subject`` is made when it is asked for, its ``key`` is all it depends on."""

    table: pd.DataFrame
    subject: "Callable[[], Subject]"
    key: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        *inputs: Any,
        dtype: str = "bfloat16",
        attention: str = "flash",
        tiny: bool = False,
        cache: bool = True,
        **call: Any,
    ) -> "Generation":
        """The generation that `mmchar.count` counts when it is given the same."""
        table = count(model, *inputs, dtype=dtype, attention=attention, tiny=tiny, cache=cache, **call)
        key = _key(model, inputs, call, dtype, tiny) if cache and isinstance(model, str | Path) else None
        return cls(table, functools.cache(lambda: _subject(model, inputs, call, dtype, tiny)), key)

    def decoded(self, decoder: str) -> pd.DataFrame:
        """The table with the autoencoders ``sliced`` or ``tiled``; empty where none can be, or does so already.

        Their rows then tell how much memory they take: no ``time_s``, no ``kernels``.
        """

        def make() -> pd.DataFrame:
            return _decoded(self.table, self.subject(), decoder)

        key = self.key and {**self.key, "decoder": decoder, "source": source_hash()}
        found = cached_table(key, make) if key else make()
        found.attrs = self.table.attrs
        return found


def can(network: "nn.Module | None", decoder: str) -> bool:
    """Whether an autoencoder can decode so, and does not already."""
    return getattr(network, f"use_{DECODERS[decoder][0]}", None) is False


def _subject(model: Any, inputs: tuple[Any, ...], call: dict[str, Any], dtype: str, tiny: bool) -> "Subject":
    from mmchar.generation import programs, run, subject

    if not isinstance(model, str | Path | Model):
        return subject.subject_of(model, inputs, call)
    request, more = split_call(inputs, call)
    if not isinstance(model, Model):
        model = load(str(model), device="meta", dtype=dtype, tiny=tiny)
    if model.device != "meta":
        networks = {role: run.on_meta(network) for role, network in model.components.items()}
        model = replace(model, components=networks, device="meta")
    return programs.subject_of_zoo(model, model.spec.resolve(request), more)


def _key(model: str | Path, inputs: tuple[Any, ...], call: dict[str, Any], dtype: str, tiny: bool) -> dict[str, Any]:
    """What a named model's generation depends on."""
    (request, more), spec = split_call(inputs, call), get_spec(str(model), tiny=tiny)
    versions = package_versions("torch", "diffusers", "transformers", "pandas")
    asked = {"request": spec.resolve(request).given(), "call": more, "dtype": dtype}
    return {"spec": msgspec.to_builtins(spec), **asked, "versions": versions}


def _decoded(table: pd.DataFrame, subject: "Subject", decoder: str) -> pd.DataFrame:
    from mmchar.generation.run import record

    able = {role: network for role, network in subject.networks.items() if can(network, decoder)}
    stages = [stage for stage in (record(subject).stages if able else ()) if stage.component in able]
    if decoder == "sliced":
        stages = [stage for stage in stages if _batch(stage) > 1]
    if not stages:
        return table.iloc[:0]
    others = table[~table["stage"].isin([stage.name for stage in stages])]
    texts = dict.fromkeys(("stage", "component", "module"), str)
    return pd.concat([others.astype(texts), *(_rows(stage, able, decoder) for stage in stages)], ignore_index=True)


def _rows(stage: "Stage", able: "dict[str, nn.Module]", decoder: str) -> pd.DataFrame:
    from mmchar.tracing.trace import trace

    network = able[stage.component]
    with _as_called(network, stage), _switched(network, decoder):
        rows = rows_frame(trace(network, stage.work(network)))
    return rows.assign(stage=stage.name, component=stage.component, step=0, repeats=stage.repeats)


@contextmanager
def _as_called(network: "nn.Module", stage: "Stage") -> Iterator[None]:
    """Let a network have the type that it is called with: pipelines decode in float32 where float16 would overflow."""
    from mmchar.generation.structure import tensors

    given = tensors((stage.call.args, dict(stage.call.kwargs)))
    before = next(network.parameters()).dtype
    network.to(next((tensor.dtype for tensor in given if tensor.is_floating_point()), before))
    try:
        yield
    finally:
        network.to(before)


@contextmanager
def _switched(network: Any, decoder: str) -> Iterator[None]:
    """Let an autoencoder decode so, as far as it can."""
    before = {name: getattr(network, f"use_{name}") for name in DECODERS[decoder] if hasattr(network, f"use_{name}")}
    for name in before:
        getattr(network, f"enable_{name}")()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(network, f"use_{name}", value)


def _batch(stage: "Stage") -> int:
    return next((shape[0] for shape in stage.sizes.values() if shape), 1)
