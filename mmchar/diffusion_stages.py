"""Families of diffusion models that denoise with a transformer, in pixels, or over a masked token image."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from math import prod

from mmchar.models import ModelSpec
from mmchar.request import Request
from mmchar.stage import Stage, config, encode_texts, guided_batch, steps_of


def diffusion_transformer(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, denoise a latent image or video with a transformer, decode it once.

    Options: ``denoise`` and ``decode`` name their calls; ``latent_scale`` is the side of an image over that of its
    latent, ``frame_scale`` the same of frames, ``frame_multiple`` what the denoiser needs of them; ``text_tokens``
    fixes the length of an encoder's prompt, ``template_tokens`` adds to it; ``context_tokens`` adds to the prompt in
    the denoiser, and ``denoise_sizes`` are further sizes that its call takes; ``guidance`` says that it runs as two
    forwards one after the other, ``guided_batch`` that it makes the batch more than twice as large; ``experts`` names
    the stage and the component of each part of the steps; ``decode_tiles`` holds size and stride of the decoder's
    tiles along an axis.
    """
    options = spec.options
    rounds = 2 if request.guided and options.get("guidance") == "sequential" else 1
    batch = request.batch if rounds == 2 or not request.guided else request.batch * options.get("guided_batch", 2)
    yield from encode_prompts(spec, request, batch=batch, rounds=rounds)
    scale = options["latent_scale"]
    latent = {"height": request.height // scale, "width": request.width // scale}
    if request.frames:
        latent["frames"] = (request.frames - 1) // options["frame_scale"] + 1
    sizes = {"batch": batch, **latent}
    if request.prompt_tokens:
        sizes["context"] = request.prompt_tokens + options.get("context_tokens", 0)
    sizes.update(options.get("denoise_sizes", {}))
    if many := options.get("frame_multiple"):  # the denoiser's patches span frames, so empty ones are added
        sizes["frames"] += -sizes["frames"] % many
    yield from _denoise(spec, request, sizes, rounds)
    yield from _decode(spec, request, latent)


def _decode(spec: ModelSpec, request: Request, latent: dict[str, int]) -> Iterator[Stage]:
    """One decode of all images or frames, or one per video, in tiles where the option ``decode_tiles`` says so.

    Videos are decoded one after the other, as diffusers' ``enable_slicing`` does: together they would not fit into
    memory, and CogVideoX's decoder, which splits convolutions above 2 GB, fails on eight.
    """
    options, sizes = spec.options, {"batch": request.batch, **latent}
    call, videos = options.get("decode", "decode_latent"), 1
    name = "decode_video" if request.frames else "decode_image"
    if call == "decode_latent" and request.frames:
        sizes["batch"] *= sizes.pop("frames")
    elif request.frames:
        sizes["batch"], videos = 1, request.batch
    if "decode_tiles" not in options:
        yield Stage(name, "vae", call, videos, sizes)
        return
    axes = [Counter(tile_sizes(latent[axis], *tile)) for axis, tile in options["decode_tiles"].items()]
    for index, shape in enumerate(product(*(axis.items() for axis in axes))):
        tile = {axis: size for axis, (size, _) in zip(options["decode_tiles"], shape, strict=True)}
        many = videos * prod(times for _, times in shape)
        yield Stage(f"{name}_edge_{index}" if index else name, "vae", call, many, {**sizes, **tile})


def tile_sizes(length: int, size: int, stride: int) -> list[int]:
    """Sizes of the overlapping tiles that cover an axis: one every ``stride``, each ``size`` long or up to the end."""
    return [min(size, length - start) for start in range(0, length, stride)]


def _denoise(spec: ModelSpec, request: Request, sizes: dict[str, int], rounds: int) -> Iterator[Stage]:
    """One stage, or one per expert where the first steps and the last have a transformer of their own."""
    experts = spec.options.get("experts", {"denoise": "transformer"})
    many = len(experts)
    (total,) = steps_of(request, 1)
    for place, (name, role) in enumerate(experts.items()):
        steps = total * (place + 1) // many - total * place // many
        yield Stage(name, role, spec.options["denoise"], rounds * steps, sizes)


def pixel_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Denoise the image itself; nothing is encoded and nothing is decoded."""
    sizes = {"batch": request.batch, "height": request.height, "width": request.width}
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", "unet", "denoise_unconditional", steps, sizes)


def masked_image_transformer(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, fill all image tokens at once over a few steps, turn them into pixels."""
    yield from encode_texts(spec, request)
    scale = 2 ** (len(config(spec, "vqvae")["block_out_channels"]) - 1)
    grid = {"height": request.height // scale, "width": request.width // scale}
    sizes = {"batch": guided_batch(request), **grid, "context": request.prompt_tokens}
    (steps,) = steps_of(request, 1)
    yield Stage("parallel_decode", "transformer", "parallel_decode_grid", steps, sizes)
    yield Stage("decode_image", "vqvae", "decode_codes", 1, {"batch": request.batch, **grid})


def image_embedding_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Denoise, as unCLIP does, an image embedding, then a small image from it, then the large one from the small one.

    The last of the super-resolution steps has a network of its own.
    """
    batch, text = guided_batch(request), request.prompt_tokens
    prior, decoder, superres = steps_of(request, 3)
    factor = spec.options["superres_factor"]
    small = {"height": request.height // factor, "width": request.width // factor}
    extra = config(spec, "text_proj")["clip_extra_context_tokens"]
    large = {"batch": request.batch, "height": request.height, "width": request.width}
    yield from encode_texts(spec, request)
    yield Stage("denoise_prior", "prior", "denoise_embedding", prior, {"batch": batch, "context": text})
    yield Stage("project_text", "text_proj", "project_text", 1, {"batch": batch, "context": text})
    sizes = {"batch": batch, **small, "context": extra + text}
    yield Stage("denoise_64", "decoder", "denoise_image", decoder, sizes)
    yield Stage("denoise_256", "sr_first", "denoise_unconditional", superres - 1, large)
    yield Stage("denoise_256_last", "sr_last", "denoise_unconditional", 1, large)


def video_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, denoise the latents of all frames with a spatio-temporal U-Net, decode them as images."""
    yield from encode_texts(spec, request)
    scale = 2 ** (len(config(spec, "vae")["block_out_channels"]) - 1)
    latent = {"height": request.height // scale, "width": request.width // scale}
    sizes = {"batch": guided_batch(request), "frames": request.frames, **latent, "context": request.prompt_tokens}
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", "unet", "denoise_video", steps, sizes)
    yield Stage("decode_video", "vae", "decode_latent", 1, {"batch": request.batch * request.frames, **latent})


def image_to_video(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode an image twice, as a condition and as a latent; denoise the latents of all frames, decode them."""
    batch = guided_batch(request)
    scale = 2 ** (len(config(spec, "vae")["block_out_channels"]) - 1)
    latent = {"height": request.height // scale, "width": request.width // scale}
    (steps,) = steps_of(request, 1)
    yield Stage("encode_image", "image_encoder", "encode_pixels", 1, {"images": request.batch})
    yield Stage("encode_latent", "vae", "encode_latent", 1, {"batch": request.batch, **latent})
    yield Stage("denoise", "unet", "denoise_image_video", steps, {"batch": batch, "frames": request.frames, **latent})
    sizes = {"batch": request.batch, "frames": request.frames, **latent}
    yield Stage("decode_video", "vae", "decode_latent_frames", 1, sizes)


def audio_language_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """AudioLDM 2: two text encoders, a language model that goes on from both, then diffusion under it and the text.

    The language model's prompt is the first encoder's embedding and the second's tokens, each between two marks.
    """
    options, batch = spec.options, guided_batch(request)
    prompt, new = request.prompt_tokens + 5, options["generated_tokens"]
    yield from encode_prompts(spec, request, batch=batch, rounds=1)
    sizes = {"batch": batch, "context": request.prompt_tokens}
    yield Stage("project_text", "projection_model", "project_two_texts", 1, sizes)
    yield Stage("prefill", "language_model", "prefill_embeddings", 1, {"batch": batch, "tokens": prompt})
    decode = {"batch": batch, "cache": prompt}
    yield Stage("decode", "language_model", "decode_one_embedding", new - 1, decode, grows=1)
    sizes = {"batch": batch, **options["latent"], "generated": new, "context": request.prompt_tokens}
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", "unet", "denoise_spectrogram_by_two", steps, sizes)
    yield from _decode_audio(spec, request)


def audio_diffusion(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Encode the prompt, denoise the latent of a clip of fixed length, decode it, and vocode it if it is a spectrogram.

    Options: ``latent`` holds the latent's sizes, ``context_tokens`` what is added to the prompt in the denoiser.
    """
    options, batch = spec.options, guided_batch(request)
    yield from encode_prompts(spec, request, batch=batch, rounds=1)
    sizes = {"batch": batch, **options["latent"]}
    if "context_tokens" in options:
        sizes["context"] = request.prompt_tokens + options["context_tokens"]
    (steps,) = steps_of(request, 1)
    yield Stage("denoise", options["denoiser"], options["denoise"], steps, sizes)
    yield from _decode_audio(spec, request)


def _decode_audio(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """Decode the latent, to samples or to a spectrogram that is vocoded."""
    options = spec.options
    yield Stage("decode_audio", "vae", options["decode"], 1, {"batch": request.batch, **options["latent"]})
    if "vocoder" in spec.components:
        scale = 2 ** (len(config(spec, "vae")["block_out_channels"]) - 1)
        frames = options["latent"]["height"] * scale
        yield Stage("vocode", "vocoder", "vocode", 1, {"batch": request.batch, "frames": frames})


def encode_prompts(spec: ModelSpec, request: Request, *, batch: int, rounds: int) -> Iterator[Stage]:
    """One stage per text encoder, each with the tokens that it sees; ``rounds`` where guidance is sequential."""
    fixed, template = (spec.options.get(key, {}) for key in ("text_tokens", "template_tokens"))
    for role, call in spec.options.get("texts", {}).items():
        tokens = fixed.get(role, (request.prompt_tokens or 0) + template.get(role, 0))
        name = role.replace("text_encoder", "encode_text")
        yield Stage(name, role, call, rounds, {"batch": batch, "tokens": tokens})


FAMILIES: tuple[Callable[[ModelSpec, Request], Iterator[Stage]], ...] = (
    diffusion_transformer,
    pixel_diffusion,
    masked_image_transformer,
    image_embedding_diffusion,
    video_diffusion,
    image_to_video,
    audio_diffusion,
    audio_language_diffusion,
)
