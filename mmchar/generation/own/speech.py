"""Translation between speech and text whose own generation asks a tokenizer for every letter: SeamlessM4T v2."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks

_IMPOSSIBLE = -1e9  # the score of a beam that does not differ from another yet, as in the library


class SeamlessPipeline:
    """Encode speech or a text, write the translation with beam search, and speak it: units all at once, then sound.

    In the library the letters of a token come from a tokenizer and the length of a unit from what is predicted. Here
    both lengths are given, and the durations are predicted but not obeyed: so the parts of the unit decoder and of the
    vocoder are called one by one. No beam ends before it has all its tokens.

    ``speaks`` says whether the translation is spoken or written, ``frames_per_second`` how the encoder takes speech;
    a written token has ``chars_per_token`` letters, and a letter ``units_per_char`` units of sound.

    **Source**: Seamless, arXiv 2312.05187, sec. 3; transformers' ``SeamlessM4Tv2Model.generate``.
    """

    def __init__(
        self,
        networks: Networks,
        inputs: Inputs,
        *,
        speaks: bool,
        frames_per_second: int = 50,
        chars_per_token: int = 5,
        units_per_char: int = 2,
    ) -> None:
        self.model, self.inputs, self.speaks = networks["model"], inputs, speaks
        self.frames_per_second = frames_per_second
        self.chars_per_token, self.units_per_char = chars_per_token, units_per_char

    def __call__(
        self, *, batch: int, new_tokens: int, beams: int, audio_s: int | None = None, prompt_tokens: int | None = None
    ) -> Tensor:
        """Sound ``(batch, samples)`` between -1 and 1, or ids of texts ``(batch, new_tokens)``."""
        encoded = self._hear(batch, audio_s) if audio_s else self._read(batch, prompt_tokens or 1)
        text = self._write(encoded, new_tokens, beams)
        if not self.speaks:
            return text[:, 1:]  # without the mark that it begins with
        states = self.model.text_decoder(input_ids=text[:, :-1], encoder_hidden_states=encoded).last_hidden_state
        states = self.model.t2u_model.model.encoder(inputs_embeds=states).last_hidden_state
        return self._vocode(self._units(states))

    def _hear(self, batch: int, audio_s: int) -> Tensor:
        """Speech as ``(batch, frames after the adaptor, width)``."""
        frames, bands = audio_s * self.frames_per_second, self.model.config.feature_projection_input_dim
        return self.model.speech_encoder(self.inputs.normal(batch, frames, bands)).last_hidden_state

    def _read(self, batch: int, tokens: int) -> Tensor:
        """A text as ``(batch, tokens, width)``."""
        ids = self.inputs.tokens(batch, tokens, vocabulary=self.model.config.vocab_size)
        return self.model.text_encoder(input_ids=ids).last_hidden_state

    def _write(self, encoded: Tensor, tokens: int, beams: int) -> Tensor:
        """The likeliest texts ``(batch, 1 + tokens)``: the first mark, then a step for each token on all beams at once.

        After a step the cache follows the beams that it chose; those of the first step are all the same.
        """
        batch, config = encoded.shape[0], self.model.config
        seen = BaseModelOutput(last_hidden_state=encoded.repeat_interleave(beams, dim=0))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = encoded.new_full((batch * beams, 1), config.decoder_start_token_id, dtype=torch.int64)
        scores = torch.full((batch, beams), _IMPOSSIBLE, device=encoded.device)
        scores[:, 0] = 0
        while ids.shape[1] <= tokens:
            out = self.model(encoder_outputs=seen, decoder_input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            scores, rows, words = best_beams(out.logits[:, -1].log_softmax(dim=-1), scores)
            if ids.shape[1] > 1:
                cache.reorder_cache(rows)
            ids = torch.cat([ids[rows], words], dim=1)
        return ids[::beams]  # the best beam is the first

    def _units(self, states: Tensor) -> Tensor:
        """Units of sound ``(batch, units)`` of the states ``(batch, tokens, width)`` of a text."""
        decoder = self.model.t2u_model.model.decoder
        letters = states.repeat_interleave(self.chars_per_token, dim=1)  # [b, tokens, width] -> [b, chars, width]
        ids = self.inputs.tokens(*letters.shape[:2], vocabulary=self.model.config.char_vocab_size)
        letters = letters + decoder.pos_emb_alpha_char * _places(decoder.embed_char_positions, letters)
        letters = letters + F.embedding(ids, decoder.embed_char.weight) * decoder.embed_scale
        decoder.duration_predictor(letters)
        hidden = letters.repeat_interleave(self.units_per_char, dim=1)  # [b, chars, width] -> [b, units, width]
        hidden = hidden + decoder.pos_emb_alpha * _places(decoder.embed_positions, hidden)
        for layer in decoder.layers:
            hidden = layer(hidden)
        norm = decoder.layer_norm
        hidden = F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return self.model.t2u_model.lm_head(hidden).argmax(dim=-1)

    def _vocode(self, units: Tensor) -> Tensor:
        """Sound ``(batch, samples)`` of units ``(batch, units)``, spoken by the first speaker in the first language."""
        vocoder, config = self.model.vocoder, self.model.config
        ids = (units - config.vocoder_offset).clamp(0, config.unit_hifi_gan_vocab_size - 1)
        said = F.embedding(ids, vocoder.unit_embedding.weight)  # [b, units, width]
        vocoder.dur_predictor(said)
        first = torch.zeros_like(ids)
        language, speaker = (
            F.embedding(first, table.weight) for table in (vocoder.language_embedding, vocoder.speaker_embedding)
        )
        return vocoder.hifi_gan(torch.cat([language, said, speaker], dim=-1).transpose(1, 2))


def best_beams(words: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sample's beams, from the best on, by log-probabilities of words and beams so far.

    ``(batch * beams, vocabulary)`` and ``(batch, beams)`` to the new scores ``(batch, beams)``, the row that each goes
    on from ``(batch * beams,)``, and its token ``(batch * beams, 1)``. Twice as many as beams are looked for, as those
    that have ended would be left out.
    """
    (batch, beams), vocabulary = scores.shape, words.shape[1]
    found = (words + scores.reshape(-1, 1)).view(batch, -1).topk(2 * beams)
    places = found.indices[:, :beams]
    first = beams * torch.arange(batch, device=places.device).view(-1, 1)
    rows = (first + places // vocabulary).flatten()
    return found.values[:, :beams], rows, (places % vocabulary).reshape(-1, 1)


def _places(table: Any, hidden: Tensor) -> Tensor:
    """Sinusoids of the places of ``(batch, tokens, width)``, ``(tokens, width)``; the first follow the padding's."""
    start = table.padding_idx + 1
    return table.weights[start : start + hidden.shape[1]]
