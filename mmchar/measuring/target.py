"""What is measured and how: a named model or an object of the user's own, on its device, and the calls of its networks.

Everything that can be refused is refused before anything is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from mmchar.counting import operator_table as counting
from mmchar.counting.planned_stages import stages
from mmchar.generation.on_device import PLANNED, record_on_device
from mmchar.generation.programs import subject_of_zoo
from mmchar.generation.recording import Stage
from mmchar.generation.run import record
from mmchar.generation.subject import subject_of
from mmchar.locks import measuring
from mmchar.measuring.machine import available_bytes
from mmchar.measuring.optimization.backends import byte_model, check_backend, check_shapes
from mmchar.measuring.optimization.chosen_stages import chosen
from mmchar.measuring.optimization.ladder import Levers, check_levers
from mmchar.measuring.timing import check_counts
from mmchar.models.loading import Model, ModelSpec, build_model, check_device, get_spec, load
from mmchar.request import Request
from mmchar.tracing.attention import ITEM_BYTES


@dataclass(frozen=True)
class Settings:
    """How a measurement is made; `profiling.measure` says what each means."""

    samples: int
    warmup: int
    attention: str = "flash"
    levers: Levers = field(default_factory=Levers)
    stages: Sequence[str] | None = None
    whole: bool | None = None
    keep_going: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_counts(self.samples, self.warmup)


@dataclass(frozen=True)
class Target:
    """Networks on their device, the stages that are measured, and what goes into the ``attrs`` of the table.

    ``generation`` runs the whole generation once, where that was asked for. ``own`` says whether the networks were
    built for this measurement, and may be changed.
    """

    model: Model
    plan: tuple[Stage, ...]
    asked: Mapping[str, Any]
    own: bool
    generation: Callable[[], Any] | None


def named(
    model: str | Path | Model,
    inputs: tuple[Any, ...],
    call: Mapping[str, Any],
    settings: Settings,
    *,
    device: str,
    dtype: str | None,
    tiny: bool,
) -> Target:
    """A model of the zoo, a file or a folder, with random weights; its calls are those that were seen on ``meta``."""
    request, more = counting.split_call(inputs, call)
    built = model if isinstance(model, Model) else None
    spec = built.spec if built else get_spec(str(model), tiny=tiny)
    full = spec.resolve(request)
    if built:
        device, dtype = built.device, built.dtype
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    check_device(device, dtype)
    check(settings.attention, settings.levers, device=device, dtype=dtype)
    whole = _is_whole(settings, spec) and bool(spec.pipeline.cls)
    plan = chosen(_planned(spec, full, more), full, stages=settings.stages, levers=settings.levers, model=spec.name)
    if built is None:
        kind = byte_model(settings.attention)
        table = counting.count(model, full, dtype=dtype, attention=kind, tiny=tiny, **more)
        roles = None if whole else {stage.component for stage in plan}
        check_counted(_rows_of(table, plan), roles, settings.attention, device=device, dtype=dtype)
        ready = load(str(model), device=device, dtype=dtype, tiny=tiny, roles=roles)
    else:
        ready = built
        if settings.attention not in ("flash", "eager", "math"):  # which take every shape
            check_shapes(settings.attention, _rows_of(counting.count(built, full, **more), plan), device=device)
    generation = _zoo_generation(ready, full, more) if whole else None
    return Target(ready, plan, counting.what_was_asked(ready, full), built is None, generation)


def of_object(model: Any, inputs: tuple[Any, ...], call: Mapping[str, Any], settings: Settings) -> Target:
    """A pipeline, a model with ``generate()`` or a module, on its own device; its calls are recorded there."""
    device, dtype = _where(model)
    check(settings.attention, settings.levers, device=device, dtype=dtype)
    if settings.levers.cfg == "split":
        raise ValueError(f"cfg 'split' is not possible: what of {type(model).__name__} is guidance is not known")
    with torch.device(device):  # what stands for a prompt is made there
        subject = subject_of(model, inputs, call, device=device)
    with measuring(device):
        seen = record_on_device(subject).stages
    spec = ModelSpec(subject.name, "", 0, "an object of the user's own", {}, {}, "", {})
    wrapped = Model(spec, subject.networks, device, dtype)
    plan = chosen(seen, Request(), stages=settings.stages, levers=settings.levers, model=spec.name)
    asked = {name: value for name, value in subject.asked.items() if isinstance(value, int | float | str | bool)}
    facts = {"model": spec.name, "request": asked, "dtype": dtype, "tiny": False, "params": wrapped.params}
    return Target(wrapped, plan, facts, False, subject.work if _is_whole(settings, spec) else None)


def _where(model: Any) -> tuple[str, str]:
    """Device and number type of an object's first weight; a network without any is on the CPU, in float32."""
    networks = [model] if isinstance(model, nn.Module) else getattr(model, "components", {}).values()
    weights = (weight for part in networks if isinstance(part, nn.Module) for weight in part.parameters())
    first = next(weights, None)
    return ("cpu", "float32") if first is None else (str(first.device), str(first.dtype).removeprefix("torch."))


