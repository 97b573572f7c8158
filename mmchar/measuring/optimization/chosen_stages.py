"""Which stages of a plan are measured: those that are named, guidance split or not, and which decode speculatively.

Split, classifier-free guidance is two executions of a batch, one after the other, in place of one of the doubled batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmchar.measuring.optimization.ladder import Levers
from mmchar.request import Request

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage


def chosen(
    plan: "Sequence[Stage]", request: Request, *, stages: Sequence[str] | None, levers: Levers, model: str
) -> "tuple[Stage, ...]":
    """The stages of a plan that are measured; what is not there, or a lever that finds nothing, is refused."""
    found = choose_stages(plan, stages, model=model)
    if levers.cfg == "split":
        found = split_guidance(found, request, model=model)
    check_speculation(levers, found, model=model)
    return found


def choose_stages(plan: "Sequence[Stage]", names: Sequence[str] | None, *, model: str) -> "tuple[Stage, ...]":
    """The stages of a plan that are asked for by name, in the plan's order; all where none is named."""
    if names is None:
        return tuple(plan)
    have = [stage.name for stage in plan]
    for name in names:
        if name not in have:
            raise ValueError(f"{model} has no stage {name!r} for this request; it has {', '.join(have)}")
    return tuple(stage for stage in plan if stage.name in names)


def split_guidance(plan: "Sequence[Stage]", request: Request, *, model: str) -> "tuple[Stage, ...]":
    """The stages with every execution of a doubled batch as two of a single one; refused where there is none."""
    doubled = 2 * (request.batch or 1)
    split = {stage.name for stage in plan if request.guided and _is_loop(stage) and _batch(stage) == doubled}
    if not split:
        raise ValueError(f"cfg 'split' is not possible: no stage of {model} runs guidance as a doubled batch here")
    return tuple(_halved(stage, doubled) if stage.name in split else stage for stage in plan)


def _is_loop(stage: "Stage") -> bool:
    named = stage.name.startswith(("denoise", "parallel_decode", "decode"))
    return named and stage.repeats > 1 and not stage.grows


def _batch(stage: "Stage") -> int | None:
    """The batch of a call: the first dimension of its first tensor."""
    from mmchar.generation.structure import tensors

    return next((tensor.shape[0] for tensor in tensors((stage.call.args, stage.call.kwargs)) if tensor.dim()), None)


def _halved(stage: "Stage", doubled: int) -> "Stage":
    """Twice as many executions of half the batch: the first half of every tensor with a doubled batch."""
    from mmchar.generation.recording import Call

    args, kwargs = stage.call.copied(lambda path, leaf: _half(path, leaf, doubled))
    return replace(stage, repeats=2 * stage.repeats, call=Call(args, kwargs))


def _half(path: Any, leaf: Any, doubled: int) -> Any:
    """Half of a tensor of a doubled batch; what a text encoder said may be there once per frame."""
    import torch

    from mmchar.tracing.known_values import known

    if not isinstance(leaf, torch.Tensor) or not leaf.dim():
        return leaf
    per_frame = any("encoder" in part for part in path if isinstance(part, str)) and leaf.shape[0] % doubled == 0
    if leaf.shape[0] != doubled and not per_frame:
        return leaf
    many = leaf.shape[0] // 2
    half, values = leaf[:many], known(leaf)
    if leaf.is_meta and values is not None:
        half.known = values[:many]
    return half


def decodes(stage: "Stage") -> bool:
    """Whether a stage decodes tokens with a causal language model alone; other decoders have no verify step here."""
    runs = stage.name.startswith("decode") and stage.method.endswith("forward")
    return runs and stage.grows and not hasattr(stage.call.cache, "cross_attention_cache")


def check_speculation(levers: Levers, plan: "tuple[Stage, ...]", *, model: str) -> None:
    """Refuse a layer skip where no stage decodes tokens one by one with a causal language model."""
    if levers.layer_skip and not any(map(decodes, plan)):
        raise ValueError(f"layer_skip is not possible: no stage of {model} decodes with a causal language model alone")
