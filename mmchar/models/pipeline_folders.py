"""A folder that diffusers saved a pipeline in: networks, schedulers, tokenizers and settings, by the index's roles."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchar.faults import did_you_mean
from mmchar.files import checksum
from mmchar.models.folders import library_class, make_spec, module_of, network_config, read_object
from mmchar.models.specs import Component, Library, ModelSpec, Pipeline

# Files without which a tokenizer or a processor cannot be loaded.
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_MADE_UP = ("tokenizer", "feature_extractor", "processor")  # parts without weights that a stand-in is made of
_LONGEST = 1 << 20  # tokens; a tokenizer that says more than that means "any"
_CLIP_TOKENS = 77  # positions of every published CLIP text encoder


@dataclass
class _Found:
    """What the index of a pipeline names, sorted by what becomes of it."""

    components: dict[str, Component] = field(default_factory=dict)
    schedulers: dict[str, dict[str, Any]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pipeline_spec(folder: Path, name: str) -> ModelSpec:
    """The spec of a saved pipeline: any class that diffusers exports.

    Raises ValueError for a class that it does not have, a component without ``config.json``, or a file that is no JSON
    object: one line that names file, component and field.
    """
    file = folder / "model_index.json"
    index = read_object(file)
    cls = _pipeline_class(file, index)
    found = _Found()
    takes = {key: part for key, part in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    for role, entry in index.items():
        if role.startswith("_"):
            continue
        if role not in takes:
            found.notes.append(f"{cls.__name__} takes no {role!r}; left out")
        elif _is_setting(takes[role], entry, role in cls._optional_components):
            found.arguments[role] = entry
        else:
            _add(found, folder, cls, role, entry)
    _complete(found, file, cls, takes)
    parts = {key: getattr(found, key) for key in ("schedulers", "arguments", "tokens", "files")}
    return make_spec(
        name,
        cls.__name__,
        "pipeline",
        found.components,
        request={},
        request_source=f"the defaults of {cls.__name__}'s own call",
        pipeline=Pipeline("diffusers", cls.__name__, any_request=True, **parts),
        notes=tuple(found.notes),
    )


def _pipeline_class(file: Path, index: Mapping[str, Any]) -> Any:
    import diffusers

    name = index.get("_class_name")
    if not isinstance(name, str):
        own = " (code of its own is never run)" if isinstance(name, list | tuple) else ""
        raise ValueError(f"{file}: '_class_name' is {name!r}; expected the name of a class of diffusers{own}")
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        backends = getattr(cls, "_backends", None)
        if backends:
            raise ValueError(f"{file}: {name} needs the packages {', '.join(backends)}")
        known = [key for key in dir(diffusers) if key.endswith("Pipeline")]
        lacks = f"which diffusers {diffusers.__version__} has not; {did_you_mean(name, known)}".rstrip("; ")
        raise ValueError(f"{file}: '_class_name' is {name!r}, {lacks}")
    return cls


def _is_setting(parameter: Any, entry: Any, is_component: bool) -> bool:
    """Whether an entry of the index is a plain argument of the class, e.g. ``"boundary_ratio": 0.875``."""
    if is_component or parameter.default is parameter.empty:
        return False
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    return not (pair and all(part is None or isinstance(part, str) for part in entry))


def _add(found: _Found, folder: Path, cls: Any, role: str, entry: Any) -> None:
    from torch.nn import Module

    where = f"{folder / 'model_index.json'}: component {role!r}"
    if entry is None or (isinstance(entry, list | tuple) and list(entry) == [None, None]):
        found.arguments[role] = None
        return
    if not isinstance(entry, list | tuple) or [type(value) for value in entry] != [str, str]:
        raise ValueError(f"{where} is {entry!r}; expected [library, class]")
    library, name = entry
    if any(word in role for word in _MADE_UP) and not (folder / role / "config.json").is_file():
        _add_file(found, folder / role, role, library, name)
        return
    part = library_class(where, library, name)
    if hasattr(part, "from_config") and not (isinstance(part, type) and issubclass(part, Module)):
        _add_scheduler(found, folder, cls, role, part)
    elif (folder / role / "config.json").is_file() or role not in cls._optional_components:
        _add_network(found, folder, role, library, part)
    else:
        found.arguments[role] = None
        found.notes.append(f"component {role!r} has no config.json; left out, as {cls.__name__} runs without it")


def _add_network(found: _Found, folder: Path, role: str, library: str, cls: Any) -> None:
    raw = read_object(folder / role / "config.json")
    cls = _class_of_today(cls, raw)
    config = network_config(f"component {role!r}", cls, raw, found.notes)
    module = (module_of(library) or "").removeprefix("diffusers").lstrip(".")
    inner = f"{module}." if module.startswith("pipelines") else ""
    owner: Library = "transformers" if library == "transformers" else "diffusers"
    found.components[role] = Component(owner, f"{inner}{cls.__name__}", config, str(folder / role / "config.json"))


def _class_of_today(cls: Any, raw: Mapping[str, Any]) -> Any:
    """The class that diffusers itself exchanges an older checkpoint's class for."""
    from diffusers.models.model_loading_utils import _CLASS_REMAPPING_DICT, _fetch_remapped_cls_from_config

    known = _CLASS_REMAPPING_DICT.get(getattr(cls, "__name__", ""))
    return _fetch_remapped_cls_from_config({"norm_type": None, **raw}, cls) if known else cls


