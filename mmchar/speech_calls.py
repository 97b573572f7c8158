"""How the parts of models that hear or speak are called; see :mod:`mmchar.calls`."""

from typing import Any

import torch
from torch import nn

from mmchar.calls import Inputs, Work, fill_layers


def encode_speech(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """Seamless's speech encoder and length adaptor on ``(batch, frames, features)``."""
    features = make.normal(batch, frames, module.config.feature_projection_input_dim)
    return lambda: module.speech_encoder(features)


def encode_text_seamless(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """Seamless's text encoder on ``(batch, tokens)`` ids."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.vocab_size)
    return lambda: module.text_encoder(input_ids=ids)


def prefill_beams(module: nn.Module, make: Inputs, *, batch: int, beams: int, context: int) -> Work:
    """Seamless's first text token on all beams, which also computes the keys and values of what was encoded."""
    return _beam_step(module, make, batch=batch, beams=beams, context=context, cache=0)


def decode_beams(module: nn.Module, make: Inputs, *, batch: int, beams: int, context: int, cache: int) -> Work:
    """Seamless on one text token of each beam, and the choice of the best beams."""
    return _beam_step(module, make, batch=batch, beams=beams, context=context, cache=cache)


def reorder_beams(module: nn.Module, make: Inputs, *, rows: int, context: int, cache: int) -> Work:
    """The move of both KV caches to the beams that were chosen: keys and values of every layer, selected by row."""
    both = _beam_cache(module, make, rows=rows, context=context, cache=cache)
    chosen = make.tokens(rows, vocabulary=rows)
    return lambda: both.reorder_cache(chosen)


def reread_text(module: nn.Module, make: Inputs, *, batch: int, context: int, tokens: int) -> Work:
    """Seamless's text decoder over the whole text that it wrote: its states are what is spoken."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.vocab_size)
    encoded = make.normal(batch, context, module.config.hidden_size)
    return lambda: module.text_decoder(input_ids=ids, encoder_hidden_states=encoded)


def encode_units(module: nn.Module, make: Inputs, *, batch: int, subwords: int) -> Work:
    """Seamless's unit encoder on the text decoder's states ``(batch, subwords, width)``."""
    states = make.normal(batch, subwords, module.config.hidden_size)
    return lambda: module.t2u_model.model.encoder(inputs_embeds=states)


def decode_units(module: nn.Module, make: Inputs, *, batch: int, subwords: int, chars: int, units: int) -> Work:
    """Seamless's unit decoder: each subword repeated per character, each character per unit, all units at once.

    The lengths are the request's: in the library they follow from the text and from the predicted durations, which
    are computed here too but not obeyed.
    """
    decoder, config = module.t2u_model.model.decoder, module.config
    states = make.normal(batch, subwords, config.hidden_size)
    ids = make.tokens(batch, chars, vocabulary=config.char_vocab_size)

    def work() -> Any:
        spoken = states.repeat_interleave(chars // subwords, dim=1)
        place = decoder.pos_emb_alpha_char * decoder.embed_char_positions(inputs_embeds=spoken)
        spoken = decoder.embed_char(ids) * decoder.embed_scale + place + spoken
        decoder.duration_predictor(spoken)
        hidden = spoken.repeat_interleave(units // chars, dim=1)
        hidden = hidden + decoder.pos_emb_alpha * decoder.embed_positions(inputs_embeds=hidden)
        for layer in decoder.layers:
            hidden = layer(hidden)
        return module.t2u_model.lm_head(decoder.layer_norm(hidden))

    return work


def vocode_units(module: nn.Module, make: Inputs, *, batch: int, units: int) -> Work:
    """Seamless's vocoder on ``(batch, units)`` ids, one frame of sound per unit."""
    vocoder, config = module.vocoder, module.config
    ids = make.tokens(batch, units, vocabulary=config.unit_hifi_gan_vocab_size)
    speaker, language = make.tokens(batch, 1, vocabulary=1), make.tokens(batch, 1, vocabulary=1)

    def work() -> Any:
        hidden = vocoder.unit_embedding(ids)
        vocoder.dur_predictor(hidden)
        parts = (vocoder.language_embedding(language), vocoder.speaker_embedding(speaker))
        lang, voice = (part.expand(-1, units, -1) for part in parts)
        return vocoder.hifi_gan(torch.cat([lang, hidden, voice], dim=-1).transpose(1, 2))

    return work


def _beam_step(module: nn.Module, make: Inputs, *, batch: int, beams: int, context: int, cache: int) -> Work:
    config, rows = module.config, batch * beams
    ids = make.tokens(rows, 1, vocabulary=config.vocab_size)
    encoded = make.normal(rows, context, config.hidden_size)
    both = _beam_cache(module, make, rows=rows, context=context, cache=cache)
    scores = make.normal(rows, 1)

    def work() -> Any:
        out = module.text_decoder(input_ids=ids, encoder_hidden_states=encoded, past_key_values=both, use_cache=True)
        words = module.lm_head(out.last_hidden_state[:, -1]).log_softmax(dim=-1)
        return (words + scores).view(batch, -1).topk(2 * beams)  # twice as many, because some may have ended

    return work


def _beam_cache(module: nn.Module, make: Inputs, *, rows: int, context: int, cache: int) -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    config, past, seen = module.config, DynamicCache(), DynamicCache()
    heads = config.decoder_attention_heads
    shape = {"layers": config.decoder_layers, "heads": heads, "head_dim": config.hidden_size // heads}
    if cache:
        fill_layers(past, make, batch=rows, tokens=cache, **shape)
        fill_layers(seen, make, batch=rows, tokens=context, **shape)
    return EncoderDecoderCache(past, seen)
