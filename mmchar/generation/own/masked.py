"""Models that fill all masked tokens at once, over a few steps, and no library generates with: Muse and Phenaki."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import (
    Networks,
    Steps,
    at_width,
    encode_prompt,
    first_of,
    guided,
    rows_of,
    steps_each,
)


class MusePipeline:
    """Fill a small token image over a few steps, then a large one that sees the small one, then decode to pixels.

    The text reaches each transformer cut or padded to its width: the projections are left out. The library's encoder
    of the small image ends in predictions, of which the first stand for its hidden tokens.

    **Source**: Muse, arXiv 2301.00704, sec. 2.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.networks, self.inputs = networks, inputs

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Images ``(batch, 3, height, width)``; the transformers' positions allow one size only."""
        encoder, (first, then) = self.networks["text_encoder"], steps_each(steps, 2)
        found = encode_prompt(encoder, self.inputs, batch=batch, tokens=prompt_tokens, guidance=guidance)
        text = found.last_hidden_state
        small = self._fill("base", text, batch=batch, steps=first, guidance=guidance)
        known = first_of(self.networks["lowres_encoder"](torch.cat([small] * rows_of(guidance)), return_dict=False))
        seen = known.transpose(1, 2).to(text.dtype)  # [b, predictions, tokens] -> [b, tokens, predictions]
        context = [at_width(part, self._width("superres")) for part in (seen, text)]
        large = self._fill("superres", torch.cat(context, dim=1), batch=batch, steps=then, guidance=guidance)
        return self._decode(large)

    def _fill(self, role: str, context: Tensor, *, batch: int, steps: int, guidance: float) -> Tensor:
        """Token images ``(batch, tokens)`` of one transformer, given ``(rows * batch, context, any width)`` tokens."""
        network, context = self.networks[role], at_width(context, self._width(role))
        mask = network.config.num_vector_embeds - 1

        def predict(ids: Tensor) -> Tensor:
            ids = torch.cat([ids] * rows_of(guidance))
            found = first_of(network(ids, encoder_hidden_states=context, return_dict=False))
            return guided(found, guidance).transpose(1, 2)  # [b, vocabulary, tokens] -> [b, tokens, vocabulary]

        masked = torch.full((batch, network.config.sample_size**2), mask, dtype=torch.int64, device=context.device)
        return fill_masked(predict, masked, steps=steps, mask=mask)

    def _decode(self, ids: Tensor) -> Tensor:
        decoder, side = self.networks["detokenizer"], self.networks["superres"].config.sample_size
        shape = (ids.shape[0], side, side, decoder.config.vq_embed_dim)
        return decoder.decode(ids, force_not_quantize=True, shape=shape).sample

    def _width(self, role: str) -> int:
        return self.networks[role].config.cross_attention_dim


class PhenakiPipeline:
    """Fill the tokens of a whole video over a few steps, then decode them, first through time, then inside frames.

    **Source**: Phenaki, arXiv 2210.02399, sec. 2; one window of frames from text alone.
    """

    def __init__(self, networks: Networks, inputs: Inputs) -> None:
        self.networks, self.inputs = networks, inputs

    def __call__(
        self, *, batch: int, prompt_tokens: int, height: int, width: int, frames: int, steps: Steps, guidance: float
    ) -> Tensor:
        """Videos ``(batch, 3, frames, height, width)``."""
        encoder, maskgit, cvivit = (self.networks[role] for role in ("text_encoder", "maskgit", "cvivit"))
        text = encode_prompt(encoder, self.inputs, batch=batch, tokens=prompt_tokens, guidance=guidance)
        mask = maskgit.config.vocabulary
        grid = {"height": height // cvivit.config.patch, "width": width // cvivit.config.patch}
        shape = (1 + (frames - 1) // cvivit.config.temporal_patch, grid["height"] * grid["width"])

        def predict(ids: Tensor) -> Tensor:
            found = maskgit(torch.cat([ids] * rows_of(guidance)), text.last_hidden_state)
            return guided(found, guidance)[..., :mask]  # never the mask itself

        masked = torch.full((batch, shape[0] * shape[1]), mask, dtype=torch.int64, device=self.inputs.device)
        ids = fill_masked(predict, masked, steps=steps_each(steps, 1)[0], mask=mask)
        return cvivit.decode(ids.unflatten(1, shape), **grid)


def fill_masked(predict: Callable[[Tensor], Tensor], ids: Tensor, *, steps: int, mask: int) -> Tensor:
    """Ids ``(batch, tokens)`` with every ``mask`` replaced, the surest first; each step predicts all of them at once.

    ``predict`` makes logits ``(batch, tokens, vocabulary)`` of ids. After step s of S,
    ``floor(tokens * cos(pi / 2 * s / S))`` are still masked: at once few are kept, in the end none is left.

    **Source**: MaskGIT, arXiv 2202.04200, sec. 3.2 and 3.3 (cosine schedule), which Muse and Phenaki follow; without
    its noise on the confidence.
    """
    tokens = ids.shape[1]
    for step in range(1, steps + 1):
        sure, best = predict(ids).softmax(dim=-1).max(dim=-1)  # [b, tokens, vocabulary] -> [b, tokens]
        unknown = ids == mask
        best, sure = torch.where(unknown, best, ids), sure.masked_fill(~unknown, math.inf)
        left = int(tokens * math.cos(math.pi / 2 * step / steps))
        ids = best.scatter(1, sure.topk(left, dim=1, largest=False).indices, mask)
    return ids
