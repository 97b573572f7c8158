"""What one generation does: a family of models is one short function from a request to its stages.

Stages carry sizes only, so planning needs no torch; :mod:`mmchar.calls` turns them into calls.
"""

from collections.abc import Callable, Iterator
from typing import Any

from mmchar import diffusion_stages, language_stages
from mmchar.models import ModelSpec
from mmchar.request import Request
from mmchar.stage import Stage, config, encode_texts, guided_batch, steps_of


def stages(spec: ModelSpec, request: Request | None = None) -> tuple[Any, ...]:
    """The stages of one generation, in order.

    Raises
    ------
    ValueError
        A request field that the model does not have or that is outside its limits; an unknown family.
    """
    full = spec.resolve(request)
    if spec.pipeline:
        from mmchar.generation.programs import plan as seen

        return seen(spec, full)
    if spec.family not in FAMILIES:
        raise ValueError(f"{spec.name}: unknown family {spec.family!r}; choose one of {', '.join(FAMILIES)}")
    try:
        plan = tuple(stage for stage in FAMILIES[spec.family](spec, full) if stage.repeats > 0)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{spec.name}: its options and configs do not make a {spec.family}: {what}") from error
    for stage in plan:
        if stage.component not in list(spec.components):
            have = ", ".join(spec.components)
            raise ValueError(f"{spec.name}: stage {stage.name!r} needs a component {stage.component!r}; it has {have}")
    return plan


def latent_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, denoise a latent that is smaller than the image, decode it once."""
    batch = guided_batch(request)
    yield from encode_texts(spec, request)
    scale = 2 ** (len(config(spec, "vae")["block_out_channels"]) - 1)
    latent = {"height": request.height // scale, "width": request.width // scale}
    joined = spec.options.get("context_joined", "tokens")  # texts follow each other, or lie side by side (SDXL)
    context = request.prompt_tokens * (len(spec.options["context"]) if joined == "tokens" else 1)
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", "unet", "denoise_image", steps, {"batch": batch, **latent, "context": context})
    yield Stage("decode_image", "vae", "decode_latent", 1, {"batch": request.batch, **latent})


def cascaded_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, denoise a small image, then denoise it again at growing sizes (the last may be a latent)."""
    batch = guided_batch(request)
    yield from encode_texts(spec, request)
    denoisers = spec.options["denoisers"]
    for denoiser, steps in zip(denoisers, steps_of(request, len(denoisers)), strict=True):
        size = {"height": request.height // denoiser["divisor"], "width": request.width // denoiser["divisor"]}
        sizes = {"batch": batch, **size, "context": request.prompt_tokens}
        yield Stage(denoiser["stage"], denoiser["component"], "denoise_image", steps, sizes)
    if decoder := spec.options.get("decoder"):  # the last denoiser made a latent
        yield Stage("decode_image", decoder, "decode_latent", 1, {"batch": request.batch, **size})


def autoregressive(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Prefill the prompt, which gives the first token, then decode the others one by one."""
    yield Stage("prefill", "lm", "prefill", 1, {"batch": request.batch, "tokens": request.prompt_tokens})
    sizes = {"batch": request.batch, "cache": request.prompt_tokens}
    yield Stage("decode", "lm", "decode_one_token", request.new_tokens - 1, sizes, grows=1)


def encoder_decoder(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt once, decode image tokens one by one, turn them into pixels."""
    batch, text = guided_batch(request), request.prompt_tokens
    patch = config(spec, "detokenizer")["patch_size"]
    grid = {"height": request.height // patch, "width": request.width // patch}
    tokens = grid["height"] * grid["width"]
    yield Stage("encode_text", "seq2seq", "encode_text_seq2seq", 1, {"batch": batch, "tokens": text})
    yield Stage("prefill", "seq2seq", "prefill_seq2seq", 1, {"batch": batch, "context": text})
    sizes = {"batch": batch, "context": text, "cache": 1}
    yield Stage("decode", "seq2seq", "decode_one_token_seq2seq", tokens - 1, sizes, grows=1)
    yield Stage("decode_image", "detokenizer", "decode_patches", 1, {"batch": request.batch, **grid})


def parallel_decode(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Fill all image tokens at once over a few steps, at a low and then at a high resolution; turn them into pixels."""
    batch, text = guided_batch(request), request.prompt_tokens
    base, superres = steps_of(request, 2)
    low = config(spec, "base")["sample_size"] ** 2
    side = config(spec, "superres")["sample_size"]
    yield from encode_texts(spec, request)
    sizes = {"batch": batch, "tokens": low, "context": text}
    yield Stage("parallel_decode_base", "base", "parallel_decode_image", base, sizes)
    sizes = {"batch": batch, "tokens": low, "context": 0}
    yield Stage("encode_lowres", "lowres_encoder", "parallel_decode_image", 1, sizes)
    sizes = {"batch": batch, "tokens": side * side, "context": low + text}
    yield Stage("parallel_decode_superres", "superres", "parallel_decode_image", superres, sizes)
    yield Stage(
        "decode_image", "detokenizer", "decode_codes", 1, {"batch": request.batch, "height": side, "width": side}
    )


def video_cascade(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Denoise an image embedding, key frames, the frames between them, then every frame at two larger sizes."""
    one, batch, text = request.batch, guided_batch(request), request.prompt_tokens
    prior, keyframes, between, small, large = steps_of(request, 5)
    skip, low, mid = (spec.options[key] for key in ("frame_skip", "keyframe_divisor", "superres_divisor"))
    keys = (request.frames - 1) // skip + 1

    def clip(count: int, frames: int, divisor: int) -> dict[str, int]:
        size = {"height": request.height // divisor, "width": request.width // divisor}
        return {"batch": count, "frames": frames, **size, "context": text}

    yield from encode_texts(spec, request)
    yield Stage("denoise_prior", "prior", "denoise_embedding", prior, {"batch": batch, "context": text})
    yield Stage("denoise_keyframes", "decoder_t", "denoise_video", keyframes, clip(batch, keys, low))
    yield Stage("denoise_frames", "interp", "denoise_video", between, clip(one, request.frames, low))
    yield Stage("denoise_256", "sr_l", "denoise_video", small, clip(one, request.frames, mid))
    frame = {"batch": one, "height": request.height, "width": request.width}
    yield Stage("denoise_768", "sr_h", "denoise_unconditional", large * request.frames, frame)


def video_transformer(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Fill all video tokens at once over a few steps, then decode them with spatial and temporal attention."""
    video = config(spec, "cvivit")
    frames = 1 + (request.frames - 1) // video["temporal_patch"]
    grid = {"height": request.height // video["patch"], "width": request.width // video["patch"]}
    tokens = frames * grid["height"] * grid["width"]
    yield from encode_texts(spec, request)
    sizes = {"batch": guided_batch(request), "tokens": tokens, "context": request.prompt_tokens}
    (steps,) = steps_of(request, 1)
    yield Stage("parallel_decode", "maskgit", "parallel_decode_video", steps, sizes)
    yield Stage("decode_video", "cvivit", "decode_video_codes", 1, {"batch": request.batch, "frames": frames, **grid})


FAMILIES: dict[str, Callable[[ModelSpec, Request], Iterator[Stage]]] = {
    family.__name__: family
    for family in (
        latent_diffusion,
        cascaded_diffusion,
        autoregressive,
        encoder_decoder,
        parallel_decode,
        video_cascade,
        video_transformer,
        *diffusion_stages.FAMILIES,
        *language_stages.FAMILIES,
    )
}
