"""A model from a local folder of configurations: the zoo model of the same class says how it generates.

The folder holds ``model_index.json`` and ``<component>/config.json`` (diffusers), or ``config.json`` (transformers).
Nothing else is read: no weights, no pickle, no code, no network.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmchar.folder_sizes import image_sizes, language_sizes, options_of
from mmchar.models import Component, ModelSpec, get_spec

LIBRARIES = ("diffusers", "transformers")


class Template(NamedTuple):
    """The zoo model that a class of models generates like.

    ``where`` holds what the configurations must say, ``{role: {field: value}}``; an empty one asks for the component
    only. ``size`` names the denoiser's fields for height and width (and frames), in latents, where they are the size
    that the pipeline generates.
    """

    cls: str
    zoo: str
    where: Mapping[str, Mapping[str, Any]] = {}
    size: tuple[str, ...] = ()


_SQUARE = ("sample_size", "sample_size")
_CLIP = ("sample_height", "sample_width", "sample_frames")

# The first row that fits is taken, so the one without conditions is the last of its class.
PIPELINES = (
    Template("StableDiffusionPipeline", "stable-diffusion-1.5", size=_SQUARE),
    Template("StableDiffusionXLPipeline", "sdxl-base-1.0", size=_SQUARE),
    Template("FluxPipeline", "flux.1-schnell", {"transformer": {"guidance_embeds": False}}),
    Template("FluxPipeline", "flux.1-dev"),
    Template("StableDiffusion3Pipeline", "sd3-medium", size=_SQUARE),
    Template("PixArtSigmaPipeline", "pixart-sigma-1024", size=_SQUARE),
    Template("DiTPipeline", "dit-xl-2-256", size=_SQUARE),
    Template("WanPipeline", "wan2.2-t2v-a14b", {"transformer_2": {}}),
    Template("WanPipeline", "wan2.2-ti2v-5b", {"vae": {"is_residual": True}}),
    Template("WanPipeline", "wan2.1-t2v-1.3b"),
    Template("CogVideoXPipeline", "cogvideox1.5-5b", {"transformer": {"patch_size_t": 2}}),
    Template("CogVideoXPipeline", "cogvideox-5b", {"transformer": {"use_rotary_positional_embeddings": True}}, _CLIP),
    Template("CogVideoXPipeline", "cogvideox-2b", size=_CLIP),
    Template("HunyuanVideoPipeline", "hunyuanvideo"),
)
LANGUAGE_MODELS = (
    Template("LlamaForCausalLM", "llama-2-7b"),
    Template("MistralForCausalLM", "llama-2-7b"),
    Template("Qwen2ForCausalLM", "llama-2-7b"),
    Template("Qwen3ForCausalLM", "llama-2-7b"),
    Template("GemmaForCausalLM", "llama-2-7b"),
    Template("Phi3ForCausalLM", "llama-2-7b"),
    Template("Olmo2ForCausalLM", "llama-2-7b"),
    Template("GraniteForCausalLM", "llama-2-7b"),
    Template("LlavaForConditionalGeneration", "llava-1.5-7b"),
)
# diffusers' own mapping of a class that older checkpoints name (models/model_loading_utils.py, read)
_RENAMED = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def folder_spec(path: str | Path) -> ModelSpec:
    """The spec of a local diffusers pipeline or transformers model, from its configuration files alone.

    Family, options, limits and defaults are those of the zoo model that the class generates like; sizes follow the
    folder's configurations.

    Raises
    ------
    ValueError
        No known class, a component without ``config.json``, a file that is no JSON object: one line that names file,
        component and field.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        return _pipeline_spec(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(path)!r} holds neither model_index.json (diffusers) nor config.json (transformers)")
    config = read_object(folder / "config.json")
    cls = architecture(folder / "config.json", config)
    part = Component("transformers", cls, _settings(config), source=str(folder / "config.json"))
    (role,) = get_spec(_rows(folder / "config.json", cls, LANGUAGE_MODELS)[0].zoo).components
    return spec_from_parts(folder, cls, {role: part})


