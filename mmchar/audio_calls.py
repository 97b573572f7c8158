"""How audio diffusion models are called, by the rules of :mod:`mmchar.calls`."""

from torch import nn

from mmchar.diffusion_calls import flow_time
from mmchar.inputs import Inputs, Work


def denoise_spectrogram(module: nn.Module, make: Inputs, *, batch: int, height: int, width: int) -> Work:
    """AudioLDM's U-Net on the latent of a spectrogram; the text comes in beside the time, as one embedding."""
    sample = make.normal(batch, module.config.in_channels, height, width)
    text, t = make.normal(batch, module.config.projection_class_embeddings_input_dim), make.timestep(batch)
    return lambda: module(sample, t, encoder_hidden_states=None, class_labels=text, return_dict=False)


def denoise_spectrogram_by_two(
    module: nn.Module, make: Inputs, *, batch: int, height: int, width: int, generated: int, context: int
) -> Work:
    """AudioLDM 2's U-Net on the latent of a spectrogram, under generated tokens and under masked text."""
    widths = sorted({width for level in module.config.cross_attention_dim for width in level if width})
    inputs = {
        "encoder_hidden_states": make.normal(batch, generated, widths[0]),
        "encoder_hidden_states_1": make.normal(batch, context, widths[-1]),
        "encoder_attention_mask_1": make.ones(batch, context),
    }
    sample, t = make.normal(batch, module.config.in_channels, height, width), make.timestep(batch)
    return lambda: module(sample, t, **inputs, return_dict=False)


def embed_text(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """The text side of CLAP, to one embedding per prompt."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.text_config.vocab_size)
    return lambda: module.get_text_features(input_ids=ids)


def project_two_texts(module: nn.Module, make: Inputs, *, batch: int, context: int) -> Work:
    """AudioLDM 2's projection of CLAP's embedding and T5's tokens into the width of its language model."""
    clap = make.normal(batch, 1, module.config.text_encoder_dim)
    text = make.normal(batch, context, module.config.text_encoder_1_dim)
    masks = {"attention_mask": make.ones(batch, 1), "attention_mask_1": make.ones(batch, context)}
    return lambda: module(hidden_states=clap, hidden_states_1=text, **masks)


def prefill_embeddings(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A language model on a prompt of embeddings, ``(batch, tokens, width)``."""
    prompt = make.normal(batch, tokens, module.config.hidden_size)
    return lambda: module(inputs_embeds=prompt, use_cache=True)


def decode_one_embedding(module: nn.Module, make: Inputs, *, batch: int, cache: int) -> Work:
    """A language model on one embedding, with ``cache`` tokens in its KV cache."""
    from transformers import DynamicCache

    filled, config = DynamicCache(config=module.config), module.config
    shape = (batch, config.num_attention_heads, cache, config.hidden_size // config.num_attention_heads)
    for layer in range(config.num_hidden_layers):
        filled.update(make.normal(*shape), make.normal(*shape), layer)
    token = make.normal(batch, 1, config.hidden_size)
    return lambda: module(inputs_embeds=token, past_key_values=filled, use_cache=True)


def denoise_waveform(module: nn.Module, make: Inputs, *, batch: int, frames: int, context: int) -> Work:
    """Stable Audio on ``(batch, channels, frames)``, with rotary positions over half of a head."""
    config = module.config
    rotary = tuple(make.normal(frames + 1, config.attention_head_dim // 2) for _ in range(2))
    inputs = {
        "hidden_states": make.normal(batch, config.in_channels, frames),
        "timestep": flow_time(make, batch),
        "encoder_hidden_states": make.normal(batch, context, config.cross_attention_input_dim),
        "global_hidden_states": make.normal(batch, 1, config.global_states_input_dim),
    }
    return lambda: module(**inputs, rotary_embedding=rotary, return_dict=False)


def decode_waveform(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """An audio autoencoder's decoder on ``(batch, channels, frames)``."""
    latent = make.normal(batch, module.config.decoder_input_channels, frames)
    return lambda: module.decode(latent)


def vocode(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """A vocoder on a spectrogram ``(batch, frames, bins)``."""
    spectrogram = make.normal(batch, frames, module.config.model_in_dim)
    return lambda: module(spectrogram)
