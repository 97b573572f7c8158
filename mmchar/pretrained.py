"""Load saved weights through ``from_pretrained``: safetensors only, no remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmchar.folders import architecture, declared, read_object, spec_from_parts
from mmchar.models import Component, Model


def load_pretrained(path: str, *, device: str, dtype: str) -> Model:
    """A diffusers pipeline or a transformers language model from a local folder or a hub id.

    The spec is made from the loaded configurations, as that of a folder without weights
    (:func:`mmchar.folders.folder_spec`), so the model can be counted and measured like one of the zoo.

    Raises
    ------
    ValueError
        ``device="meta"``, a folder without ``model_index.json`` or ``config.json``, a class of no known family, or a
        library error (no safetensors, no network), in one line.
    """
    if device == "meta":
        raise ValueError("weights='pretrained' needs a real device; use device='cpu' or 'cuda', or weights='random'")
    path = str(path)
    index, config = _configs(path)
    if index is not None:
        return _pipeline(path, index, device, dtype)
    return _language_model(path, architecture(path, config or {}), device, dtype)


def _configs(path: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The index of a pipeline, or else the configuration of a model; a hub id is asked for its index."""
    folder = Path(path)
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            return read_object(folder / "model_index.json"), None
        if not (folder / "config.json").is_file():
            raise ValueError(f"{path!r} holds neither model_index.json (diffusers) nor config.json (transformers)")
        return None, read_object(folder / "config.json")
    from huggingface_hub import file_exists
    from transformers import PretrainedConfig

    if _reach(path, file_exists, path, "model_index.json"):
        from diffusers import DiffusionPipeline

        return _reach(path, DiffusionPipeline.load_config, path), None
    return None, _reach(path, PretrainedConfig.get_config_dict, path)[0]


def _pipeline(path: str, index: dict[str, Any], device: str, dtype: str) -> Model:
    import diffusers
    import torch

    roles = declared(path, index)
    named = [role for role, entry in index.items() if isinstance(entry, list | tuple) and not role.startswith("_")]
    unused = {role: None for role in named if role not in roles and role != "scheduler"}
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **unused}
    cls = getattr(diffusers, index["_class_name"])
    pipe = _reach(path, cls.from_pretrained, path, **options).to(device)
    modules = {role: getattr(pipe, role).eval().requires_grad_(False) for role in roles}
    parts = {role: _component(module, path) for role, module in modules.items()}
    return Model(spec_from_parts(path, index["_class_name"], parts), modules, device, dtype)


def _language_model(path: str, cls: str, device: str, dtype: str) -> Model:
    import torch
    import transformers

    options = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    module = _reach(path, getattr(transformers, cls).from_pretrained, path, **options).to(device)
    role = "vlm" if hasattr(module.config, "vision_config") else "lm"
    spec = spec_from_parts(path, cls, {role: _component(module, path)})
    return Model(spec, {role: module.eval().requires_grad_(False)}, device, dtype)


def _reach(path: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a library's call returns; its error (no safetensors, no network, no such file) in one line."""
    try:
        return call(*args, **options)
    except Exception as error:  # the libraries raise errors of many kinds, and none of them is swallowed
        raise ValueError(f"cannot load {path!r}: {' '.join(str(error).split())[:300]}") from error


def _component(module: Any, path: str) -> Component:
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    library = type(module).__module__.split(".")[0]
    return Component(library, type(module).__name__, config, source=f"loaded from {Path(path).name}")
