"""From a model of the zoo, or a folder, and a request to a generation that can be run: the one place that maps them."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mmchar.files import canonical_json
from mmchar.generation.faults import one_line
from mmchar.generation.from_folders import pipelines, standins
from mmchar.generation.from_folders.wanted import is_picture, picture, sides, wanted
from mmchar.generation.guess import with_pipeline
from mmchar.generation.inputs import Inputs
from mmchar.generation.model_inputs import generation_names, inputs_of
from mmchar.generation.recording import Stage, Subject
from mmchar.generation.run import record
from mmchar.generation.subject import makes_of, subject_of
from mmchar.models.folders import class_of
from mmchar.models.loading import Model, ModelSpec, build_model
from mmchar.request import Request

# A request's fields by the names that pipelines have for them, in the order in which they are looked for.
_CALLED = {
    "height": ("height",),
    "width": ("width",),
    "frames": ("num_frames", "video_length"),
    "steps": ("num_inference_steps",),
    "guidance": ("guidance_scale",),
    "prompt_tokens": ("max_sequence_length",),
    "audio_s": ("audio_length_in_s", "audio_end_in_s"),
}
_OPTIONAL = ("batch", "prompt_tokens")  # a pipeline without a length of its own is given a prompt of that length


_PLANS: dict[str, tuple[Stage, ...]] = {}


def subject_of_zoo(model: Model, request: Request, more: Mapping[str, Any] | None = None) -> Subject:
    """One generation of a model of the zoo, on any device, of a resolved request and ``more`` arguments of its call.

    Raises ValueError for a field that the pipeline does not take, or a network that it lacks.
    """
    with one_line(model.spec.name):
        model = with_pipeline(model)
        return _SUBJECTS.get(model.spec.pipeline.library, _piped)(model, request, more or {})


def check_call(spec: ModelSpec, more: Mapping[str, Any]) -> None:
    """Refuse what a model's own call does not take, as far as its class tells, before any network is built."""
    made = spec.pipeline
    if made.cls and made.library == "diffusers":
        pipelines.check_arguments(class_of("diffusers", made.cls).__call__, more, owner=made.cls)


def plan(spec: ModelSpec, request: Request) -> tuple[Stage, ...]:
    """The stages of one generation, as its code was seen to make them on ``meta``; seen once per process."""
    key = _key(spec, request)
    if key not in _PLANS:
        subject = subject_of_zoo(build_model(spec, device="meta", dtype="bfloat16"), request)
        remember(spec, request, record(subject).stages)
    return _PLANS[key]


def is_planned(spec: ModelSpec, request: Request) -> bool:
    """Whether the stages of a generation are known already in this process."""
    return _key(spec, request) in _PLANS


def remember(spec: ModelSpec, request: Request, stages: tuple[Stage, ...]) -> None:
    """Keep the stages of a generation in bfloat16, so that `plan` need not run it once more."""
    _PLANS[_key(spec, request)] = stages


def _key(spec: ModelSpec, request: Request) -> str:
    return canonical_json([msgspec.to_builtins(spec), request.given()])


def _piped(model: Model, request: Request, more: Mapping[str, Any]) -> Subject:
    """What a pipeline of diffusers makes."""
    pipe = pipeline_of(model, request)
    call = call_of(pipe, request, model.spec, more)
    pipelines.check_complete(pipe.__call__, call, owner=model.spec.name)
    makes = "video" if request.frames else makes_of(pipe.__call__)
    networks, work = {**model.components, **pipelines.networks_of(pipe)}, pipelines.work(pipe, call)
    return Subject(model.spec.name, networks, work, request.given(), model.spec.pipeline.stages, makes)


def _written(model: Model, request: Request, more: Mapping[str, Any]) -> Subject:
    """What a language model writes, after a text or after an image and a text; or one forward of another model."""
    made = model.spec.pipeline
    ((role, network),) = model.components.items()
    if made.generation:
        from transformers import GenerationConfig

        network.generation_config = GenerationConfig.from_dict(dict(made.generation))
    writes = made.cls == "generate"
    _check_room(model.spec, network, request)
    marks = made.arguments.get("marks", 0) * (request.images or 1)
    call = {**made.call, **inputs_of(network, request, prompt_tokens=(request.prompt_tokens or 1) + marks)}
    if made.any_request:
        _check_taken(model.spec, request, call, writes=writes)
    if writes and getattr(network.config, "is_encoder_decoder", False):
        known = (network.generation_config.decoder_start_token_id, network.generation_config.bos_token_id)
        call |= {"decoder_start_token_id": 0} if known == (None, None) else {}  # neither checkpoint nor config says it
    if writes:
        call["new_tokens"] = request.new_tokens
        call |= {"num_beams": request.beams} if request.beams and made.any_request else {}
        pipelines.check_names(more, generation_names(network), owner=model.spec.name)
    found = subject_of(network, (), {**call, **more}, device=model.device, role=role)
    return replace(found, name=model.spec.name, asked=request.given(), renamed=made.stages)


