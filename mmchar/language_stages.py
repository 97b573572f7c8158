"""What one generation of a language model that sees, hears or draws does: families of :mod:`mmchar.stages`."""

from collections.abc import Callable, Iterator, Mapping

from mmchar.language_forms import adapted_frames, image_grid, next_tiles, patches
from mmchar.models import ModelSpec
from mmchar.request import Request
from mmchar.stage import Stage, config, guided_batch, steps_of


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


def linear_adaptor(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """The same with an encoder, an adaptor and a language model of their own; some give one token for an image."""
    images = {"images": request.batch}
    whole = spec.options["image_tokens"] == "patches"
    tokens = patches(config(spec, "image_encoder")) if whole else 1
    yield Stage("encode_image", "image_encoder", "encode_pixels", 1, images)
    yield Stage("project_image", "adaptor", "project_features", 1, {**images, "patches": tokens})
    yield from answer(request, "lm", tokens + request.prompt_tokens)


def any_to_any(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Answer with text that ends in signal tokens; they stand for the prompt of the diffusion model they drive."""
    yield from linear_adaptor(spec, request)
    signal, queries = spec.options["signal_tokens"], config(spec, "output_projector")["queries"]
    yield Stage("project_output", "output_projector", "project_signal", 1, {"batch": request.batch, "tokens": signal})
    scale = 2 ** (len(config(spec, "vae")["block_out_channels"]) - 1)
    frames = {"frames": request.frames} if request.frames else {}
    latent = {"height": request.height // scale, "width": request.width // scale}
    sizes = {"batch": guided_batch(request), **frames, **latent, "context": queries}
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", "unet", "denoise_video" if frames else "denoise_image", steps, sizes)
    decoded = {"batch": request.batch, **latent}  # a video frame by frame
    yield Stage("decode_video" if frames else "decode_image", "vae", "decode_latent", request.frames or 1, decoded)


def vision_cross_attention(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode and project the image; every few layers the language model attends to it beside its own text."""
    vision, adaptor, tokens = IMAGE_TOKENS[spec.components["vlm"].cls](spec, request)
    yield Stage("encode_image", "vlm", spec.options["encode_image"], 1, vision)
    yield Stage("project_image", "vlm", spec.options["project_image"], 1, adaptor)
    sizes = {"batch": request.batch, "context": tokens}
    yield Stage("prefill", "vlm", spec.options["prefill"], 1, {**sizes, "tokens": request.prompt_tokens})
    sizes["cache"] = request.prompt_tokens
    yield Stage("decode", "vlm", spec.options["decode"], request.new_tokens - 1, sizes, grows=1)


def early_fusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the image into tokens of the same vocabulary as the text, prefill both, decode an answer."""
    rows, columns = image_grid(config(spec, "lm"))
    prompt = rows * columns + spec.options["image_marks"] + request.prompt_tokens
    yield Stage("encode_image", "lm", "encode_image_codes", 1, {"images": request.batch})
    yield Stage("prefill", "lm", "prefill", 1, {"batch": request.batch, "tokens": prompt})
    sizes = {"batch": request.batch, "cache": prompt}
    yield Stage("decode", "lm", "decode_one_token", request.new_tokens - 1, sizes, grows=1)


def autoregressive_image(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Prefill the prompt, decode image tokens one by one, turn them into pixels.

    Guidance either doubles the batch, or decodes a second time per step after a prompt of its own.
    """
    options = spec.options
    rows, columns = image_grid(config(spec, "lm"), request.height, request.width)
    tokens = rows * (columns + options["row_marks"])
    batched = options["guidance"] == "batch"
    branches = {"": request.prompt_tokens}
    if request.guided and not batched:
        branches["_unconditional"] = options["unconditional_tokens"]
    batch = guided_batch(request) if batched else request.batch
    for branch, prompt in branches.items():
        yield Stage("prefill" + branch, "lm", options["prefill"], 1, {"batch": batch, "tokens": prompt})
    for branch, prompt in branches.items():
        sizes = {"batch": batch, "cache": prompt}
        yield Stage("decode" + branch, "lm", options["decode"], tokens - 1, sizes, grows=1)
    grid = {"batch": request.batch, "height": rows, "width": columns}
    yield Stage("decode_image", options["image_decoder"], options["decode_image"], 1, grid)


def speech_translation(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode speech or text, decode text with beam search, and speak it: units all at once, then sound.

    After each step the KV cache follows the beams that were chosen.
    """
    options, whole, one = spec.options, config(spec, "model"), {"batch": request.batch}
    if options["input"] == "speech":
        frames = request.audio_s * options["frames_per_second"]
        context = adapted_frames(whole, frames)
        yield Stage("encode_speech", "model", "encode_speech", 1, {**one, "frames": frames})
    else:
        context = request.prompt_tokens
        yield Stage("encode_text", "model", "encode_text_seamless", 1, {**one, "tokens": context})
    beams = {**one, "beams": request.beams, "context": context}
    yield Stage("prefill", "model", "prefill_beams", 1, beams)
    steps, sizes = request.new_tokens - 1, {**beams, "cache": 1}
    yield Stage("decode", "model", "decode_beams", steps, sizes, grows=1)
    moved = {"rows": request.batch * request.beams, "context": context, "cache": 2}
    yield Stage("reorder_cache", "model", "reorder_beams", steps, moved, grows=1)
    if options["output"] == "speech":
        words = request.new_tokens
        chars = words * options["chars_per_token"]
        units = {**one, "units": chars * options["units_per_char"]}
        yield Stage("reread_text", "model", "reread_text", 1, {**one, "context": context, "tokens": words})
        yield Stage("encode_units", "model", "encode_units", 1, {**one, "subwords": words})
        yield Stage("decode_units", "model", "decode_units", 1, {**units, "subwords": words, "chars": chars})
        yield Stage("vocode", "model", "vocode_units", 1, units)


def spoken_answer(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Hear a question, write the answer token by token, speak it code by code, turn the codes into sound.

    The sound is denoised along an ODE by a fourth-order Runge-Kutta method: four evaluations between two times.
    """
    options, batch = spec.options, request.batch
    frames = request.audio_s * options["frames_per_second"]
    prompt = frames // options["frames_per_token"] + request.prompt_tokens
    codes = request.new_tokens * options["codes_per_token"]
    yield Stage("encode_audio", "omni", "encode_audio", 1, {"batch": batch, "frames": frames})
    for name, call, many in (("", "thinker", request.new_tokens), ("_speech", "talker", codes)):
        yield Stage("prefill" + name, "omni", "prefill_" + call, 1, {"batch": batch, "tokens": prompt})
        yield Stage("decode" + name, "omni", "decode_" + call, many - 1, {"batch": batch, "cache": prompt}, grows=1)
    (steps,) = steps_of(request, 1)
    yield Stage("denoise_sound", "omni", "denoise_sound", 4 * (steps - 1), {"batch": batch, "codes": codes})
    yield Stage("vocode", "omni", "vocode_mel", 1, {"batch": batch, "codes": codes})


def retrieval(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the history of each user, then find the nearest of all items."""
    batch = {"batch": request.batch}
    yield Stage("encode_history", "model", "encode_history", 1, {**batch, "tokens": request.prompt_tokens})
    yield Stage("retrieve", "model", "retrieve_items", 1, {**batch, "most": spec.options["most"]})


def ranking(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the history of each user once, then score all candidates against it at once."""
    history = {"batch": request.batch, "tokens": request.prompt_tokens}
    yield Stage("encode_history", "model", "encode_history", 1, history)
    candidates = {"batch": request.batch, "cache": request.prompt_tokens, "candidates": request.candidates}
    yield Stage("rank", "model", "rank_candidates", 1, candidates)


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


def _qwen(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    vision = config(spec, "vlm")["vision_config"]
    rows, columns = request.height // vision["patch_size"], request.width // vision["patch_size"]
    grid = {"images": request.batch, "height": rows, "width": columns}
    return grid, {}, rows * columns // vision["spatial_merge_size"] ** 2


def _mllama(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    vision = config(spec, "vlm")["vision_config"]
    tokens = vision["max_num_tiles"] * (patches(vision) + 1)
    return {"images": request.batch}, {"images": request.batch, "patches": tokens}, tokens


def _idefics(spec: ModelSpec, request: Request) -> tuple[Mapping[str, int], Mapping[str, int], int]:
    whole = config(spec, "vlm")
    images = {"images": request.batch}
    seen = patches(whole["vision_config"]) + 1
    return images, {**images, "patches": seen}, whole["perceiver_config"]["resampler_n_latents"]


# (sizes of the vision tower, sizes of the adaptor, image tokens that the language model sees) of a class
IMAGE_TOKENS: dict[str, Callable[[ModelSpec, Request], tuple[Mapping[str, int], Mapping[str, int], int]]] = {
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Blip2ForConditionalGeneration": _blip2,
    "Qwen2_5_VLForConditionalGeneration": _qwen,
    "Qwen3VLForConditionalGeneration": _qwen,
    "MllamaForConditionalGeneration": _mllama,
    "IdeficsForVisionText2Text": _idefics,
}

FAMILIES = (
    zero_shot,
    vision_language,
    linear_adaptor,
    any_to_any,
    vision_cross_attention,
    early_fusion,
    autoregressive_image,
    speech_translation,
    spoken_answer,
    retrieval,
    ranking,
)
