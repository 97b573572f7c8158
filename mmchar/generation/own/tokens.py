"""Models that draw token by token and no library draws with: Parti, Chameleon and Emu3."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import Networks, at_width, draw, encode_prompt, guided, rows_of


class PartiPipeline:
    """Encode the text once, decode image tokens one by one under guidance, turn all of them into pixels.

    The detokenizer takes a picture, so one is painted with the tokens; of what it says of a patch the first numbers
    are the patch's pixels.

    **Source**: Parti, arXiv 2206.10789, sec. 2.1 to 2.3.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.seq2seq, self.detokenizer, self.inputs = networks["seq2seq"], networks["detokenizer"], inputs

    def __call__(self, *, batch: int, prompt_tokens: int, height: int, width: int, guidance: float) -> Tensor:
        """Images ``(batch, 3, height, width)``."""
        patch, encoder = self.detokenizer.config.patch_size, self.seq2seq.get_encoder()
        grid = (height // patch, width // patch)
        text = encode_prompt(encoder, self.inputs, batch=batch, tokens=prompt_tokens, guidance=guidance)
        ids = self._draw(text, tokens=grid[0] * grid[1], guidance=guidance)
        return self._paint(ids.unflatten(1, grid), patch)

    def _draw(self, text: Any, *, tokens: int, guidance: float) -> Tensor:
        """Image tokens ``(batch, tokens)``."""
        rows, cache = text.last_hidden_state.shape[0], EncoderDecoderCache(DynamicCache(), DynamicCache())
        first = self.seq2seq.config.decoder_start_token_id
        start = torch.full((rows, 1), first, dtype=torch.int64, device=self.inputs.device)

        def logits_after(last: Tensor | None) -> Tensor:
            ids = start if last is None else torch.cat([last] * rows_of(guidance))
            out = self.seq2seq(encoder_outputs=text, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
            return guided(out.logits[:, -1], guidance)

        return draw(logits_after, tokens)

    def _paint(self, ids: Tensor, patch: int) -> Tensor:
        """Pixels of token images ``(batch, rows, columns)``."""
        picture = (ids / self.seq2seq.config.decoder_vocab_size).to(self.inputs.dtype)
        picture = F.interpolate(picture[:, None], scale_factor=patch).repeat(1, 3, 1, 1)  # [b, 3, height, width]
        found = self.detokenizer(picture, interpolate_pos_encoding=True).last_hidden_state[:, 1:]  # no class token
        pixels = at_width(found, 3 * patch * patch).transpose(1, 2).unflatten(2, ids.shape[1:])
        return F.pixel_shuffle(pixels, patch)


class TokenImagePipeline:
    """Draw an image with a language model, token by token after a prompt, and turn the tokens into pixels.

    A step sees the prompt and nothing in two calls, ``"sequential"``, or in one ``"batch"``; ``unconditional_tokens``
    stand for no prompt in the first case. The codebook's entries stand for the first ids of the vocabulary here, of
    which the likeliest is taken; ``row_marks`` more tokens end a row of the image. Chameleon's own class has no
    decoder, and gets one as ``vq_decoder``.

    **Source**: Chameleon, arXiv 2405.09818, sec. 2.1; Emu3, arXiv 2409.18869, sec. 2, and baaivision/Emu3's example.
    """

    def __init__(
        self,
        networks: Networks,
        inputs: Inputs,
        *,
        guidance: str = "sequential",
        unconditional_tokens: int = 1,
        row_marks: int = 0,
    ) -> None:
        self.lm, self.decoder, self.inputs = networks["lm"], networks.get("vq_decoder"), inputs
        self.sequential = guidance == "sequential"
        self.unconditional_tokens, self.row_marks = unconditional_tokens, row_marks
        vq = self.lm.config.vq_config
        self.codes = getattr(vq, "num_embeddings", None) or vq.codebook_size
        self.scale = 2 ** (len(vq.channel_multiplier) - 1)

    def __call__(
        self, *, batch: int, prompt_tokens: int, guidance: float, height: int | None = None, width: int | None = None
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``, of the tokenizer's own size unless given."""
        own = getattr(self.lm.config.vq_config, "resolution", None)
        rows, columns = ((size or own) // self.scale for size in (height, width))
        prompts = self._prompts(batch, prompt_tokens, rows_of(guidance))
        ids = self._draw(prompts, rows * (columns + self.row_marks), guidance)
        return self._decode(ids.unflatten(1, (rows, -1))[..., :columns])

    def _prompts(self, batch: int, tokens: int, rows: int) -> list[Tensor]:
        """Ids of what is decoded in turn, the prompt first, or side by side in one batch, nothing first."""
        lengths = [tokens, self.unconditional_tokens][:rows] if self.sequential else [tokens] * rows
        vocabulary = self.lm.config.get_text_config().vocab_size
        prompts = [self.inputs.tokens(batch, length, vocabulary=vocabulary) for length in lengths]
        return prompts if self.sequential else [torch.cat(prompts)]

    def _draw(self, prompts: list[Tensor], tokens: int, guidance: float) -> Tensor:
        """Codes ``(batch, tokens)``: a prefill of every prompt gives the first, the others are decoded one by one."""
        caches = [DynamicCache(config=self.lm.config.get_text_config()) for _ in prompts]
        rows = 1 if self.sequential else rows_of(guidance)

        def logits_after(last: Tensor | None) -> Tensor:
            given = prompts if last is None else [torch.cat([last] * rows)] * len(prompts)
            logits = [
                self.lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                for ids, cache in zip(given, caches, strict=True)
            ]
            return guided(torch.cat(logits[::-1])[:, -1, : self.codes], guidance)

        return draw(logits_after, tokens)

    def _decode(self, ids: Tensor) -> Tensor:
        """Pixels of token images ``(batch, rows, columns)``."""
        if self.decoder is None:
            return self.lm.model.vqmodel.decode(ids)
        shape = (*ids.shape, self.decoder.config.vq_embed_dim)
        return self.decoder.decode(ids.flatten(1), force_not_quantize=True, shape=shape).sample
