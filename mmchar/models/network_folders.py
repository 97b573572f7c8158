"""A folder that transformers saved one model in: a class that writes is run by ``generate()``, others by a forward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmchar.faults import typed
from mmchar.models.folders import library_class, make_spec, network_config, read_object
from mmchar.models.specs import Component, ModelSpec, Pipeline, copied
from mmchar.request import Limit

# Where a class is looked for by its model type, if a configuration names none: those that write first.
_MAPPINGS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")
_WRITTEN = {"batch": 1, "prompt_tokens": 512, "new_tokens": 256}
_ANSWERED = {"batch": 1, "prompt_tokens": 64, "new_tokens": 64}  # of a model that sees or hears


def network_spec(folder: Path, name: str) -> ModelSpec:
    """The spec of a saved transformers model: any class that the library exports.

    Raises ValueError for a class that it does not have, or a file that is no JSON object: one line that names them.
    """
    file = folder / "config.json"
    raw = read_object(file)
    cls = _class_of(file, raw)
    notes: list[str] = []
    config = network_config(file.name, cls, raw, notes)
    try:
        settings = cls.config_class(**copied(config))
    except Exception as error:  # configurations check themselves, each in its way
        raise ValueError(f"{file}: {cls.__name__} rejects its config: {typed(error)}") from error
    writes = bool(hasattr(cls, "generate") and (cls.can_generate() or "generate" in vars(cls)))
    role = _role(settings, writes)
    settings_file = folder / "generation_config.json"
    said = read_object(settings_file) if settings_file.is_file() else {}
    generation = {key: value for key, value in said.items() if key[:1] != "_" and key != "transformers_version"}
    request = dict(_ANSWERED if _senses(settings) else _WRITTEN)
    if not writes:
        del request["new_tokens"]
    limits = _limits(settings, request)
    for key, limit in limits.items():
        for part in key.split("+"):
            request[part] = min(request[part], max(1, (limit.max or 2) // 2))
    return make_spec(
        name,
        cls.__name__,
        "language_model" if writes else "network",
        {role: Component("transformers", cls.__name__, config, str(file))},
        request=request,
        request_source="our choice; sizes of images and sound are those of the configuration",
        limits=limits,
        pipeline=Pipeline("transformers", "generate" if writes else "forward", generation=generation, any_request=True),
        notes=tuple(notes),
    )


def _class_of(file: Path, raw: Mapping[str, Any]) -> Any:
    """The class of ``architectures``, or of the model type where there is none."""
    import transformers

    names = raw.get("architectures")
    if names is None and "_class_name" in raw:
        raise ValueError(
            f"{file}: {raw['_class_name']!r} is one component of a pipeline; give the folder that holds its "
            "model_index.json, or mmchar.count(module, *inputs) for the module alone"
        )
    if names is None:
        return _class_of_type(file, raw.get("model_type"))
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise ValueError(f"{file}: 'architectures' is {names!r}; expected a list with the name of a class")
    where = f"{file}: 'architectures' is {name!r}"
    if raw.get("auto_map") and not hasattr(transformers, name):
        raise ValueError(f"{where}: code of its own ('auto_map') is never run, and transformers has no such class")
    cls = library_class(where, "transformers", name)
    if not hasattr(cls, "_from_config") or not hasattr(cls, "config_class"):
        raise ValueError(f"{where}, which is not a network of transformers")
    return cls


def _class_of_type(file: Path, kind: Any) -> Any:
    from transformers.models.auto import modeling_auto

    tables = [getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in _MAPPINGS]
    tables.append(modeling_auto.MODEL_MAPPING_NAMES)
    found = next((table[kind] for table in tables if isinstance(kind, str) and kind in table), None)
    if found is None:
        raise ValueError(
            f"{file}: 'architectures' is None and 'model_type' is {kind!r}; give the name of a class of transformers"
        )
    return library_class(str(file), "transformers", found[0] if isinstance(found, list | tuple) else found)


def _role(settings: Any, writes: bool) -> str:
    if not writes:
        return "model"
    if getattr(settings, "is_encoder_decoder", False):
        return "seq2seq"
    return "vlm" if _senses(settings) else "lm"


def _senses(settings: Any) -> bool:
    """Whether a model is given something besides text."""
    return any(getattr(settings, name, None) is not None for name in ("vision_config", "audio_config", "vq_config"))


def _limits(settings: Any, request: Mapping[str, Any]) -> dict[str, Limit]:
    """The positions that a decoder has; an encoder and its decoder have them each for themselves."""
    try:
        text = settings.get_text_config(decoder=True)
    except ValueError:  # it has several
        return {}
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 2:
        return {}
    fields = [name for name in ("prompt_tokens", "new_tokens") if name in request]
    keys = fields if getattr(settings, "is_encoder_decoder", False) else ["+".join(fields)]
    return {key: Limit(max=most) for key in keys}