def _add_scheduler(found: _Found, folder: Path, cls: Any, role: str, part: Any) -> None:
    """A scheduler or a guider of its own configuration; without one, of a class that the pipeline works with."""
    files = [folder / role / name for name in (part.config_name, "config.json") if part.config_name]
    file = next((file for file in files if file.is_file()), None)
    saved = read_object(file) if file is not None else {}
    if file is None and not _suits(cls, role, part):
        wanted = scheduler_class(cls, role)
        found.notes.append(
            f"component {role!r} has no {part.config_name}, and {cls.__name__} is written for {wanted.__name__}: "
            f"counted with that in place of {part.__name__}"
        )
        part = wanted
    config = {key: value for key, value in saved.items() if not key.startswith("_")}
    found.schedulers[role] = {"class": part.__name__, "config": config}


def _suits(cls: Any, role: str, part: Any) -> bool:
    """Whether a scheduler is of a class that the pipeline is annotated with, if it is annotated with one at all."""
    from diffusers import SchedulerMixin

    kinds = _annotated(cls, role)
    strict = bool(kinds) and all(issubclass(kind, SchedulerMixin) for kind in kinds)
    return not strict or issubclass(part, kinds)


def scheduler_class(cls: Any, role: str) -> Any:
    """The scheduler that a pipeline is annotated with; DDIM, which calls a denoiser once a step, where any will do."""
    from diffusers import DDIMScheduler, SchedulerMixin

    named = (kind for kind in _annotated(cls, role) if issubclass(kind, SchedulerMixin) and kind is not SchedulerMixin)
    return next(named, DDIMScheduler)


def _annotated(cls: Any, role: str) -> tuple[type, ...]:
    return tuple(kind for kind in cls._get_signature_types().get(role, ()) if isinstance(kind, type))


def lacking(cls: Any, given: Mapping[str, Any]) -> str | None:
    """The first network, by its annotations, that a pipeline needs and is not given; an encoder may be None."""
    from torch.nn import Module

    takes = inspect.signature(cls.__init__).parameters
    for role in cls._get_signature_types():
        needed = takes[role].default is inspect.Parameter.empty and role not in cls._optional_components
        network = any(issubclass(kind, Module) for kind in _annotated(cls, role))
        left_out = (role in given and "encoder" in role) or role == "safety_checker"
        if needed and network and given.get(role) is None and not left_out:
            return role
    return None


def _add_file(found: _Found, folder: Path, role: str, library: str, name: str) -> None:
    """A tokenizer or a processor: loaded where its files are there, else a stand-in of the length that they say."""
    needed = _VOCABULARY if "tokenizer" in role else _PROCESSOR
    here = [file for file in sorted(folder.glob("*")) if file.is_file()]
    if any(file.name in needed for file in here):
        contents = "".join(checksum(file.read_bytes()) for file in here)
        made = {"library": library, "class": name, "folder": str(folder.absolute())}
        found.files[role] = {**made, "checksum": checksum(contents.encode())}
    else:
        most = _CLIP_TOKENS if name.startswith("CLIPTokenizer") else None
        if (folder / "tokenizer_config.json").is_file():
            most = read_object(folder / "tokenizer_config.json").get("model_max_length", most)
        if isinstance(most, int | float) and 0 < most < _LONGEST:
            found.tokens[role] = {"most": int(most)}


def _complete(found: _Found, file: Path, cls: Any, takes: Mapping[str, Any]) -> None:
    """Add the schedulers that the index lacks; refuse a pipeline without one of its networks."""
    role = lacking(cls, {**found.components, **found.arguments})
    if role is not None:
        raise ValueError(f"{file}: component {role!r} is missing; a {cls.__name__} cannot run without it")
    for role, parameter in takes.items():
        if parameter.default is parameter.empty and "scheduler" in role and role not in found.schedulers:
            wanted = scheduler_class(cls, role)
            found.notes.append(f"component {role!r} is not in the index; counted with {wanted.__name__}")
            found.schedulers[role] = {"class": wanted.__name__, "config": {}}