def check(attention: str, levers: Levers, *, device: str, dtype: str) -> None:
    """Refuse a kernel and levers that this machine has not."""
    if device.startswith("meta"):
        raise ValueError("device 'meta' runs nothing that could be measured; choose cpu or cuda, or count")
    check_backend(attention, device=device, dtype=dtype)
    check_levers(levers, device=device)


def _is_whole(settings: Settings, spec: ModelSpec) -> bool:
    """Whether the whole generation is timed too: where it is asked for, and always of a scaled-down model."""
    missing = ""
    if settings.levers.given():
        missing = "with levers, which change stages and not what runs between them"
    elif settings.stages is not None:
        missing = "where only some stages are measured"
    if settings.whole and missing:
        raise ValueError(f"whole=True is not possible {missing}")
    return spec.tiny and not missing if settings.whole is None else settings.whole


def _planned(spec: ModelSpec, request: Request, more: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a generation, as its code was seen to make them on ``meta``."""
    if not more:
        return stages(spec, request)
    twin = build_model(spec, device="meta", dtype=str(PLANNED).removeprefix("torch."))
    subject = subject_of_zoo(twin, request, more)
    return record(subject).stages


def _zoo_generation(model: Model, request: Request, more: Mapping[str, Any]) -> Callable[[], Any]:
    writes = model.spec.pipeline.library == "transformers"  # schedulers want their tables on the CPU
    with torch.device(model.device if writes else "cpu"):
        return subject_of_zoo(model, request, more).work


def needed_bytes(rows: pd.DataFrame, roles: set[str] | None, dtype: str) -> tuple[int, int]:
    """Bytes of the weights of some networks (or all), and with the most that the counted rows hold beside them."""
    params = rows.attrs["params"].items()
    weights = sum(many for role, many in params if roles is None or role in roles) * ITEM_BYTES[dtype]
    return weights, weights + int(rows["live_bytes"].max())


def check_counted(table: pd.DataFrame, roles: set[str] | None, attention: str, *, device: str, dtype: str) -> None:
    """Refuse a kernel that cannot take a counted call, and networks that need more than the device has free."""
    check_shapes(attention, table, device=device)
    (weights, need), free = needed_bytes(table, roles, dtype), available_bytes(device)
    if need > free:
        smaller = "a smaller request" if table.attrs["tiny"] else "the tiny variant (--tiny), a smaller request"
        raise ValueError(
            f"{table.attrs['model']} needs {need / 1e9:.3g} GB in {dtype} (weights {weights / 1e9:.3g}), but {device} "
            f"has {free / 1e9:.3g} GB free; measure {smaller} or a smaller dtype, or count it, which needs no memory"
        )


def _rows_of(table: pd.DataFrame, plan: Sequence[Stage]) -> pd.DataFrame:
    return table[table["stage"].isin([stage.name for stage in plan])]
