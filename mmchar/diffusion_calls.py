"""How diffusion transformers and what encodes and decodes for them are called, by the rules of :mod:`mmchar.calls`."""

import torch
from torch import Tensor, nn

from mmchar.inputs import Inputs, Work


def encode_text_lm(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A language model that encodes a prompt: its hidden states are what is wanted, one forward over all tokens."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.get_text_config().vocab_size)
    return lambda: module(input_ids=ids, use_cache=True, output_hidden_states=True)


def denoise_flux(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """FLUX and FLUX.2 on ``(batch, tokens, channels)``: a token is 2x2 of the latent, packed into its channels."""
    config, rows, columns = module.config, height // 2, width // 2
    axes = len(config.axes_dims_rope)
    inputs = {
        "hidden_states": make.normal(batch, rows * columns, config.in_channels),
        "encoder_hidden_states": make.normal(batch, context, config.joint_attention_dim),
        "timestep": flow_time(make, batch),
        "img_ids": _positions(make, rows, columns, axes=axes),
        "txt_ids": _positions(make, context, 1, axes=axes),
        "guidance": flow_time(make, batch) if getattr(config, "guidance_embeds", True) else None,
    }
    if getattr(config, "pooled_projection_dim", None):
        inputs["pooled_projections"] = make.normal(batch, config.pooled_projection_dim)
    return lambda: module(**inputs, return_dict=False)


def denoise_sd3(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """Stable Diffusion 3 on a latent, ``(batch, context, width)`` text and the pooled text of two encoders."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, height, width),
        "encoder_hidden_states": make.normal(batch, context, config.joint_attention_dim),
        "pooled_projections": make.normal(batch, config.pooled_projection_dim),
        "timestep": flow_time(make, batch),
    }
    return lambda: module(**inputs, return_dict=False)


def denoise_masked_text(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """PixArt and SANA on a latent, with cross attention to text under a mask (which hides nothing here)."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, height, width),
        "encoder_hidden_states": make.normal(batch, context, config.caption_channels),
        "encoder_attention_mask": make.ones(batch, context).to(make.dtype),
        "timestep": flow_time(make, batch),
    }
    if "use_additional_conditions" in config:
        inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return lambda: module(**inputs, return_dict=False)


def denoise_class(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """A class-conditional transformer on a latent."""
    latent = make.normal(batch, module.config.in_channels, height, width)
    t, label = make.timestep(batch), make.tokens(batch, vocabulary=module.config.num_embeds_ada_norm)
    return lambda: module(latent, timestep=t, class_labels=label, return_dict=False)


def denoise_hunyuan_dit(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """HunyuanDiT on a latent, with the texts of two encoders under masks (which hide nothing here)."""
    config = module.config
    tokens = (height // config.patch_size) * (width // config.patch_size)
    inputs = {
        "encoder_hidden_states": make.normal(batch, context, config.cross_attention_dim),
        "text_embedding_mask": make.ones(batch, context),
        "encoder_hidden_states_t5": make.normal(batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": make.ones(batch, config.text_len_t5),
        "image_rotary_emb": tuple(make.normal(tokens, config.attention_head_dim).float() for _ in range(2)),
    }
    latent, t = make.normal(batch, config.in_channels, height, width), flow_time(make, batch)
    return lambda: module(latent, t, **inputs, return_dict=False)


def denoise_qwen_image(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """Qwen-Image on ``(batch, tokens, channels)``: a token is 2x2 of the latent, packed into its channels."""
    config, rows, columns = module.config, height // 2, width // 2
    inputs = {
        "hidden_states": make.normal(batch, rows * columns, config.in_channels),
        "encoder_hidden_states": make.normal(batch, context, config.joint_attention_dim),
        "timestep": flow_time(make, batch),
        "img_shapes": [[(1, rows, columns)]] * batch,
    }
    return lambda: module(**inputs, encoder_hidden_states_mask=None, return_dict=False)


def denoise_z_image(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """Z-Image on lists of latents ``(channels, 1, height, width)`` and of texts ``(context, width)``."""
    config = module.config
    latents = list(make.normal(batch, config.in_channels, 1, height, width))
    texts = list(make.normal(batch, context, config.cap_feat_dim))
    t = flow_time(make, batch)
    module.rope_embedder(
        torch.zeros(1, len(config.axes_dims), dtype=torch.int32, device=make.device)
    )  # makes its tables
    return lambda: module(x=latents, t=t, cap_feats=texts, return_dict=False)


def denoise_hunyuan_image(
    module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int, glyphs: int
) -> Work:
    """HunyuanImage on a latent, ``context`` tokens of the prompt and ``glyphs`` of what is to be written in it."""
    config = module.config
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, height, width),
        "timestep": flow_time(make, batch),
        "encoder_hidden_states": make.normal(batch, context, config.text_embed_dim),
        "encoder_attention_mask": make.ones(batch, context),
        "encoder_hidden_states_2": make.normal(batch, glyphs, config.text_embed_2_dim),
        "encoder_attention_mask_2": make.ones(batch, glyphs),
    }
    return lambda: module(**inputs, return_dict=False)


def decode_latent_video(
    module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, frames: int = 1
) -> Work:
    """A video autoencoder's decoder on ``(batch, channels, frames, height, width)``; an image is one frame."""
    channels = module.config.z_dim if "z_dim" in module.config else module.config.latent_channels
    latent = make.normal(batch, channels, frames, height, width)
    return lambda: module.decode(latent, return_dict=False)


def parallel_decode_grid(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """One step of aMUSEd over a ``(height, width)`` token image."""
    config = module.config
    ids = make.tokens(batch, height, width, vocabulary=config.vocab_size)
    text = make.normal(batch, context, config.encoder_hidden_size)
    pooled = make.normal(batch, config.cond_embed_dim)
    sizes = make.normal(batch, config.micro_cond_embed_dim // config.micro_cond_encode_dim)
    return lambda: module(ids, encoder_hidden_states=text, pooled_text_emb=pooled, micro_conds=sizes)


def project_text(module: nn.Module, make: Inputs, *, batch: int, context: int) -> Work:
    """The projection of unCLIP, from image and text embeddings to text tokens and a time embedding."""
    image, pooled = (make.normal(batch, module.config.clip_embeddings_dim) for _ in range(2))
    text = make.normal(batch, context, module.config.clip_embeddings_dim)
    return lambda: module(
        image_embeddings=image,
        prompt_embeds=pooled,
        text_encoder_hidden_states=text,
        do_classifier_free_guidance=False,
    )


def flow_time(make: Inputs, batch: int) -> Tensor:
    """One time in (0, 1) per sample, ``(batch,)``."""
    return torch.full((batch,), 0.5, dtype=make.dtype, device=make.device)


def _positions(make: Inputs, rows: int, columns: int, *, axes: int) -> Tensor:
    """Position ids of a grid, ``(rows * columns, axes)``; the middle axes count rows and columns."""
    row = torch.arange(rows, device=make.device).repeat_interleave(columns)
    column = torch.arange(columns, device=make.device).repeat(rows)
    zeros = torch.zeros_like(row)
    return torch.stack([zeros, row, column, *[zeros] * (axes - 3)], dim=1).to(make.dtype)
