"""How video diffusion models are called, by the rules of :mod:`mmchar.calls`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import nn

from mmchar.diffusion_calls import denoise_flux, flow_time
from mmchar.inputs import Inputs, Work

IMAGE_TOKENS = 729  # what HunyuanVideo 1.5 holds free for an image (diffusers' pipeline: vision_num_semantic_tokens)


def denoise_wan(
    module: nn.Module,
    make: Inputs,
    *,
    batch: int,
    frames: int,
    height: int,
    width: int,
    context: int,
    time_per_token: int = 0,
) -> Work:
    """Wan on a latent video; Wan 2.2's 5B takes a time per token instead of one per sample."""
    config = module.config
    tokens = frames * (height // config.patch_size[1]) * (width // config.patch_size[2])
    t = flow_time(make, batch * tokens).view(batch, tokens) if time_per_token else flow_time(make, batch)
    latent = make.normal(batch, config.in_channels, frames, height, width)
    text = make.normal(batch, context, config.text_dim)
    return lambda: module(latent, timestep=t, encoder_hidden_states=text, return_dict=False)


def denoise_latte(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """Latte on a latent video ``(batch, channels, frames, height, width)``."""
    latent = make.normal(batch, module.config.in_channels, frames, height, width)
    text, t = make.normal(batch, context, module.config.caption_channels), make.timestep(batch)
    return lambda: module(latent, timestep=t, encoder_hidden_states=text, return_dict=False)


def denoise_cogvideox(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """CogVideoX on ``(batch, frames, channels, height, width)``, with rotary positions where it has them."""
    config = module.config
    tokens = frames // (config.patch_size_t or 1) * (height // config.patch_size) * (width // config.patch_size)
    latent = make.normal(batch, frames, config.in_channels, height, width)
    text, t = make.normal(batch, context, config.text_embed_dim), flow_time(make, batch)
    rotary = None
    if config.use_rotary_positional_embeddings:
        rotary = tuple(make.normal(tokens, config.attention_head_dim).float() for _ in range(2))
    return lambda: module(latent, encoder_hidden_states=text, timestep=t, image_rotary_emb=rotary, return_dict=False)


def denoise_hunyuan_video(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """HunyuanVideo on a latent video, with a mask of the prompt's padding (which hides nothing here)."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, frames, height, width),
        "timestep": make.timestep(batch),
        "encoder_hidden_states": make.normal(batch, context, config.text_embed_dim),
        "encoder_attention_mask": make.ones(batch, context),
        "pooled_projections": make.normal(batch, config.pooled_projection_dim),
        "guidance": flow_time(make, batch) if config.guidance_embeds else None,
    }
    return lambda: module(**inputs, return_dict=False)


def denoise_ltx(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """LTX-Video on ``(batch, tokens, channels)``, one token per place of the latent."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, frames * height * width, config.in_channels),
        "encoder_hidden_states": make.normal(batch, context, config.caption_channels),
        "timestep": flow_time(make, batch),
        "encoder_attention_mask": make.ones(batch, context).to(make.dtype),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }
    return lambda: module(**inputs, return_dict=False)


def denoise_hunyuan_video_15(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int, glyphs: int
) -> Work:
    """HunyuanVideo 1.5 on a latent video, ``context`` tokens of the prompt, ``glyphs`` of writing, and no image."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, frames, height, width),
        "timestep": flow_time(make, batch),
        "encoder_hidden_states": make.normal(batch, context, config.text_embed_dim),
        "encoder_attention_mask": make.ones(batch, context),
        "encoder_hidden_states_2": make.normal(batch, glyphs, config.text_embed_2_dim),
        "encoder_attention_mask_2": make.ones(batch, glyphs),
        "image_embeds": torch.zeros(batch, IMAGE_TOKENS, config.image_embed_dim, dtype=make.dtype, device=make.device),
    }
    return lambda: module(**inputs, return_dict=False)


def denoise_mochi(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """Mochi on a latent video, with a mask of the prompt's padding (which hides nothing here)."""
    latent = make.normal(batch, module.config.in_channels, frames, height, width)
    text, mask = make.normal(batch, context, module.config.text_embed_dim), make.ones(batch, context)
    t = flow_time(make, batch)

    def work() -> object:
        with _no_autocast(make):
            return module(latent, text, t, encoder_attention_mask=mask, return_dict=False)

    return work


@contextmanager
def _no_autocast(make: Inputs) -> Iterator[None]:
    """On meta, where ``torch.autocast`` is refused, leave it out; elsewhere change nothing."""
    with patch.object(torch, "autocast", lambda *_: nullcontext()) if make.device.type == "meta" else nullcontext():
        yield


def denoise_flux_video(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """FLUX's transformer on a latent video, as Open-Sora 2 uses it: 2x2 places of each latent frame are a token."""
    return denoise_flux(module, make, batch=batch, height=2 * frames * (height // 2), width=width, context=context)


def encode_latent(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """An image autoencoder's encoder, to a latent of ``height x width``."""
    scale = 2 ** (len(module.config.block_out_channels) - 1)
    image = make.normal(batch, module.config.in_channels, height * scale, width * scale)
    return lambda: module.encode(image)


def decode_latent_frames(module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int) -> Work:
    """A decoder of frames as images that also convolves over time, on ``(batch * frames, channels, height, width)``."""
    latent = make.normal(batch * frames, module.config.latent_channels, height, width)
    return lambda: module.decode(latent, num_frames=frames)


def denoise_image_video(module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int) -> Work:
    """Stable Video Diffusion on ``(batch, frames, channels, height, width)`` and the embedding of an image."""
    sample = make.normal(batch, frames, module.config.in_channels, height, width)
    image, t = make.normal(batch, 1, module.config.cross_attention_dim), make.timestep(batch)
    ids = make.normal(
        batch, module.config.projection_class_embeddings_input_dim // module.config.addition_time_embed_dim
    )
    return lambda: module(sample, t, encoder_hidden_states=image, added_time_ids=ids, return_dict=False)
