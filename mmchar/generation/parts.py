"""Parts of one network that do another thing than the rest: what sees, hears or projects inside a language model.

They are told by the name that the library gives them inside the network.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from torch import nn

from mmchar.generation.structure import copied

_STAGES = {
    "encode_image": "vision visual vision_tower vision_model vision_encoder image_encoder vision_backbone",
    "encode_audio": "audio_tower audio_encoder speech_encoder",
    "project_image": "multi_modal_projector mm_projector connector aligner qformer language_projection"
    " perceiver_resampler embed_vision",
    "project_audio": "audio_projector embed_audio",
}
_STAGE_OF = {part: stage for stage, parts in _STAGES.items() for part in parts.split()}


def name_of(method: str) -> str | None:
    """The stage of a part, by the method ``model.vision_tower.forward``; None of what is no part."""
    path, _, last = method.rpartition(".")
    return _STAGE_OF.get(path.rpartition(".")[2]) if last == "forward" else None


def parts_of(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost parts of a network that holds a language model."""
    if not hasattr(network, "generate"):
        return
    inside: set[int] = set()
    for path, module in network.named_modules():
        if path and id(module) not in inside and name_of(f"{path}.forward"):
            inside |= {id(child) for child in module.modules()}
            yield module


def answered(network: nn.Module, outputs: Mapping[str, Any], work: Callable[[], Any]) -> Callable[[], Any]:
    """Work during which parts of a network are not run, but answered with what they returned before."""
    if not outputs:
        return work

    def run() -> Any:
        with ExitStack() as stack:
            for method, output in outputs.items():
                module = network.get_submodule(method.rpartition(".")[0])
                stack.enter_context(patch.object(module, "forward", _answer(output)))
            return work()

    return run


def _answer(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: copied(output)  # a network may write to it
