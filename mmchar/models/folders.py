"""A model from a folder of configurations: the library's own class, and what it is built with.

The folder holds ``model_index.json`` and ``<component>/config.json`` (diffusers), or ``config.json`` (transformers);
schedulers, tokenizers and processors are taken from it where their files are there. Nothing else is read: no weights,
no pickle, no code, no network.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmchar.faults import text_of
from mmchar.models.specs import Component, ModelSpec

LIBRARIES = ("diffusers", "transformers")
# What a configuration notes for loading: code of others, which is never run, and how weights are stored.
_FOR_LOADING = ("auto_map", "trust_remote_code", "quantization_config", "attn_implementation")


def make_spec(name: str, cls: str, family: str, components: dict[str, Component], **more: Any) -> ModelSpec:
    """A spec of what is known of a folder: it has no year, no papers and no scaled-down variant."""
    summary = f"{cls} from a folder"
    return ModelSpec(name, family, 0, summary, components=components, tiny_request={}, **more)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))  # with a byte order mark or without
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; component {file.parent.name!r} needs its {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {text_of(error)}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected an object, found {type(raw).__name__}")
    return raw


def library_class(where: str, library: str, name: str) -> Any:
    """A class of diffusers or transformers; as in an index, a library may be a pipeline's module of diffusers.

    Raises ValueError for another library, or a class that it does not have: code of others is never run.
    """
    if not name.isidentifier():
        raise ValueError(f"{where}: {name!r} is no class name")
    module = module_of(library)
    if module is None:
        known = ", ".join(LIBRARIES)
        raise ValueError(f"{where}: library {library!r} is not one of {known}; code from elsewhere is never run")
    return class_of(module, name, where=f"{where}: ", library=library)


def class_of(module: str, name: str, *, where: str = "", library: str = "") -> Any:
    """A class of a module, which may be named with its sub-module; an error says ``where``, and whose it should be."""
    inner, _, last = f"{module}.{name}".rpartition(".")
    try:
        return getattr(import_module(inner), last)
    except (AttributeError, ImportError) as error:
        said = f"{where}{library or module} has no class {name!r} here ({text_of(error, 200)})"
        raise ValueError(said) from error


def module_of(library: str) -> str | None:
    """The module that an index means by a library; None where it is no part of the two libraries."""
    if library in LIBRARIES:
        return library
    if not library.isidentifier():
        return None
    inner = [f"diffusers.pipelines.{library}", f"diffusers.pipelines.deprecated.{library}"]
    return next((name for name in inner if find_spec(name) is not None), None)


def network_config(where: str, cls: Any, raw: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """What a network is built with: its configuration as saved, without what the library leaves out when it loads.

    ``notes`` gets a line for what is left out of the component.
    """
    stored = raw.get("quantization_config")
    if stored:
        kind = stored.get("quant_method", "quantized") if isinstance(stored, Mapping) else "quantized"
        notes.append(f"{where} is stored quantized ({kind}); counted with weights of the number type that is asked for")
    if not hasattr(cls, "extract_init_dict"):
        base = getattr(getattr(cls, "config_class", None), "base_config_key", "")
        inner = raw.get(base) if base else None  # of a model with two towers, the tower that the class is
        return _settings(inner if isinstance(inner, Mapping) else raw)
    config, _, _ = cls.extract_init_dict(dict(raw))
    unknown = [key for key in raw if key not in config and not key.startswith("_") and key not in _FOR_LOADING]
    unknown = [key for key in unknown if key not in raw.get("_use_default_values", ())]
    if unknown:
        notes.append(f"{where}: {cls.__name__} does not know {', '.join(map(repr, unknown))}; left out")
    return config


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration without what the library notes of itself, at every level."""
    return {
        key: _settings(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not key.startswith("_") and key not in _FOR_LOADING
    }
