"""Inputs of a transformers model, by the input that its class says is the main one: token ids, pixels or sound."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.generation.seen_inputs import image_token, prompt_of
from mmchar.request import Request

_INNER = ("vision_config", "encoder", "encoder_config", "audio_encoder", "backbone_config")  # configurations inside
_SIDE = 224  # pixels, where a configuration says none: the usual size of an image encoder
_RATE = 16_000  # samples of sound per second
_SECONDS = 10
_FRAMES_S = 100  # spectra per second of sound, one every 10 ms


def inputs_of(model: nn.Module, request: Request, *, prompt_tokens: int) -> dict[str, Any]:
    """What a model's forward or ``generate()`` is given, made up: sizes as asked, else as the configuration says.

    Raises ValueError for a main input that nothing is known of.
    """
    main, batch = model.main_input_name, request.batch or 1
    if main == "input_ids" or _writes_about_images(model):
        sizes = {"height": request.height, "width": request.width}
        found = prompt_of(model, batch=batch, images=request.images or 1, prompt_tokens=prompt_tokens, **sizes)
        takes, halves = inspect.signature(model.forward).parameters, getattr(model.config, "is_encoder_decoder", False)
        if halves and "decoder_input_ids" in takes and not model.can_generate():  # it does not make them itself
            found["decoder_input_ids"] = found["input_ids"].clone()
        return found
    if main in ("pixel_values", "pixel_values_videos"):
        return {main: _pixels(model, request, batch), **_text(model, batch, prompt_tokens)}
    if main == "input_features":
        return {main: _spectra(model, request, batch)}
    if main == "input_values":
        return {main: _sound(model, request, batch)}
    raise ValueError(f"{type(model).__name__} wants {main!r}; call mmchar.count(model, {main}=...) with a tensor")


def generation_names(model: nn.Module) -> list[str]:
    """What ``generate()`` may be called with: its own arguments, its settings, and what the forward takes."""
    own = [*inspect.signature(model.generate).parameters, *inspect.signature(model.forward).parameters]
    settings = [name for name in vars(model.generation_config) if not name.startswith("_")]
    return [name for name in dict.fromkeys((*own, *settings)) if name not in ("self", "args", "kwargs")]


def _writes_about_images(model: nn.Module) -> bool:
    """Whether it is asked with text in which an image has its place, though pixels are its main input (BLIP-2)."""
    takes = inspect.signature(model.forward).parameters
    return model.can_generate() and "input_ids" in takes and image_token(model.config) is not None


def _text(model: nn.Module, batch: int, tokens: int) -> dict[str, Tensor]:
    """Token ids beside an image, where a forward cannot do without."""
    asked = inspect.signature(model.forward).parameters.get("input_ids")
    needed = asked is not None and asked.default is asked.empty
    return {"input_ids": torch.ones(batch, tokens, dtype=torch.int64)} if needed else {}


def _pixels(model: nn.Module, request: Request, batch: int) -> Tensor:
    """Images ``(batch, channels, height, width)``, or videos ``(batch, frames, channels, height, width)``."""
    side = _said(model, "image_size", "input_size") or _SIDE
    sides = list(side) if isinstance(side, list | tuple) else [side, side]
    channels = _said(model, "num_channels", "in_channels", "in_chans") or 3
    frames = request.frames or _said(model, "num_frames", "frames_per_clip")
    shape = [batch, *([frames] if frames else []), channels, request.height or sides[0], request.width or sides[-1]]
    return torch.zeros(shape, dtype=_dtype(model))


def _sound(model: nn.Module, request: Request, batch: int) -> Tensor:
    """Sound ``(batch, samples)``, of a codec ``(batch, channels, samples)``; of a few spectra of a fixed length."""
    bins, frames = _said(model, "num_mel_bins"), _said(model, "max_length")
    if bins and frames:
        return torch.zeros(batch, frames, bins, dtype=_dtype(model))
    samples = _RATE * (request.audio_s or _SECONDS)
    channels = _said(model, "audio_channels") or (1 if _said(model, "codebook_size") else None)
    return torch.zeros(batch, *([channels] if channels else []), samples, dtype=_dtype(model))


def _spectra(model: nn.Module, request: Request, batch: int) -> Tensor:
    """Spectra of sound: ``(batch, mel bins, frames)`` of a fixed length, or ``(batch, frames, features)``."""
    mel, positions = _said(model, "num_mel_bins"), _said(model, "max_source_positions")
    if mel and positions and not _said(model, "input_feat_per_channel"):
        return torch.zeros(batch, mel, 2 * positions, dtype=_dtype(model))  # Whisper pads sound to 30 s; a stride of 2
    width = _said(model, "input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins") or 80
    return torch.zeros(batch, _FRAMES_S * (request.audio_s or _SECONDS), width, dtype=_dtype(model))


def _said(model: nn.Module, *names: str) -> Any:
    """The first of some fields that a configuration, or one that it holds, has a value for."""
    configs = [model.config, *(getattr(model.config, name, None) for name in _INNER)]
    return next((getattr(part, name) for name in names for part in configs if getattr(part, name, None)), None)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
