"""Models that answer in another form than text, one token of it after the other: Qwen2.5-Omni speaks, Janus draws."""

from itertools import chain, repeat

import torch
from torch import Tensor
from transformers import DynamicCache

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks, Steps, draw, embed_prompt, guided, rows_of, steps_each


class SpokenAnswerPipeline:
    """Hear a question, write the answer token by token, speak it code by code, turn the codes into sound.

    The library's own loop denoises the sound along an ODE by a fourth-order Runge-Kutta method: four calls between two
    times, each doubled by guidance. Against the library's ``generate``: logits of a prompt are made of its last place
    alone; the marks between the prompt and the speech are left out; and the voice's reference is as long as the sound.
    ``frames_per_second`` are mel frames of the question; a written token becomes ``codes_per_token`` codes of sound.

    **Source**: Qwen2.5-Omni, arXiv 2503.20215, sec. 2; transformers' ``Qwen2_5OmniForConditionalGeneration.generate``.
    """

    def __init__(self, networks: Networks, inputs: Inputs, *, frames_per_second: int, codes_per_token: int) -> None:
        self.omni, self.inputs = networks["omni"], inputs
        self.frames_per_second, self.codes_per_token = frames_per_second, codes_per_token

    def __call__(self, *, batch: int, audio_s: int, prompt_tokens: int, new_tokens: int, steps: Steps) -> Tensor:
        """Sound between -1 and 1, ``(samples,)`` of one answer."""
        heard = self._hear(batch, audio_s)
        asked = embed_prompt(self.omni.thinker, self.inputs, batch=batch, tokens=prompt_tokens)
        states, reply = self._write(torch.cat([heard, asked], dim=1), new_tokens)
        codes = self._speak(states, reply, self.codes_per_token * new_tokens)
        return self._sound(codes, *steps_each(steps, 1))

    def _hear(self, batch: int, audio_s: int) -> Tensor:
        """Speech as tokens ``(batch, tokens, width)`` of the writing model; the samples are encoded as one sequence."""
        tower, frames = self.omni.thinker.model.audio_tower, audio_s * self.frames_per_second
        mel = self.inputs.normal(tower.num_mel_bins, batch * frames)
        lengths = torch.full((batch,), frames, device=mel.device)
        return tower(mel, feature_lens=lengths).last_hidden_state.unflatten(0, (batch, -1))

    def _write(self, question: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """What is spoken from: states of the question ``(batch, places, width)``, and of where each token came from.

        Each is what the writing model was given in a place, and what it made of it.
        """
        thinker = self.omni.thinker
        cache = DynamicCache(config=thinker.config.get_text_config())
        out = thinker.model(
            inputs_embeds=question, position_ids=_places(question), past_key_values=cache, use_cache=True
        )
        states = question + out.last_hidden_state
        logits, reply = thinker.lm_head(out.last_hidden_state[:, -1:]), [states[:, -1:]]
        while len(reply) < tokens:
            word = logits[:, -1:].argmax(dim=-1)  # [b, 1]
            out = thinker(
                input_ids=word,
                position_ids=_places(word, cache.get_seq_length()),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
            logits = out.logits
            reply.append(out.hidden_states[0] + out.hidden_states[-1])
        return states, torch.cat(reply, dim=1)

    def _speak(self, states: Tensor, reply: Tensor, tokens: int) -> Tensor:
        """Codes ``(batch, tokens)``: each but the first is said with the state of one written token, in their order.

        When all of them have been used, the last is used again. Codes that the sound has no entry for are never taken.
        """
        talker, known = self.omni.talker, self.omni.token2wav.code2wav_dit_model.config.num_embeds
        cache = DynamicCache(config=talker.config)
        hidden = talker.thinker_to_talker_proj(states)
        out = talker.model(inputs_embeds=hidden, position_ids=_places(hidden), past_key_values=cache, use_cache=True)
        first = talker.codec_head(out.last_hidden_state[:, -1:])
        words = chain(reply.split(1, dim=1), repeat(reply[:, -1:]))

        def logits_after(code: Tensor | None) -> Tensor:
            if code is None:
                return first[:, -1, :known]
            said = talker(
                input_ids=code,
                thinker_reply_part=next(words),
                position_ids=_places(code, cache.get_seq_length()),
                past_key_values=cache,
                use_cache=True,
            )
            return said.logits[:, -1, :known]

        return draw(logits_after, tokens)

    def _sound(self, codes: Tensor, steps: int) -> Tensor:
        """Sound of codes, with a voice and a reference that are noise; all in the number type of its networks."""
        denoiser, vocoder = self.omni.token2wav.code2wav_dit_model, self.omni.token2wav.code2wav_bigvgan_model
        batch, frames = codes.shape[0], codes.shape[1] * denoiser.repeats
        shapes = ((batch, denoiser.config.enc_emb_dim), (batch, frames, denoiser.config.mel_dim))
        voice, reference = (self.inputs.normal(*shape).to(denoiser.proj_out.weight.dtype) for shape in shapes)
        return vocoder(denoiser.sample(voice, reference, codes, num_steps=steps))


class JanusPipeline:
    """Draw an image code by code after a prompt, through an embedding and a head of their own, and decode the codes.

    Guidance doubles the batch, as in the library's ``generate``, which embeds the last code too and by default reserves
    the whole cache beforehand.

    **Source**: Janus-Pro, arXiv 2501.17811, sec. 2; transformers' ``JanusForConditionalGeneration.generate``.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.lm, self.inputs = networks["lm"], inputs

    def __call__(self, *, batch: int, prompt_tokens: int, guidance: float) -> Tensor:
        """Images ``(batch, 3, height, width)`` of the tokenizer's own size."""
        rows = rows_of(guidance) * batch  # nothing first, then prompts
        codes = self._draw(embed_prompt(self.lm, self.inputs, batch=rows, tokens=prompt_tokens), guidance)
        return self.lm.decode_image_tokens(codes).permute(0, 3, 1, 2)

    def _draw(self, prompt: Tensor, guidance: float) -> Tensor:
        """Codes ``(batch, codes)`` after embeddings ``(rows * batch, tokens, width)``."""
        model, cache = self.lm.model, DynamicCache(config=self.lm.config.get_text_config())

        def logits_after(code: Tensor | None) -> Tensor:
            given = prompt
            if code is not None:
                given = self.lm.prepare_embeddings_for_image_generation(torch.cat([code] * rows_of(guidance)))
            out = model.language_model(inputs_embeds=given, past_key_values=cache, use_cache=True)
            return guided(model.generation_head(out.last_hidden_state[:, -1]), guidance)

        return draw(logits_after, self.lm.config.vq_config.num_patches**2)


def _places(tokens: Tensor, before: int = 0) -> Tensor:
    """Places in time, height and width of ``(batch, tokens, …)`` after others, which text has all the same."""
    batch, many = tokens.shape[:2]
    return torch.arange(before, before + many, device=tokens.device).expand(3, batch, many)
