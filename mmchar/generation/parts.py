"""Parts of one network that do another thing than the rest: what sees, hears or projects inside a language model.

They are told by the name that the library gives them inside the network.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from torch import nn

from mmchar.generation.structure import copied

_NAMES = (
    (
        re.compile(r"(vision|visual|vision_tower|vision_model|vision_encoder|image_encoder|vision_backbone)"),
        "encode_image",
    ),
    (re.compile(r"(audio_tower|audio_encoder|speech_encoder)"), "encode_audio"),
    (
        re.compile(
            r"(multi_modal_projector|mm_projector|connector|aligner|qformer|language_projection|perceiver_resampler"
            r"|embed_vision)"
        ),
        "project_image",
    ),
    (re.compile(r"(audio_projector|embed_audio)"), "project_audio"),
)


def name_of(method: str) -> str | None:
    """The stage of a part, by the method ``model.vision_tower.forward``; None of what is no part."""
    last = method.removesuffix(".forward").rpartition(".")[2]
    if not method.endswith(".forward"):
        return None
    return next((stage for names, stage in _NAMES if names.fullmatch(last)), None)


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
