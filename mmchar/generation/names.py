"""What a stage is called: by the role of its network, the method, and what comes out.

A role that no rule knows keeps its own name.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmchar.generation import parts
from mmchar.generation.recording import Seen
from mmchar.generation.structure import tensors

# The first rule whose role and method fit gives the name; \g<n> takes a role's number along.
_RULES = tuple(
    (re.compile(role), re.compile(method), name)
    for role, method, name in (
        (r"text_encoder(.*)", r"forward|get_text_features|encoder\.forward", r"encode_text\1"),
        (r"(image|vision)_encoder(.*)", r"forward|get_image_features", r"encode_image\2"),
        (r"(\w*)vae|vqvae|vqgan|movq|image_vqvae", r"encode|encoder\.forward", "encode_latent"),
        (r"audio_vae", r"decode", "decode_audio"),
        (r"(\w*)vae|vqvae|vqgan|movq|detokenizer|vq_decoder", r"decode\w*|forward|decoder\.forward", "decode_{made}"),
        (r"vocoder", r"forward", "vocode"),
        (r"(?:unet|transformer|denoiser)(.*)", r"forward", r"denoise\1"),
        (r"prior(.*)", r"forward", r"denoise_prior\1"),
        (r"controlnet(.*)", r"forward", r"control\1"),
        (r"safety_checker", r".*", "check_safety"),
    )
)

_METHODS = {
    **dict.fromkeys(("get_image_features", "get_image_tokens", "encode"), "encode_image"),
    **dict.fromkeys(("get_audio_features", "get_speech_features"), "encode_audio"),
    **dict.fromkeys(("decode", "decode_image_tokens"), "decode_{made}"),
    "get_text_features": "encode_text",
}
_LANGUAGE_MODELS = ("lm", "model", "vlm", "seq2seq", "language_model")


def names(seen: Iterable[Seen], *, renamed: Mapping[str, str] | None = None, makes: str | None = None) -> list[str]:
    """A name for each of the calls that were seen, all different, in their order.

    ``renamed`` gives other names, by role (``transformer``) or role and method (``vae.decode``). What is generated,
    image, video or audio, is told from what decoders return where ``makes`` does not say it.
    """
    found: list[str] = []
    used: Counter[str] = Counter()
    for one in seen:
        name = _name(one, renamed or {}, makes)
        used[name] += 1
        found.append(name if used[name] == 1 else f"{name}_variant_{used[name]}")
    return found


def _name(one: Seen, renamed: Mapping[str, str], makes: str | None) -> str:
    said = renamed.get(f"{one.role}.{one.method}") or renamed.get(one.role)
    if said:
        return said
    for role, method, name in _RULES:
        fits = role.fullmatch(one.role)
        if fits and method.fullmatch(one.method):
            return fits.expand(name).format(made=makes or _made(one.output))
    part = parts.name_of(one.method)
    if part:
        return part
    last = one.method.rpartition(".")[2]
    if last in _METHODS:
        return _METHODS[last].format(made=makes or _made(one.output))
    if one.method.endswith("encoder.forward"):
        given = tensors((one.call.args, dict(one.call.kwargs)))
        dims = max((tensor.dim() for tensor in given if tensor.is_floating_point()), default=2)
        return {3: "encode_audio", 4: "encode_image"}.get(dims, "encode_text")
    if one.method.endswith("embed_tokens.forward"):
        return "embed_text"
    cache = one.call.cache
    if one.method.endswith("forward") and (
        cache is not None or one.call.kwargs.get("use_cache") or one.role == "language_model"
    ):
        remembers = any(tensor.dim() > 1 and tensor.numel() for tensor in tensors(cache))
        step = "decode" if remembers else "prefill"
        return step if one.role in _LANGUAGE_MODELS else f"{step}_{one.role}"
    last = one.method.removesuffix(".forward").replace(".", "_")
    return one.role if last == "forward" else f"{one.role}_{last}"


def _made(output: Any) -> str:
    """What a decoder makes: a video of five dimensions (unless of a single frame), an image of four, sound of three."""
    shape = max((tensor.shape for tensor in tensors(output)), key=len, default=(0,) * 4)
    return {5: "video" if shape[2:3] != (1,) else "image", 4: "image"}.get(len(shape), "audio")
