"""What a folder's configurations change of the zoo model that it generates like: options, defaults and limits."""

from collections.abc import Mapping
from typing import Any

from mmchar.models import Component, ModelSpec


def options_of(zoo: ModelSpec, parts: Mapping[str, Component]) -> dict[str, Any]:
    """The zoo model's options without the text encoders that are not there."""
    options = dict(zoo.options)
    if "texts" in options:
        options["texts"] = {role: call for role, call in options["texts"].items() if role in parts}
    if "context" in options:
        options["context"] = [role for role in options["context"] if role in parts]
    if "text_tokens" in options:
        fixed = {role: many for role, many in options["text_tokens"].items() if role in parts}
        options["text_tokens"] = {
            role: min(many, _number(parts[role].config, "max_position_embeddings", many))
            for role, many in fixed.items()
        }
    return options


def language_sizes(zoo: ModelSpec, parts: Mapping[str, Component]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompt and answer fit the positions, the sliding window, and what an image leaves of them."""
    ((role, part),) = parts.items()
    text = part.config.get("text_config", part.config)
    most = _field(part, text, role, "max_position_embeddings", int)
    if text.get("use_sliding_window", True):  # a cache that stops growing is not counted
        most = min(most, _number(text, "sliding_window", most))
    if role == "vlm":
        vision = _field(part, part.config, role, "vision_config", Mapping)
        side, patch = (_field(part, vision, role, name, int) for name in ("image_size", "patch_size"))
        most -= (side // patch) ** 2
    fields = ("prompt_tokens", "new_tokens")
    request = {**zoo.request, **{key: min(zoo.request[key], most // 2) for key in fields}}
    return request, {**zoo.limits, "+".join(fields): {"max": most}}


def image_sizes(
    zoo: ModelSpec, size: tuple[str, ...], parts: Mapping[str, Component], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Request, limits and options with the sizes that the autoencoder, the denoiser and the text encoders give."""
    request, limits, options = dict(zoo.request), dict(zoo.limits), dict(options)
    old = scale = options.get("latent_scale", 8)  # every latent-diffusion template has an autoencoder of 8
    if parts["vae"].cls == "AutoencoderKL":
        scale = 2 ** (len(_field(parts["vae"], parts["vae"].config, "vae", "block_out_channels", list | tuple)) - 1)
        options |= {"latent_scale": scale} if "latent_scale" in options else {}
    role = "unet" if "unet" in parts else "transformer"
    denoiser = parts[role]
    for axis, field in zip(("height", "width", "frames"), size, strict=False):
        side = _side(denoiser, role, field, width=axis == "width")
        request[axis] = side if axis == "frames" else side * scale
    for axis in ("height", "width"):
        limits[axis] = _side_limit(limits[axis], request[axis], scale=scale, old=old, config=denoiser.config)
    text = _text_limit(zoo, parts)
    if text:
        request["prompt_tokens"] = text
        limits["prompt_tokens"] = dict.fromkeys(zoo.limits["prompt_tokens"], text)
    return request, limits, options


def _side(part: Component, role: str, field: str, *, width: bool) -> int:
    """Height or width of a denoiser's sample, in latents; some configurations hold one number for both."""
    value = part.config.get(field)
    if isinstance(value, list | tuple) and [type(side) for side in value] == [int, int]:
        return value[width]
    return _field(part, part.config, role, field, int)


def _side_limit(
    limit: Mapping[str, int], side: int, *, scale: int, old: int, config: Mapping[str, Any]
) -> dict[str, int]:
    """A limit in pixels for another autoencoder, a denoiser of one size, or a table of positions."""
    if limit.get("min") and limit["min"] == limit.get("max"):
        return {"min": side, "max": side}
    new = dict(limit)
    if "multiple_of" in limit:
        new["multiple_of"] = limit["multiple_of"] // old * scale
    if positions := _number(config, "pos_embed_max_size", 0):
        new["max"] = positions * _number(config, "patch_size", 2) * scale
    return new


def _text_limit(zoo: ModelSpec, parts: Mapping[str, Component]) -> int:
    """Tokens that a denoiser's positions or the text encoders of latent diffusion hold; 0 where nothing says so."""
    if "transformer" in parts:
        return _number(parts["transformer"].config, "max_text_seq_length", 0)
    texts = [parts[role] for role in zoo.options.get("context", ()) if role in parts]
    lengths = [_number(part.config, "max_position_embeddings", 0) for part in texts]
    return min((many for many in lengths if many), default=0)


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    """A field that may be absent; what is no whole number is left to its class to refuse."""
    value = config.get(name)
    return value if isinstance(value, int) and value > 0 else default


def _field(part: Component, config: Any, role: str, name: str, kind: Any) -> Any:
    """A field without which a request has no sizes."""
    value = config.get(name) if isinstance(config, Mapping) else None
    if not isinstance(value, kind) or (kind is int and value < 1):
        what = {int: "a whole number of 1 or more", Mapping: "an object"}.get(kind, "a list")
        raise ValueError(f"{part.source}: component {role!r}: the field {name!r} is {value!r}; {part.cls} needs {what}")
    return value
