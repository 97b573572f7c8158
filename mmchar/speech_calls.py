"""How the parts of models that hear or speak are called; see :mod:`mmchar.calls`."""

from typing import Any

import torch
from torch import nn

from mmchar.core_calls import fill, fill_layers
from mmchar.inputs import Inputs, Work


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


def encode_audio(module: nn.Module, make: Inputs, *, batch: int, frames: int) -> Work:
    """Qwen2.5-Omni's audio tower on ``frames`` mel frames per sample, cut into chunks beforehand."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    tower, lengths = module.thinker.model.audio_tower, torch.tensor([frames] * batch)
    silence = torch.zeros(tower.num_mel_bins, frames * batch)
    cut, chunks = omni.chunk_and_pad_features(silence, lengths, tower.n_window)
    mel = make.normal(*cut.shape)
    known = {"chunk_lengths": chunks, "valid_indices": omni.get_valid_indices(chunks)}
    known["pool_indices"] = omni.get_pool_indices(lengths)
    known = {name: value.to(make.device) for name, value in known.items()}
    bounds = omni.get_audio_cu_seqlens(chunks)  # read as numbers, so these stay on the CPU
    return lambda: tower(padded_feature=mel, feature_lens=lengths, cu_seqlens=bounds, **known)


def prefill_thinker(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """Qwen2.5-Omni's writing model on embedded audio and text tokens; logits of the last position."""
    return _thinker_step(module, make, batch=batch, tokens=tokens, cache=0)


def decode_thinker(module: nn.Module, make: Inputs, *, batch: int, cache: int) -> Work:
    """Qwen2.5-Omni's writing model on one embedded token."""
    return _thinker_step(module, make, batch=batch, tokens=1, cache=cache)


def prefill_talker(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """Qwen2.5-Omni's speaking model on what the writing model saw, at that model's width."""
    return _talker_step(module, make, batch=batch, tokens=tokens, cache=0)


def decode_talker(module: nn.Module, make: Inputs, *, batch: int, cache: int) -> Work:
    """Qwen2.5-Omni's speaking model on one code, added to a token of the written answer."""
    return _talker_step(module, make, batch=batch, tokens=1, cache=cache)


def denoise_sound(module: nn.Module, make: Inputs, *, batch: int, codes: int) -> Work:
    """Qwen2.5-Omni's diffusion transformer on mel frames, given codes, a voice and a reference; doubled by guidance."""
    dit = module.token2wav.code2wav_dit_model
    frames, config, dtype = codes * dit.repeats, dit.config, dit.proj_out.weight.dtype
    sizes = {"hidden_states": config.mel_dim, "condition_vector": config.mel_dim}
    sizes["speaker_embedding"] = config.enc_emb_dim
    inputs = {name: make.normal(batch, frames, width).to(dtype) for name, width in sizes.items()}
    ids, time = make.tokens(batch, codes, vocabulary=config.num_embeds), make.normal(batch).to(dtype)
    return lambda: dit(**inputs, quantized_code=ids, time_step=time, apply_cfg=True)


def vocode_mel(module: nn.Module, make: Inputs, *, batch: int, codes: int) -> Work:
    """Qwen2.5-Omni's vocoder on the mel frames of ``codes`` codes; all of its forward but the copy to the CPU."""
    token2wav = module.token2wav
    vocoder, frames = token2wav.code2wav_bigvgan_model, codes * token2wav.code2wav_dit_model.repeats
    mel = make.normal(batch, vocoder.config.mel_dim, frames).to(vocoder.conv_pre.weight.dtype)

    def work() -> Any:
        hidden = vocoder.conv_pre(vocoder.process_mel_spectrogram(mel))
        many = vocoder.num_residual_blocks
        for level, upsample in enumerate(vocoder.ups):
            hidden = upsample[0](hidden)
            hidden = sum(block(hidden) for block in vocoder.resblocks[level * many : (level + 1) * many]) / many
        return vocoder.conv_post(vocoder.activation_post(hidden)).clamp(-1.0, 1.0)

    return work


def _thinker_step(module: nn.Module, make: Inputs, *, batch: int, tokens: int, cache: int) -> Work:
    thinker = module.thinker
    embeds = make.normal(batch, tokens, thinker.config.text_config.hidden_size)
    places, past = _places_and_cache(thinker.config.text_config, make, batch=batch, tokens=tokens, cache=cache)

    def work() -> Any:
        out = thinker.model(inputs_embeds=embeds, position_ids=places, past_key_values=past, use_cache=True)
        return thinker.lm_head(out.last_hidden_state[:, -1])

    return work


def _talker_step(module: nn.Module, make: Inputs, *, batch: int, tokens: int, cache: int) -> Work:
    talker = module.talker
    embeds = make.normal(batch, tokens, talker.config.embedding_size)
    code = make.tokens(batch, tokens, vocabulary=talker.config.vocab_size) if cache else None
    places, past = _places_and_cache(talker.config, make, batch=batch, tokens=tokens, cache=cache)

    def work() -> Any:
        said = embeds if code is None else embeds + talker.get_input_embeddings()(code)
        hidden = talker.thinker_to_talker_proj(said)
        out = talker.model(inputs_embeds=hidden, position_ids=places, past_key_values=past, use_cache=True)
        return talker.codec_head(out.last_hidden_state[:, -1])

    return work


def _places_and_cache(config: Any, make: Inputs, *, batch: int, tokens: int, cache: int) -> tuple[torch.Tensor, Any]:
    """Positions in time, height and width, ``(3, batch, tokens)``, and a KV cache with ``cache`` tokens."""
    from transformers import DynamicCache

    past = DynamicCache(config=config)
    if cache:
        fill(past, make, config, batch=batch, tokens=cache)
    places = torch.arange(cache, cache + tokens, device=make.device).expand(3, batch, tokens)
    return places, past


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
