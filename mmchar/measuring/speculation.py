"""Self-speculative decoding: the model without some of its layers drafts tokens, the whole model verifies them at once.

With random weights no draft is ever right for a reason, so the two kinds of step are measured and the rate of accepted
tokens is stated; what follows is projected from the measured steps.

Sources: the draft, LayerSkip, arXiv 2404.16710, and Draft & Verify, arXiv 2309.08168 (layers skipped all along the
depth); tokens and time per round, Leviathan et al., arXiv 2211.17192, equation 1 and theorem 3.8.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmchar.generation.inputs import Inputs
from mmchar.generation.recording import Call, Stage
from mmchar.generation.structure import tensors
from mmchar.measuring.optimization.execution import preparer, with_values
from mmchar.measuring.target import Settings
from mmchar.measuring.timing import Work, measure_time
from mmchar.models.specs import Model


def tokens_per_round(acceptance: float, draft_tokens: int) -> float:
    """Tokens that one round yields on average: those accepted up to the first refusal, and one of the verification."""
    if acceptance == 1:
        return draft_tokens + 1
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def time_per_token_s(draft_s: float, verify_s: float, *, acceptance: float, draft_tokens: int) -> float:
    """Seconds per token of a round that drafts ``draft_tokens`` tokens one by one and verifies them in one step."""
    return (draft_tokens * draft_s + verify_s) / tokens_per_round(acceptance, draft_tokens)


def measure_speculation(model: Model, stage: Stage, settings: Settings) -> dict[str, Any]:
    """Seconds per token of one decode stage with self-speculation, projected from a measured draft and verify step.

    ``draft_s`` and ``verify_s`` are medians of one step; ``acceptance`` and ``draft_tokens`` are what was stated.
    """
    levers, module, stage = settings.levers, model.components[stage.component], with_values(model, stage)
    stated: dict[str, Any] = {"acceptance": float(levers.acceptance or 0), "draft_tokens": levers.draft_tokens}

    def median_s(prepare: Callable[[], Work]) -> float:
        timed = measure_time(prepare, device=model.device, samples=settings.samples, warmup=settings.warmup)
        return timed.median_s

    with skipped(module, levers.layer_skip) as kept:
        draft_s = median_s(preparer(model, stage, levers))
    verify_s = median_s(lambda: _verify_work(model, stage, levers.draft_tokens + 1))
    return {
        "draft_s": draft_s,
        "verify_s": verify_s,
        "layers": len(find_layers(module)),
        "draft_layers": kept,
        "tokens_per_round": tokens_per_round(**stated),
        "time_per_token_s": time_per_token_s(draft_s, verify_s, **stated),
        **stated,
        "time_kind": "projected from measured steps; the acceptance is stated",
    }


def _verify_work(model: Model, stage: Stage, tokens: int) -> Work:
    """The language model on ``tokens`` tokens at once after the stage's filled cache, with logits of all of them."""
    module = model.components[stage.component]
    cache, run = Call((stage.call.cache,), {}).copied()[0][0], stage.called(module)
    batch = tensors((stage.call.args, stage.call.kwargs))[0].shape[0]
    vocabulary = module.config.get_text_config().vocab_size
    ids = Inputs(model.device, model.dtype).tokens(batch, tokens, vocabulary=vocabulary)
    return lambda: run(input_ids=ids, past_key_values=cache, use_cache=True)


@contextmanager
def skipped(module: nn.Module, every: int) -> Iterator[int]:
    """The language model without every ``every``-th of its layers; how many are left. All are back afterwards."""
    holder, name, layers = _holder(module)
    kept = [layer for index, layer in enumerate(layers, start=1) if index % every]
    setattr(holder, name, nn.ModuleList(kept))
    try:
        yield len(kept)
    finally:
        setattr(holder, name, layers)


def find_layers(module: nn.Module) -> nn.ModuleList:
    """The decoder layers of a component's language model."""
    return _holder(module)[2]


def _holder(module: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the decoder layers, under which name, and they: the longest list that makes causal blocks.

    A vision tower of the same component may have more layers, but they are not causal.
    """
    found = [
        (part, name, child)
        for part in module.modules()
        for name, child in part.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and _is_causal(child[0])
    ]
    if not found:
        raise ValueError(f"layer_skip is not possible: {type(module).__name__} has no list of causal decoder layers")
    return max(found, key=lambda each: len(each[2]))


def _is_causal(layer: nn.Module) -> bool:
    return any(getattr(part, "is_causal", False) is True for part in layer.modules())
