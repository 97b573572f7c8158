"""What one generation of a language model that sees, hears or draws does: families of :mod:`mmchar.stages`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmchar.language_forms import next_tiles, patches
from mmchar.models import ModelSpec
from mmchar.request import Request
from mmchar.stages import Stage, config, guided_batch


def zero_shot(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the images and one text per class, then compare each image with each class."""
    images, classes = {"images": request.batch}, {"batch": request.classes, "tokens": request.prompt_tokens}
    yield Stage("encode_image", "clip", "encode_clip_image", 1, images)
    yield Stage("encode_text", "clip", "encode_clip_text", 1, classes)
    yield Stage("score", "clip", "score_classes", 1, {**images, "classes": request.classes})


def vision_language(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the image, turn it into tokens of the language model, prefill them with the text, decode an answer."""
    vision, adaptor, tokens = IMAGE_TOKENS[spec.components["vlm"].cls](spec, request)
    yield Stage("encode_image", "vlm", spec.options["encode_image"], 1, vision)
    if adaptor:
        yield Stage("project_image", "vlm", spec.options["project_image"], 1, adaptor)
    yield from answer(request, "vlm", tokens + request.prompt_tokens)


def answer(request: Request, component: str, prompt: int) -> Iterator[Stage]:
    """Prefill a prompt of embedded image and text tokens, which gives the first new token, then decode the others."""
    yield Stage("prefill", component, "prefill_embeds", 1, {"batch": request.batch, "tokens": prompt})
    sizes = {"batch": request.batch, "cache": prompt}
    yield Stage("decode", component, "decode_one_token", request.new_tokens - 1, sizes, grows=1)


def _llava(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    tokens = patches(config(spec, "vlm")["vision_config"])
    return {"images": request.batch}, {"images": request.batch, "patches": tokens}, tokens


def _llava_next(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    tiles, tokens = next_tiles(config(spec, "vlm"), request.height, request.width)
    images = {"images": request.batch * tiles}
    return images, {**images, "patches": patches(config(spec, "vlm")["vision_config"])}, tokens


def _blip2(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    whole = config(spec, "vlm")
    context = patches(whole["vision_config"]) + 1
    return {"images": request.batch}, {"images": request.batch, "context": context}, whole["num_query_tokens"]


# (sizes of the vision tower, sizes of the adaptor, image tokens that the language model sees) of a class
IMAGE_TOKENS: dict[str, Callable[[ModelSpec, Request], tuple[Mapping[str, int], Mapping[str, int], int]]] = {
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Blip2ForConditionalGeneration": _blip2,
}

LANGUAGE_FAMILIES: dict[str, Callable[[ModelSpec, Request], Iterator[Stage]]] = {
    family.__name__: family for family in (zero_shot, vision_language)
}
