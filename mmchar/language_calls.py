"""How the parts of models that see, hear or draw with a language model are called; see :mod:`mmchar.calls`."""

from typing import Any

from torch import nn

from mmchar.core_calls import fill, language_model
from mmchar.inputs import Inputs, Work


def encode_clip_image(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """CLIP's image tower and projection on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.get_image_features(pixel_values=pixels)


def encode_clip_text(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """CLIP's text tower and projection on ``(batch, tokens)`` ids."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.text_config.vocab_size)
    return lambda: module.get_text_features(input_ids=ids)


def score_classes(module: nn.Module, make: Inputs, *, images: int, classes: int) -> Work:
    """CLIP's similarity of every image with every class, ``(images, classes)``, from both embeddings."""
    image, text = (make.normal(rows, module.config.projection_dim) for rows in (images, classes))

    def work() -> Any:
        left, right = (each / each.norm(dim=-1, keepdim=True) for each in (image, text))
        return (left @ right.t() * module.logit_scale.exp()).softmax(dim=-1)

    return work


def encode_pixels(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """A vision tower of its own on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config, images)
    return lambda: module(pixels)


def project_features(module: nn.Module, make: Inputs, *, images: int, patches: int) -> Work:
    """An adaptor of its own on ``(images, patches, width)`` features."""
    features = make.normal(images, patches, module.config.in_dim)
    return lambda: module(features)


def project_signal(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """NExT-GPT's output projector on the language model's states at its ``(batch, tokens)`` signal tokens."""
    signal = make.normal(batch, tokens, module.config.in_dim)
    return lambda: module(signal)


def encode_tiles(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """LLaVA's vision tower on ``(images, channels, height, width)`` images or tiles of images."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.model.vision_tower(pixels)


def project_patches(module: nn.Module, make: Inputs, *, images: int, patches: int) -> Work:
    """LLaVA's adaptor (a linear layer or an MLP) on ``(images, patches, width)`` features."""
    features = make.normal(images, patches, module.config.vision_config.hidden_size)
    return lambda: module.model.multi_modal_projector(features)


def encode_image_blip2(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """BLIP-2's vision tower on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.vision_model(pixel_values=pixels)


def project_queries(module: nn.Module, make: Inputs, *, images: int, context: int) -> Work:
    """BLIP-2's Q-Former over ``(images, context, width)`` features, and its projection to the language model."""
    features = make.normal(images, context, module.config.vision_config.hidden_size)

    def work() -> Any:
        queries = module.query_tokens.expand(images, -1, -1)
        found = module.qformer(query_embeds=queries, encoder_hidden_states=features)
        return module.language_projection(found.last_hidden_state)

    return work


def prefill_embeds(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A language model on embedded image and text tokens; only the last position's logits are made."""
    embeds = make.normal(batch, tokens, module.config.get_text_config().hidden_size)
    lm = language_model(module)
    return lambda: lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)


def encode_image_qwen(module: nn.Module, make: Inputs, *, images: int, height: int, width: int) -> Work:
    """Qwen-VL's vision tower and merger on images of ``(height, width)`` patches.

    Where each patch sits and which window it is in does not depend on the pixels, and is worked out before.
    """
    import torch
    from transformers import vision_utils

    tower, grid = module.model.visual, torch.tensor([[1, height, width]] * images)
    vision, merge = tower.config, tower.spatial_merge_size
    known = {"position_ids": vision_utils.get_vision_position_ids(grid, merge)}
    lengths = {"cu_seqlens": vision_utils.get_vision_cu_seqlens(grid)}  # read as numbers, so these stay on the CPU
    if hasattr(tower, "window_size"):
        known["window_index"], lengths["cu_window_seqlens"] = vision_utils.get_vision_window_index(
            grid, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
        )
    if hasattr(tower, "num_grid_per_side"):
        known["interp_indices"], known["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    pixels = make.normal(
        images * height * width, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    )
    known = {name: value.to(make.device) for name, value in known.items()}
    return lambda: tower(pixels, grid_thw=grid, **known, **lengths)


def encode_image_mllama(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """Llama 3.2 Vision's tower on images cut into the largest number of tiles (fewer are padded to it)."""
    vision = module.config.vision_config
    side = vision.image_size
    pixels = make.normal(images, 1, vision.max_num_tiles, vision.num_channels, side, side)
    shape = make.ones(images, 1).long()  # the id of an aspect ratio; it picks a row of a table
    mask = make.ones(images, 1, vision.max_num_tiles).long()
    return lambda: module.model.vision_model(pixels, aspect_ratio_ids=shape, aspect_ratio_mask=mask)


def project_mllama(module: nn.Module, make: Inputs, *, images: int, patches: int) -> Work:
    """Llama 3.2 Vision's linear adaptor on ``(images, patches, width)`` features of several layers."""
    features = make.normal(images, patches, module.config.vision_config.vision_output_dim)
    return lambda: module.model.multi_modal_projector(features)


def prefill_mllama(module: nn.Module, make: Inputs, *, batch: int, context: int, tokens: int) -> Work:
    """Llama 3.2 Vision on a prompt, with cross-attention to ``(batch, context, width)`` image tokens."""
    text = module.config.get_text_config()
    ids = make.tokens(batch, tokens, vocabulary=text.vocab_size)
    image = make.normal(batch, context, text.hidden_size)
    mask = make.ones(batch, tokens, 1, module.config.vision_config.max_num_tiles).long()
    return lambda: module(
        input_ids=ids, cross_attention_states=image, cross_attention_mask=mask, use_cache=True, logits_to_keep=1
    )


def decode_mllama(module: nn.Module, make: Inputs, *, batch: int, context: int, cache: int) -> Work:
    """Llama 3.2 Vision on one token, with the image's keys and values in the cache of its cross-attention layers.

    A generated token sees every tile, so it needs no mask.
    """
    from transformers import DynamicCache

    text = module.config.get_text_config()
    ids, filled = make.tokens(batch, 1, vocabulary=text.vocab_size), DynamicCache(config=text)
    heads, head_dim = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
    for layer in range(text.num_hidden_layers):
        length = context if layer in text.cross_attention_layers else cache
        filled.update(make.normal(batch, heads, length, head_dim), make.normal(batch, heads, length, head_dim), layer)
    return lambda: module(input_ids=ids, past_key_values=filled, use_cache=True)


def encode_image_idefics(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """IDEFICS's vision tower on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.model.vision_model(pixel_values=pixels)


def project_perceiver(module: nn.Module, make: Inputs, *, images: int, patches: int) -> Work:
    """IDEFICS's resampler: a fixed number of latents over ``(images, patches, width)`` features."""
    features = make.normal(images, patches, module.config.vision_config.embed_dim)
    return lambda: module.model.perceiver_resampler(features)


def prefill_gated(module: nn.Module, make: Inputs, *, batch: int, context: int, tokens: int) -> Work:
    """IDEFICS on an embedded prompt, with gated cross-attention to ``(batch, context, width)`` image tokens."""
    return _gated(module, make, batch=batch, context=context, tokens=tokens, past=None)


def decode_gated(module: nn.Module, make: Inputs, *, batch: int, context: int, cache: int) -> Work:
    """IDEFICS on one token; the library computes the image's keys and values anew for each token."""
    from transformers import DynamicCache

    filled = DynamicCache(config=module.config)
    fill(filled, make, module.config, batch=batch, tokens=cache)
    return _gated(module, make, batch=batch, context=context, tokens=1, past=filled)


def _gated(module: nn.Module, make: Inputs, *, batch: int, context: int, tokens: int, past: Any) -> Work:
    embeds = make.normal(batch, tokens, module.config.hidden_size)
    image = make.normal(batch, 1, context, module.config.vision_config.embed_dim)
    mask = make.ones(batch, tokens, 1)
    return lambda: module(
        inputs_embeds=embeds,
        perceiver_embeddings=image,
        image_attention_mask=mask,
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )


def encode_image_codes(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """Chameleon's VQ encoder: images to codebook ids."""
    vq = module.config.vq_config
    pixels = make.normal(images, vq.in_channels, vq.resolution, vq.resolution)
    return lambda: module.model.vqmodel.encode(pixels)


def prefill_image_janus(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """Janus on an embedded prompt, ending in its head over image tokens in place of the one over words."""
    embeds = make.normal(batch, tokens, module.config.text_config.hidden_size)

    def work() -> Any:
        hidden = module.model.language_model(inputs_embeds=embeds, use_cache=True).last_hidden_state
        return module.model.generation_head(hidden[:, -1])

    return work


def decode_image_token_janus(module: nn.Module, make: Inputs, *, batch: int, cache: int) -> Work:
    """Janus on one image token: its embedding and aligner, the language model, the head over image tokens."""
    from transformers import DynamicCache

    text = module.config.text_config
    ids, filled = make.tokens(batch, 1, vocabulary=module.config.vq_config.num_embeddings), DynamicCache(config=text)
    fill(filled, make, text, batch=batch, tokens=cache)

    def work() -> Any:
        embeds = module.prepare_embeddings_for_image_generation(ids)
        out = module.model.language_model(inputs_embeds=embeds, past_key_values=filled, use_cache=True)
        return module.model.generation_head(out.last_hidden_state[:, -1])

    return work


def decode_codes_janus(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """Janus's VQ decoder on the ids of a ``(height, width)`` token image."""
    ids = make.tokens(batch, height * width, vocabulary=module.config.vq_config.num_embeddings)
    return lambda: module.decode_image_tokens(ids)


def decode_codes_emu3(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """Emu3's VQ decoder on the ids of a ``(height, width)`` token image."""
    ids = make.tokens(batch, height, width, vocabulary=module.config.vq_config.codebook_size)
    return lambda: module.model.vqmodel.decode(ids)


def encode_history(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A recommender on the items ``(batch, tokens)`` of each history, and the times of its events."""
    ids, times = (make.tokens(batch, tokens, vocabulary=most) for most in (module.config.items, 10**6))
    return lambda: module(ids, times)


def rank_candidates(module: nn.Module, make: Inputs, *, batch: int, cache: int, candidates: int) -> Work:
    """A recommender on ``(batch, candidates)`` items, with the keys and values of the history in its cache."""
    config = module.config
    ids = make.tokens(batch, candidates, vocabulary=config.items)
    widths = (config.qk_dim, config.v_dim)
    past = [tuple(make.normal(batch, config.heads, cache, width) for width in widths) for _ in range(config.layers)]
    return lambda: module.rank(ids, past)


def retrieve_items(module: nn.Module, make: Inputs, *, batch: int, most: int) -> Work:
    """A recommender's nearest items to users ``(batch, width)``, by comparing each user with every item."""
    users = make.normal(batch, module.config.dim)
    return lambda: module.retrieve(users, most)


def _pixels(make: Inputs, vision: Any, images: int) -> Any:
    return make.normal(images, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)
