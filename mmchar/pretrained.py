"""Load saved weights through ``from_pretrained``: safetensors only, no remote code."""

from collections.abc import Callable
from typing import Any

from mmchar.models import Model, get_spec


def load_pretrained(path: str, *, device: str, dtype: str) -> Model:
    """A diffusers pipeline or a transformers model from a local folder or a hub id.

    Its spec is that of the folder without weights (:func:`mmchar.folders.folder_spec`), so the model can be counted and
    measured like one of the zoo.

    Raises
    ------
    ValueError
        ``device="meta"``, a folder without ``model_index.json`` or ``config.json``, a class that the libraries do not
        have, or a library error (no safetensors, no network), in one line.
    """
    if device == "meta":
        raise ValueError("weights='pretrained' needs a real device; use device='cpu' or 'cuda', or weights='random'")
    import torch

    from mmchar.generation.programs import class_of

    spec = get_spec(str(path))
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if spec.pipeline["library"] == "diffusers":
        cls = class_of("diffusers", spec.pipeline["class"])
        index = _reach(str(path), cls.load_config, str(path))
        named = [role for role, entry in index.items() if isinstance(entry, list | tuple) and not role.startswith("_")]
        unused = {role: None for role in named if role not in spec.components and "scheduler" not in role}
        pipe = _reach(str(path), cls.from_pretrained, str(path), **options, **unused)
        modules = {role: getattr(pipe, role) for role in spec.components}
    else:
        ((role, part),) = spec.components.items()
        modules = {role: _reach(str(path), class_of("transformers", part.cls).from_pretrained, str(path), **options)}
    ready = {role: module.to(device).eval().requires_grad_(False) for role, module in modules.items()}
    return Model(spec, ready, device, dtype)


def _reach(path: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a library's call returns; its error (no safetensors, no network, no such file) in one line."""
    try:
        return call(*args, **options)
    except Exception as error:  # the libraries raise errors of many kinds, and none of them is swallowed
        raise ValueError(f"cannot load {path!r}: {' '.join(str(error).split())[:300]}") from error