def spec_from_parts(where: str | Path, cls: str, parts: Mapping[str, Component]) -> ModelSpec:
    """The spec of a pipeline or language model of class ``cls``, of which the components are known."""
    rows = _rows(where, cls, PIPELINES + LANGUAGE_MODELS)
    template = next((row for row in rows if _fits(row, parts)), rows[-1])
    zoo = get_spec(template.zoo)
    options = options_of(zoo, parts)
    for role in zoo.components:
        if role not in parts and role not in _optional(zoo):
            raise ValueError(f"{where}: component {role!r} is missing; a {cls} needs {', '.join(zoo.components)}")
    parts = {role: _renamed(parts[role], zoo.components[role]) for role in zoo.components if role in parts}
    if cls in {row.cls for row in LANGUAGE_MODELS}:
        request, limits = language_sizes(zoo, parts)
    else:
        _check_classes(where, cls, zoo, parts)
        request, limits, options = image_sizes(zoo, template.size, parts, options)
    return replace(
        zoo,
        name=re.sub(r"[^\w.-]+|^[^\w]+|\.+$", "-", Path(where).absolute().name),  # results are called by it
        year=0,
        summary=f"{cls} from a folder, which generates as {zoo.name} does",
        components=parts,
        options=options,
        request=request,
        request_source=f"the folder's configurations; what they do not say, from {zoo.name}: {zoo.request_source}",
        limits=limits,
        tiny_request={},
        tiny_limits={},
        notes=(f"options and limits are those of {zoo.name}",),
        papers=(),
    )


def _optional(zoo: ModelSpec) -> tuple[str, ...]:
    """Text encoders that a pipeline may leave out: every one of several, as its denoiser keeps the text's length."""
    context = tuple(zoo.options["context"]) if "context_joined" in zoo.options else ()
    return (*zoo.options.get("texts", ()), *context)


def declared(file: str | Path, index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """``{role: (library, class)}`` of the components that a pipeline's index names and that its templates know."""
    rows = _rows(file, index.get("_class_name"), PIPELINES)
    roles = {role: None for row in rows for role in get_spec(row.zoo).components}  # a dict keeps the order
    found = {role: index[role] for role in roles if index.get(role) not in (None, [None, None], (None, None))}
    for role, entry in found.items():
        if not isinstance(entry, list | tuple) or [type(value) for value in entry] != [str, str]:
            raise ValueError(f"{file}: component {role!r} is {entry!r}; expected [library, class]")
        if entry[0] not in LIBRARIES:
            raise ValueError(f"{file}: component {role!r}: library {entry[0]!r} is not one of {', '.join(LIBRARIES)}")
        if not entry[1].isidentifier():
            raise ValueError(f"{file}: component {role!r}: {entry[1]!r} is no class name")
    return {role: (library, cls) for role, (library, cls) in found.items()}


def architecture(file: str | Path, config: Mapping[str, Any]) -> str:
    """The class that a transformers configuration was saved from; refused where it is not a known one."""
    names = config.get("architectures")
    cls = names[0] if isinstance(names, list) and names else None
    return _rows(file, cls, LANGUAGE_MODELS)[0].cls


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; component {file.parent.name!r} needs its config.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected an object, found {type(raw).__name__}")
    return raw


def _pipeline_spec(folder: Path) -> ModelSpec:
    file = folder / "model_index.json"
    index = read_object(file)
    parts = {}
    for role, (library, cls) in declared(file, index).items():
        config = folder / role / "config.json"
        parts[role] = Component(library, cls, _settings(read_object(config)), source=str(config))
    return spec_from_parts(folder, index["_class_name"], parts)


def _rows(where: str | Path, cls: Any, table: tuple[Template, ...]) -> tuple[Template, ...]:
    rows = tuple(row for row in table if row.cls == cls)
    if not rows:
        known = ", ".join(dict.fromkeys(row.cls for row in table))
        field = "_class_name" if table is PIPELINES else "architectures"
        what = "pipelines" if table is PIPELINES else "language models"
        raise ValueError(f"{where}: {field!r} is {cls!r}; {what} known so far: {known}")
    return rows


def _fits(row: Template, parts: Mapping[str, Component]) -> bool:
    return all(
        role in parts and all(parts[role].config.get(field) == value for field, value in wanted.items())
        for role, wanted in row.where.items()
    )


def _check_classes(where: str | Path, cls: str, zoo: ModelSpec, parts: Mapping[str, Component]) -> None:
    """A family calls its denoiser and decoder in one way; text encoders may be of another class."""
    for role, part in parts.items():
        if part.cls != zoo.components[role].cls and not role.startswith("text_encoder"):
            want = zoo.components[role].cls
            raise ValueError(f"{where}: component {role!r} is a {part.cls}; a {cls} is counted with a {want}")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration without what the library notes of itself, at every level."""
    return {
        key: _settings(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if not key.startswith("_")
    }


def _renamed(part: Component, zoo: Component) -> Component:
    """The class of today where an older checkpoint names ``Transformer2DModel``, with the fields that it still has."""
    today = _RENAMED.get(part.config.get("norm_type", ""))
    if part.cls != "Transformer2DModel" or today != zoo.cls:
        return part
    return replace(part, cls=today, config={key: part.config[key] for key in zoo.config if key in part.config})