def _check_room(spec: ModelSpec, network: Any, request: Request) -> None:
    """Refuse more images than the context holds, where a limit is of the text beside one image of any size."""
    limit, images = spec.limits.get("prompt_tokens+new_tokens"), request.images or 1
    if images == 1 or limit is None or limit.max is None:
        return
    one = inputs_of(network, replace(request, batch=1, images=1), prompt_tokens=request.prompt_tokens)
    each = one["input_ids"].shape[1] - request.prompt_tokens
    if each and (most := 1 + (limit.max - request.prompt_tokens - request.new_tokens) // each) < images:
        raise ValueError(f"{images} images of {each} tokens are outside the reach of {spec.name}, which takes {most}")


def _check_taken(spec: ModelSpec, request: Request, call: Mapping[str, Any], *, writes: bool) -> None:
    """Refuse a field of a request that no input of a model follows."""
    fields = {"batch", "prompt_tokens", *(("new_tokens", "beams") if writes else ())}
    fields |= {"height", "width", "frames"} if any(name.startswith("pixel_values") for name in call) else set()
    fields |= {"images"} if writes and {"pixel_values", "input_ids"} <= call.keys() else set()
    fields |= {"audio_s"} if {"input_features", "input_values"} & set(call) else set()
    for name in request.given():
        if name not in fields:
            raise ValueError(f"{spec.name} takes no {name!r}; it takes {', '.join(sorted(fields))}")


def _own(model: Model, request: Request, more: Mapping[str, Any]) -> Subject:
    """A model that no library generates with, run by a pipeline of this package."""
    pipe, spec = own_pipeline(model), model.spec
    call = {**spec.pipeline.call, **request.given(), **more}
    pipelines.check_arguments(pipe.__call__, call, owner=spec.name)
    makes = "video" if request.frames else "image"
    return Subject(spec.name, model.components, lambda: pipe(**call), request.given(), spec.pipeline.stages, makes)


def own_pipeline(model: Model, **more: Any) -> Any:
    """The pipeline of this package around a model's networks; what its class does not take of the file is a note."""
    made = model.spec.pipeline
    cls = class_of("mmchar.generation.own", made.cls)
    takes = inspect.signature(cls).parameters
    arguments = {name: value for name, value in {**made.arguments, **more}.items() if name in takes}
    return cls(model.components, Inputs("cpu" if model.device == "meta" else model.device, model.dtype), **arguments)


_SUBJECTS = {"transformers": _written, "mmchar": _own}


def pipeline_of(model: Model, request: Request) -> Any:
    """The pipeline of a model's spec, around its networks."""
    made = model.spec.pipeline
    cls = class_of(made.library, made.cls)
    tokens = dict(made.tokens)
    if request.prompt_tokens and not set(_CALLED["prompt_tokens"]) & set(inspect.signature(cls.__call__).parameters):
        tokens.setdefault("*", {"most": request.prompt_tokens})  # it pads a prompt to what its tokenizers say
    schedulers = {  # and guiders
        role: class_of("diffusers", part["class"]).from_config(dict(part.get("config", {})))
        for role, part in made.schedulers.items()
    }
    arguments = {**schedulers, **pipelines.loaded(made.files), **made.arguments}
    pipe = pipelines.build(cls, model.components, arguments=arguments, tokens=tokens)
    if made.any_request:
        _fit_tokenizers(pipe, model.spec.name, tokens.get("*", {}).get("most"))
    for field, place in made.request.items():
        if "." in place:  # a guider's scale is its own
            owner, _, name = place.partition(".")
            setattr(getattr(pipe, owner), name, getattr(request, field))
    for method in made.methods:  # e.g. vae.enable_tiling
        owner, _, name = method.rpartition(".")
        getattr(getattr(pipe, owner) if owner else pipe, name)()
    return pipe


def _fit_tokenizers(pipe: Any, name: str, most: int | None) -> None:
    """Let tokenizers pad a prompt to the length asked for, as no argument of the call says it, if they can."""
    found = [part for role, part in pipe.components.items() if "tokenizer" in role and part is not None]
    longest = max((part.model_max_length for part in found), default=most)
    if most is None or longest is None:
        return
    if most > longest:
        raise ValueError(f"prompt_tokens={most} is outside the reach of {name}; its text encoders take up to {longest}")
    for part in found:
        part.model_max_length = min(most, part.model_max_length)


def call_of(pipe: Any, request: Request, spec: ModelSpec, more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call that a request stands for.

    Raises ValueError for a field that the call has no argument for, unless it says what the networks make anyway.
    """
    takes = inspect.signature(pipe.__call__).parameters
    if (request.height is None) != (request.width is None):  # some pipelines take both from elsewhere then
        height, width = sides(pipe, takes, request)
        request = replace(request, height=height, width=width)
    renamed = spec.pipeline.request
    more = {name: picture(value) if is_picture(name) else value for name, value in more.items()}
    found = {**_batch(takes, request), **spec.pipeline.call}
    made = wanted(pipe, request, {**found, **more})
    for field, value in request.given().items():
        named = renamed.get(field, field)
        if isinstance(named, list):  # one argument for each of several denoisers
            found |= dict(zip(named, value if isinstance(value, tuple) else (value,) * len(named), strict=True))
            continue
        if isinstance(value, tuple):
            raise ValueError(f"{spec.name} takes one number for {field!r}, not {len(value)}")
        names = [name for name in (named, *_CALLED.get(field, ())) if name in takes]
        if names:
            found[names[0]] = value
        elif field == "guidance" and hasattr(getattr(pipe, "guider", None), "guidance_scale"):
            pipe.guider.guidance_scale = value  # a guider's scale is its own
        elif not (field in _OPTIONAL or field in made.follows or "." in named or value == spec.request.get(field)):
            always = f": it always makes {spec.request[field]}" if field in spec.request else ""
            raise ValueError(f"{spec.name} takes no {field!r}{always}")
    return {**made.arguments, **found, **more}


def _batch(takes: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Prompts or labels, as many as the batch has; some pipelines take one text and no list."""
    many = request.batch or 1
    prompt = standins.prompt(request.prompt_tokens)
    made = {"prompt": prompt if many == 1 else [prompt] * many, "class_labels": [1] * many}
    found = {name: value for name, value in made.items() if name in takes}
    return found or ({"batch_size": many} if "batch_size" in takes else {})
