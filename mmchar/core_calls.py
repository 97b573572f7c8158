"""How text encoders, U-Nets, image decoders and language models are called; see :mod:`mmchar.calls`."""

from typing import Any

from torch import nn

from mmchar.inputs import Inputs, Work


def encode_text(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A text encoder on ``(batch, tokens)`` ids."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.vocab_size)
    return lambda: module(input_ids=ids)


def encode_text_seq2seq(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """The encoder of an encoder-decoder on ``(batch, tokens)`` ids."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.vocab_size)
    encoder = module.get_encoder()
    return lambda: encoder(input_ids=ids)


def denoise_image(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, context: int) -> Work:
    """A 2-D U-Net on ``(batch, channels, height, width)``, conditioned on ``(batch, context, width)`` text."""
    sample = make.normal(batch, module.config.in_channels, height, width)
    text = make.normal(batch, context, _context_width(module.config))
    t, more = make.timestep(batch), _conditions(module, make, batch)
    return lambda: module(sample, t, encoder_hidden_states=text, **more)


def denoise_video(
    module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int, context: int
) -> Work:
    """A spatio-temporal U-Net on ``(batch, channels, frames, height, width)``."""
    sample = make.normal(batch, module.config.in_channels, frames, height, width)
    each = frames if "motion_max_seq_length" in module.config else 1  # AnimateDiff takes the text once per frame
    text = make.normal(batch * each, context, _context_width(module.config))
    t = make.timestep(batch)
    return lambda: module(sample, t, encoder_hidden_states=text)


def denoise_unconditional(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """A 2-D U-Net without text, on ``(batch, channels, height, width)``."""
    sample = make.normal(batch, module.config.in_channels, height, width)
    t, more = make.timestep(batch), _conditions(module, make, batch)
    return lambda: module(sample, t, **more)


def denoise_embedding(module: nn.Module, make: Inputs, *, batch: int, context: int) -> Work:
    """A diffusion prior on an image embedding ``(batch, width)``, given ``(batch, context, width)`` text tokens."""
    width = module.config.embedding_dim
    noisy, pooled, text = make.normal(batch, width), make.normal(batch, width), make.normal(batch, context, width)
    t, mask = make.timestep(batch), make.ones(batch, context)
    return lambda: module(noisy, t, proj_embedding=pooled, encoder_hidden_states=text, attention_mask=mask)


def decode_latent(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """An image autoencoder's decoder on a latent ``(batch, channels, height, width)``."""
    latent = make.normal(batch, module.config.latent_channels, height, width)
    return lambda: module.decode(latent)


def decode_codes(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """A VQ decoder on codebook ids of a ``(height, width)`` token image."""
    ids = make.tokens(batch, height * width, vocabulary=module.config.num_vq_embeddings)
    shape = (batch, height, width, module.config.vq_embed_dim or module.config.latent_channels)
    return lambda: module.decode(ids, force_not_quantize=True, shape=shape)


def decode_patches(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """A ViT over all patches of a ``(height, width)`` token image, standing for a ViT-VQGAN decoder."""
    patch = module.config.patch_size
    image = make.normal(batch, module.config.num_channels, height * patch, width * patch)
    return lambda: module(image, interpolate_pos_encoding=True)


def decode_video_codes(module: nn.Module, make: Inputs, *, batch: int, frames: int, height: int, width: int) -> Work:
    """A video tokenizer's decoder on ``(batch, frames, height * width)`` ids."""
    ids = make.tokens(batch, frames, height * width, vocabulary=module.config.codebook)
    return lambda: module.decode(ids, height=height, width=width)


def parallel_decode_image(module: nn.Module, make: Inputs, *, batch: int, tokens: int, context: int) -> Work:
    """One step of a masked-token image transformer over all ``tokens`` at once."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.num_vector_embeds)
    if not context:
        return lambda: module(ids, return_dict=False)
    text = make.normal(batch, context, module.config.cross_attention_dim)
    return lambda: module(ids, encoder_hidden_states=text, return_dict=False)


def parallel_decode_video(module: nn.Module, make: Inputs, *, batch: int, tokens: int, context: int) -> Work:
    """One step of a masked-token video transformer over all ``tokens`` at once."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.vocabulary)
    text = make.normal(batch, context, module.config.text_dim)
    return lambda: module(ids, text)


def prefill(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A causal language model on a whole prompt; only the last position's logits are made."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.get_text_config().vocab_size)
    return lambda: module(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode_one_token(module: nn.Module, make: Inputs, *, batch: int, cache: int) -> Work:
    """A causal language model on one token, with ``cache`` tokens in its KV cache."""
    from transformers import DynamicCache

    config = module.config.get_text_config()
    ids = make.tokens(batch, 1, vocabulary=config.vocab_size)
    filled = DynamicCache(config=config)
    fill(filled, make, config, batch=batch, tokens=cache)
    lm = language_model(module)
    return lambda: lm(input_ids=ids, past_key_values=filled, use_cache=True)


def prefill_seq2seq(module: nn.Module, make: Inputs, *, batch: int, context: int) -> Work:
    """An encoder-decoder's first decoder token, which also computes the keys and values of the encoded text."""
    return _decoder_token(module, make, batch=batch, context=context, cache=0)


def decode_one_token_seq2seq(module: nn.Module, make: Inputs, *, batch: int, context: int, cache: int) -> Work:
    """An encoder-decoder on one decoder token, with both of its KV caches filled."""
    return _decoder_token(module, make, batch=batch, context=context, cache=cache)


def _decoder_token(module: nn.Module, make: Inputs, *, batch: int, context: int, cache: int) -> Work:
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    config = module.config
    encoded = BaseModelOutput(last_hidden_state=make.normal(batch, context, config.d_model))
    ids = make.tokens(batch, 1, vocabulary=config.decoder_vocab_size)
    past, text = DynamicCache(), DynamicCache()
    if cache:
        shape = {"layers": config.decoder_layers, "heads": config.decoder_attention_heads}
        shape["head_dim"] = config.d_model // config.decoder_attention_heads
        fill_layers(past, make, batch=batch, tokens=cache, **shape)
        fill_layers(text, make, batch=batch, tokens=context, **shape)
    both = EncoderDecoderCache(past, text)
    return lambda: module(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=both, use_cache=True)


def language_model(module: nn.Module) -> Any:
    """The causal language model of a component: the component itself, or BLIP-2's, which has a head of its own."""
    return getattr(module, "language_model", module)


def fill(cache: Any, make: Inputs, config: Any, *, batch: int, tokens: int) -> None:
    """Fill a KV cache with ``tokens`` tokens in every layer of a causal language model."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    fill_layers(
        cache, make, layers=config.num_hidden_layers, heads=kv_heads, head_dim=head_dim, batch=batch, tokens=tokens
    )


def fill_layers(cache: Any, make: Inputs, *, layers: int, heads: int, head_dim: int, batch: int, tokens: int) -> None:
    """Fill a KV cache with keys and values ``(batch, heads, tokens, head_dim)`` in every layer."""
    for layer in range(layers):
        cache.update(make.normal(batch, heads, tokens, head_dim), make.normal(batch, heads, tokens, head_dim), layer)


def _conditions(module: nn.Module, make: Inputs, batch: int) -> dict[str, Any]:
    """What a U-Net is told besides time and text: a class, a noise level, an embedding, or SDXL's sizes."""
    config, more = module.config, {}
    kind = getattr(config, "class_embed_type", None)
    if kind == "timestep" or getattr(config, "num_class_embeds", None):
        more["class_labels"] = make.tokens(batch, vocabulary=getattr(config, "num_class_embeds", None) or 1000)
    elif kind == "identity":
        more["class_labels"] = make.normal(batch, module.time_embedding.linear_2.out_features)
    if getattr(config, "addition_embed_type", None) == "text_time":
        sizes = 6
        pooled = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        time_ids = make.tokens(batch, sizes, vocabulary=1024).to(make.dtype)
        more["added_cond_kwargs"] = {"text_embeds": make.normal(batch, pooled), "time_ids": time_ids}
    return more


def _context_width(config: Any) -> int:
    """Width of the text that a denoiser takes: before its own projection where it has one."""
    return getattr(config, "encoder_hid_dim", None) or config.cross_attention_dim
