"""The loops that our own pipelines share: encode prompts, denoise with a scheduler, guide, draw token by token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmchar.generation.inputs import Inputs

Networks = Mapping[str, nn.Module]
Steps = int | Sequence[int]


def encode_prompt(encoder: nn.Module, inputs: Inputs, *, batch: int, tokens: int, guidance: float = 1.0) -> Any:
    """What a text encoder says of ``(rows * batch, tokens)`` ids: empty prompts first where guidance makes two rows."""
    ids = inputs.tokens(rows_of(guidance) * batch, tokens, vocabulary=encoder.config.vocab_size)
    return encoder(input_ids=ids)


def embed_prompt(lm: nn.Module, inputs: Inputs, *, batch: int, tokens: int) -> Tensor:
    """A made-up text as a language model takes it, ``(batch, tokens, width)``."""
    table = lm.get_input_embeddings().weight
    return F.embedding(inputs.tokens(batch, tokens, vocabulary=table.shape[0]), table)


def rows_of(guidance: float) -> int:
    """Rows of a batch per sample: classifier-free guidance (above 1) puts one without the prompt before it."""
    return 2 if guidance > 1 else 1


def steps_each(steps: Steps, many: int) -> tuple[int, ...]:
    """Steps of each of ``many`` denoisers; one number stands for all of them."""
    return (steps,) * many if isinstance(steps, int) else tuple(steps)


def denoise(
    network: nn.Module,
    sample: Tensor,
    *,
    scheduler: Any,
    steps: Steps,
    guidance: float = 1.0,
    beside: Tensor | None = None,
    **told: Tensor,
) -> Tensor:
    """A sample ``(batch, channels, …)`` without its noise, after ``steps`` calls of a denoiser.

    ``beside`` gives the denoiser more channels (a small image made large, known frames). What else it is ``told`` has
    `rows_of` rows per sample. The scheduler's times stay on the CPU, which is where its tables are.
    """
    scheduler.set_timesteps(*steps_each(steps, 1))
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, time)
        seen = seen if beside is None else torch.cat([seen, beside], dim=1)
        seen = torch.cat([seen] * rows_of(guidance))
        found = first_of(network(seen, time.expand(seen.shape[0]).to(seen.device), **told))
        sample = scheduler.step(guided(found, guidance), time, sample).prev_sample
    return sample


def denoise_latent(
    unet: nn.Module, vae: nn.Module, inputs: Inputs, *, batch: int, size: Sequence[int], **how: Any
) -> Tensor:
    """A latent, ready to decode, of an image of ``size`` (frames, if any, height, width); `denoise` says ``how``."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    places = (*size[:-2], size[-2] // scale, size[-1] // scale)
    latent = denoise(unet, inputs.normal(batch, unet.config.in_channels, *places), **how)
    return latent / vae.config.scaling_factor


def guided(found: Tensor, guidance: float) -> Tensor:
    """One row per sample from two (without the prompt, with it), further along the way from the first to the second.

    **Source**: classifier-free guidance, arXiv 2207.12598, eq. 6, in Imagen's notation (arXiv 2205.11487, eq. 2).
    """
    if rows_of(guidance) == 1:
        return found
    nothing, prompt = found.chunk(2)
    return nothing + guidance * (prompt - nothing)


def draw(logits_after: Callable[[Tensor | None], Tensor], tokens: int) -> Tensor:
    """Ids ``(batch, tokens)``, the likeliest each time by the ``(batch, vocabulary)`` logits after the last of them."""
    drawn: list[Tensor] = []
    while len(drawn) < tokens:
        drawn.append(logits_after(drawn[-1] if drawn else None).argmax(dim=-1, keepdim=True))
    return torch.cat(drawn, dim=1)


def at_width(tokens: Tensor, width: int) -> Tensor:
    """Tokens ``(batch, tokens, any width)`` cut or padded with zeros, in place of a linear layer that is left out."""
    return F.pad(tokens, (0, width - tokens.shape[-1]))


def first_of(output: Any) -> Tensor:
    """The tensor that a network returns, alone or as the first of its outputs."""
    return output if isinstance(output, Tensor) else output[0]
