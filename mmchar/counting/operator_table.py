"""The operator table of one generation, counted: FLOPs, bytes and lengths of every operator call, without running it.

Stages whose steps have the same shapes are traced once. A decode step's numbers are affine in its cache length, so
two steps give all of them.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd

from mmchar.counting.stage_sizes import sizes_at
from mmchar.models.loading import DTYPES, Model, build_model, get_spec
from mmchar.models.specs import ModelSpec
from mmchar.request import FIELDS, Request
from mmchar.tables.shown import whole
from mmchar.tables.totals import executions
from mmchar.tracing import attention as attention_models

if TYPE_CHECKING:
    from torch import nn

    from mmchar.generation.recording import Recording, Stage, Subject
    from mmchar.tracing.trace import Row

COLUMNS = ("model", "stage", "step", "repeats", "component", "module", "module_type", "op", "category", "attention",
           "batch", "heads", "q_len", "kv_len", "head_dim", "m", "n", "k", "calls", "flop", "read_bytes", "write_bytes",
           "mask_bytes", "live_bytes", "dtype", "backend", "time_s", "time_kind", "kernels")  # fmt: skip
TEXT = ("model", "stage", "component", "module", "module_type", "op", "category", "attention", "dtype", "backend",
        "time_kind")  # fmt: skip
AMOUNTS = ("calls", "flop", "read_bytes", "write_bytes", "mask_bytes")
OUTSIDE = "pipeline"  # stage and component of what ran outside the networks
LENGTHS = ("batch", "heads", "q_len", "kv_len", "head_dim", "m", "n", "k")


def count(
    model: Any,
    *inputs: Any,
    dtype: str = "bfloat16",
    attention: str = "flash",
    tiny: bool = False,
    cache: bool = True,
    **call: Any,
) -> pd.DataFrame:
    """The operator table of one generation, exact at published scale: what the model's own code does, on ``meta``.

    ``count(pipe, prompt="a cat", height=1024)``, ``count(llm, prompt_tokens=512, new_tokens=64)``,
    ``count(module, x)``, ``count("sdxl-base-1.0", steps=4)``.

    Parameters
    ----------
    model : str, Model, DiffusionPipeline, PreTrainedModel or Module
        A zoo name, a model file, a folder of configurations or a hub id; a model from `mmchar.load`; or an
        object of your own, on any device, which stays as it is.
    *inputs
        Of a name or a ``Model`` a `mmchar.Request`; of a module what its forward takes.
    dtype : {"bfloat16", "float16", "float32"}
        Number type of weights and activations; of an object its own is used.
    attention : {"flash", "eager"}
        Byte model of the attention cores.
    tiny, cache : bool
        Of a named model: count its scaled-down variant; keep its table on disk, and read it from there.
    **call
        What the generation is called with: of a name the fields of a request, and what else its pipeline takes; of a
        pipeline the arguments of its own call; of a model with ``generate()`` its arguments, or ``prompt_tokens`` and
        ``new_tokens``.

    Returns
    -------
    DataFrame
        Columns as in ``data/README.md``; FLOP, bytes and lengths are integers, ``time_s`` is empty. What ran outside
        the networks is the stage ``pipeline``. ``attrs`` holds model, request, dtype, tiny, the parameters of each
        component and the bytes that they are stored in; of a video of a named model also the ``sizes`` that each stage
        is called with (`stage_sizes.sizes_at`).
    """
    if attention not in attention_models.BACKENDS:
        raise ValueError(f"unknown attention {attention!r}; choose one of {', '.join(attention_models.BACKENDS)}")
    table = _table(model, inputs, call, dtype, tiny, cache)
    return whole(table if attention == "flash" else attention_models.use_backend(table, attention))


def _table(
    model: Any, inputs: tuple[Any, ...], call: dict[str, Any], dtype: str, tiny: bool, cache: bool
) -> pd.DataFrame:
    if not isinstance(model, str | Path | Model):
        from mmchar.generation.subject import subject_of

        return count_subject(subject_of(model, inputs, call))
    request, more = split_call(inputs, call)
    if isinstance(model, Model):
        return _count(model, request, more)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    spec = get_spec(str(model), tiny=tiny)
    full = spec.resolve(request)  # refuse a bad request before torch is loaded
    if more:
        from mmchar.generation.programs import check_call

        check_call(spec, more)
    return count_spec(spec, full, more, dtype) if cache else _count_anew(spec, full, more, dtype)


def split_call(inputs: tuple[Any, ...], call: Mapping[str, Any]) -> tuple[Request | None, dict[str, Any]]:
    """The request of a named model, given whole or by its fields, and what else its pipeline is called with."""
    fields_given = {name: value for name, value in call.items() if name in FIELDS}
    more = {name: value for name, value in call.items() if name not in FIELDS and name != "request"}
    inputs = (*inputs, call["request"]) if "request" in call else inputs
    if len(inputs) > 1 or (inputs and not isinstance(inputs[0], Request | NoneType)):
        raise ValueError(f"{inputs[-1]!r} is no request; give mmchar.Request(...), or its fields by name")
    request = inputs[0] if inputs else None
    if fields_given:
        request = Request(**{**(request.given() if request else {}), **fields_given})
    return request, more


def count_subject(subject: "Subject") -> pd.DataFrame:
    """The operator table of a generation that is ready to run on ``meta``."""
    from mmchar.generation.run import record

    return recorded_table(subject, record(subject))


def recorded_table(
    subject: "Subject", recording: "Recording", *, dtype: str | None = None, tiny: bool = False
) -> pd.DataFrame:
    """The operator table of what a generation was seen to do; without a ``dtype`` that of its first weights."""
    parts = []
    for stage in recording.stages:
        frame = _frame(subject.networks[stage.component], stage, recording.rows[stage.name])
        parts.append(_labelled(frame, subject.name, stage.name, stage.component))
    outside = rows_frame(recording.outside).assign(module_type="pipeline", live_bytes=0, repeats=1, step=0)
    parts.append(_labelled(outside, subject.name, OUTSIDE, OUTSIDE))
    table = as_categories(pd.concat([part for part in parts if len(part)], ignore_index=True))
    table.attrs = _attrs(subject, dtype=dtype, tiny=tiny)
    return table


def _frame(network: "nn.Module", stage: "Stage", rows: "list[Row] | None") -> pd.DataFrame:
    """The rows of all executions of a stage, of which the first is traced where its rows are not given."""
    from mmchar.generation.steps import steps_table
    from mmchar.tracing.trace import trace

    def rows_at(step: int) -> pd.DataFrame:
        if step == 0 and rows is not None:
            return rows_frame(rows)
        return rows_frame(trace(network, stage.at(step).work(network)))

    if not stage.grows:
        return rows_at(0).assign(step=0, repeats=stage.repeats)
    return steps_table(stage, rows_at, [*LENGTHS, *AMOUNTS])


def _labelled(frame: pd.DataFrame, model: str, stage: str, component: str) -> pd.DataFrame:
    labels = {"model": model, "stage": stage, "component": component, "time_s": np.nan, "time_kind": "", "kernels": 0}
    return frame.assign(**labels)[list(COLUMNS)]


def stage_table(frame: pd.DataFrame, model: Model, stage: "Stage") -> pd.DataFrame:
    """The columns of the operator table around the rows of one stage; of its first step, if the rows do not say."""
    if "step" not in frame:
        frame = frame.assign(step=0, repeats=stage.repeats)
    return _labelled(frame, model.spec.name, stage.name, stage.component)


def count_stage(model: Model, stage: "Stage") -> pd.DataFrame:
    """The operator rows of one stage of a plan; totals of the stage are ``value * repeats``.

    A model on ``meta`` is counted without running; one on a device runs the stage, and the rows are what was seen.
    """
    from mmchar.generation.on_device import in_type, realized

    network = model.components[stage.component]
    if model.device != "meta":
        stage = realized(stage, network, device=model.device, dtype=model.dtype)
    elif model.dtype != "bfloat16":
        stage = in_type(stage, model.dtype)
    return stage_table(_frame(network, stage, None), model, stage)


def summarize_count(table: pd.DataFrame) -> dict[str, Any]:
    """Totals of a counted generation, in the shape of the shell contract (FLOP, bytes, tokens; ``value * repeats``).

    ``flop`` of a stage is that of one execution (the mean of a decode's steps, which is exact). ``peak_bytes`` holds
    the weights of all components and the most activation bytes alive.
    """
    params = table.attrs["params"]
    weights = table.attrs.get("weight_bytes") or {
        role: many * attention_models.ITEM_BYTES[table.attrs["dtype"]] for role, many in params.items()
    }
    total = table[list(AMOUNTS)].multiply(table["repeats"], axis=0)
    total["bytes"] = total["read_bytes"] + total["write_bytes"]
    by_category = total[["flop", "bytes"]].groupby(table["category"].astype(str)).sum()
    cores = table[table["attention"] != ""]
    sites = ["stage", "attention", "q_len", "kv_len", "heads", "head_dim", "repeats"]
    lengths = cores.groupby(sites, observed=True, sort=False)["calls"].sum().reset_index()
    return {
        "model": table.attrs["model"],
        "params": int(sum(params.values())),
        "flop": int(total["flop"].sum()),
        "read_bytes": int(total["read_bytes"].sum()),
        "write_bytes": int(total["write_bytes"].sum()),
        "peak_bytes": int(sum(weights.values()) + table["live_bytes"].max()),
        "stages": _stage_totals(table, total["flop"]),
        "attention": lengths[[*sites[:-1], "calls", "repeats"]].to_dict("records"),
        "categories": {name: {key: int(value) for key, value in row.items()} for name, row in by_category.iterrows()},
        "uncounted": sorted(set(table.loc[table["category"] == "Uncounted", "op"])),
    }


def _stage_totals(table: pd.DataFrame, total_flop: pd.Series) -> list[dict[str, Any]]:
    rows = []
    runs = executions(table)
    for name, part in table.groupby("stage", observed=True, sort=False):
        repeats, flop = int(runs[name]), int(total_flop[part.index].sum())
        params = int(table.attrs["params"][part["component"].iloc[0]])
        rows.append({"stage": name, "repeats": repeats, "params": params, "flop": flop // repeats, "total_flop": flop})
    return rows


def _count(model: Model, request: Request | None, more: Mapping[str, Any]) -> pd.DataFrame:
    from mmchar.generation.faults import without_advice
    from mmchar.generation.programs import remember, subject_of_zoo
    from mmchar.generation.run import on_meta, record

    full = model.spec.resolve(request)
    if model.device != "meta":
        networks = {role: on_meta(network) for role, network in model.components.items()}
        model = replace(model, components=networks, device="meta")
    with without_advice():
        subject = subject_of_zoo(model, full, more)
        recording = record(subject)
    if not more and model.dtype == "bfloat16":
        remember(model.spec, full, recording.stages)
    table = recorded_table(subject, recording, dtype=model.dtype, tiny=model.spec.tiny)
    table.attrs["request"] = full.given()
    if full.frames:
        table.attrs["sizes"] = {
            stage.name: sizes_at(stage, type(subject.networks[stage.component]).__name__) for stage in recording.stages
        }
    return table


def what_was_asked(model: Model, request: Request) -> dict[str, Any]:
    """The ``attrs`` that every operator table carries: model, request, dtype, tiny, and parameters by component."""
    asked = {"model": model.spec.name, "request": request.given(), "dtype": model.dtype, "tiny": model.spec.tiny}
    return {**asked, "params": model.params}


def _attrs(subject: "Subject", *, dtype: str | None, tiny: bool) -> dict[str, Any]:
    """The ``attrs`` of a counted generation."""
    tensors = {role: list(network.parameters()) for role, network in subject.networks.items()}
    own = next((str(each[0].dtype).removeprefix("torch.") for each in tensors.values() if each), "float32")
    params = {role: sum(part.numel() for part in parts) for role, parts in tensors.items()}
    stored = {role: sum(part.numel() * part.element_size() for part in parts) for role, parts in tensors.items()}
    asked = {"model": subject.name, "request": dict(subject.asked), "dtype": dtype or own, "tiny": tiny}
    return {**asked, "params": params | {OUTSIDE: 0}, "weight_bytes": stored}


def rows_frame(rows: "list[Row]") -> pd.DataFrame:
    """Traced rows as a table, in their order."""
    from mmchar.tracing.trace import Row

    return pd.DataFrame.from_records([vars(row) for row in rows], columns=[field.name for field in fields(Row)])


def as_categories(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its text columns as categoricals, which are small and quick to group."""
    return table.astype(dict.fromkeys(TEXT, "category"))


def _count_anew(spec: ModelSpec, request: Request, more: Mapping[str, Any], dtype: str) -> pd.DataFrame:
    return _count(build_model(spec, device="meta", dtype=dtype), request, more)


def count_spec(spec: ModelSpec, request: Request, more: Mapping[str, Any], dtype: str) -> pd.DataFrame:
    """`count` of a spec and a request that is whole, with what else its pipeline is called with; kept on disk."""
    from mmchar.provenance import package_versions
    from mmchar.tables.cache import cached_table, source_hash

    key = {
        "spec": msgspec.to_builtins(spec),
        "request": request.given(),
        **({"call": dict(more)} if more else {}),
        "dtype": dtype,
        "versions": package_versions("torch", "diffusers", "transformers", "pandas"),
        "source": source_hash(),
    }
    return cached_table(key, lambda: _count_anew(spec, request, more, dtype))
