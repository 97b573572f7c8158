"""Load saved weights through ``from_pretrained``: safetensors only, no remote code."""

from typing import Any

from mmchar.faults import text_of
from mmchar.models.specs import Model, ModelSpec


def load_pretrained(path: str, spec: ModelSpec, *, device: str, dtype: str) -> Model:
    """A diffusers pipeline or a transformers model from a local folder or a hub id.

    The spec is that of the configurations alone, so the model is counted and measured like one without weights.
    """
    if not spec.pipeline.any_request:
        raise ValueError(f"weights='pretrained' needs a folder or a hub id, and {path!r} has configurations only")
    load = _pipeline if spec.pipeline.library == "diffusers" else _network
    try:
        modules = load(path, spec, dtype)
    except Exception as error:  # the libraries raise errors of many kinds, and none of them is swallowed
        raise ValueError(f"cannot load {path!r}: {text_of(error)}") from error
    ready = {role: module.to(device).eval().requires_grad_(False) for role, module in modules.items()}
    return Model(spec, ready, device, dtype)


def _pipeline(path: str, spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The networks of a saved pipeline; nothing else of it is loaded."""
    import diffusers
    import torch

    cls = getattr(diffusers, spec.pipeline.cls)
    modules, others = cls._get_signature_keys(cls)
    unused = {role: None for role in modules if role not in spec.components and role not in spec.pipeline.schedulers}
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **unused}
    if "requires_safety_checker" in others:
        options["requires_safety_checker"] = False
    pipe = cls.from_pretrained(path, **options)
    return {role: getattr(pipe, role) for role in spec.components}


def _network(path: str, spec: ModelSpec, dtype: str) -> dict[str, Any]:
    import torch
    import transformers

    ((role, part),) = spec.components.items()
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    return {role: getattr(transformers, part.cls).from_pretrained(path, **options)}
