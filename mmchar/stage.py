"""A stage of a generation, and what the families of models plan their stages with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmchar.models import ModelSpec
from mmchar.request import Request


@dataclass(frozen=True)
class Stage:
    """A part of a generation that one component runs ``repeats`` times with the same shapes.

    ``call`` names a function of :mod:`mmchar.calls`; ``sizes`` are its arguments. Where ``grows`` is set, every
    execution adds that many tokens to ``sizes["cache"]``.
    """

    name: str
    component: str
    call: str
    repeats: int
    sizes: Mapping[str, int]
    grows: int = 0

    def at(self, step: int) -> "Stage":
        """The stage at one of its steps: same shapes, but for a KV cache that has grown."""
        if not self.grows:
            return self
        return replace(self, sizes={**self.sizes, "cache": self.sizes["cache"] + step * self.grows})


def encode_texts(spec: ModelSpec, request: Request) -> Iterator[Stage]:
    """One stage per text encoder; with guidance the empty prompt is encoded beside the prompt."""
    sizes = {"batch": guided_batch(request), "tokens": request.prompt_tokens}
    for role in spec.options["context"]:
        yield Stage(role.replace("text_encoder", "encode_text"), role, "encode_text", 1, sizes)


def guided_batch(request: Request) -> int:
    """Batch of a denoiser or decoder: doubled by classifier-free guidance."""
    return request.batch * (2 if request.guided else 1)


def steps_of(request: Request, many: int) -> tuple[int, ...]:
    """Steps per denoiser; one number stands for all of them."""
    steps = request.steps if isinstance(request.steps, tuple) else (request.steps,) * many
    if len(steps) != many:
        raise ValueError(f"steps={','.join(map(str, steps))}: the model has {many} denoisers; give a number for each")
    return steps


def config(spec: ModelSpec, role: str) -> Mapping[str, Any]:
    """Configuration of a component."""
    return spec.components[role].config
