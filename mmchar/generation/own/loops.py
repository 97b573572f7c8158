"""The loops that our own pipelines share: encode prompts, denoise with a scheduler, guide."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmchar.generation.inputs import Inputs


def encode_prompt(encoder: nn.Module, inputs: Inputs, *, batch: int, tokens: int, rows: int = 1) -> Any:
    """What a text encoder says of ``(rows * batch, tokens)`` ids: empty prompts first where guidance makes two rows."""
    ids = inputs.tokens(rows * batch, tokens, vocabulary=encoder.config.vocab_size)
    return encoder(input_ids=ids)


def rows_of(guidance: float) -> int:
    """Rows of a batch per sample: classifier-free guidance (above 1) puts one without the prompt before it."""
    return 2 if guidance > 1 else 1


def steps_each(steps: int | Sequence[int], many: int) -> tuple[int, ...]:
    """Steps of each of ``many`` denoisers; one number stands for all of them."""
    return (steps,) * many if isinstance(steps, int) else tuple(steps)


def denoise(
    network: nn.Module,
    sample: Tensor,
    *,
    scheduler: Any,
    steps: int,
    guidance: float = 1.0,
    beside: Tensor | None = None,
    told: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """A sample without its noise, after ``steps`` calls of a denoiser; the shape of ``sample``.

    Parameters
    ----------
    sample : Tensor
        Noise ``(batch, channels, …)``.
    scheduler : object
        One of diffusers' schedulers. Its times stay on the CPU, which is where its tables are.
    beside : Tensor, optional
        More channels for the denoiser, ``(batch, more channels, …)``: a small image made large, known frames.
    told : mapping, optional
        Further arguments of the denoiser, with `rows_of` rows per sample.
    """
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, time)
        seen = seen if beside is None else torch.cat([seen, beside], dim=1)
        seen = torch.cat([seen] * rows_of(guidance))
        found = first_of(network(seen, time.expand(seen.shape[0]).to(seen.device), **(told or {})))
        sample = scheduler.step(guided(found, guidance), time, sample).prev_sample
    return sample


def guided(found: Tensor, guidance: float) -> Tensor:
    """One row per sample from two (without the prompt, with it), further along the way from the first to the second.

    **Source**: classifier-free guidance, arXiv 2207.12598, eq. 6, in Imagen's notation (arXiv 2205.11487, eq. 2).
    """
    if rows_of(guidance) == 1:
        return found
    nothing, prompt = found.chunk(2)
    return nothing + guidance * (prompt - nothing)


def at_width(tokens: Tensor, width: int) -> Tensor:
    """Tokens ``(batch, tokens, any width)`` cut or padded with zeros to ``width``.

    Stands where the published model has a linear layer that the zoo leaves out.
    """
    return F.pad(tokens, (0, width - tokens.shape[-1]))


def first_of(output: Any) -> Tensor:
    """The tensor that a network returns, alone or as the first of its outputs."""
    return output if isinstance(output, Tensor) else output[0]
