"""What a stage's network is called with, as the whole numbers that closed forms take: batch, frames, tokens, cache.

Read off the shapes of the call's tensors and the length of its cache; nothing is run.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

Sizes = dict[str, int]
Shapes = dict[str, tuple[int, ...]]  # of every tensor of a call, by its argument's name or place (``past.0.1``)

# The dimensions of a network's main argument, by their number, and of classes that lay it out in another way.
_LAYOUT = {
    1: "batch",
    2: "batch tokens",
    3: "batch tokens channels",
    4: "batch channels height width",
    5: "batch channels frames height width",
}
_LAYOUTS = {
    ("VQModel", 3): "batch height width",  # ids of image tokens
    ("CViViT", 3): "batch frames tokens",
    ("CogVideoXTransformer3DModel", 5): "batch frames channels height width",
}
_MAIN = ("decoder_input_ids", "input_ids", "inputs_embeds")  # else the first tensor
_CONTEXTS = re.compile(r"encoder_(?:hidden_states|outputs\.last_hidden_state)(_\w+)?")
_OTHERS = {
    ("MaskedTokenTransformer", "1"): "context",
    ("HunyuanVideo15Transformer3DModel", "image_embeds"): "context_image",
    ("HSTU", "1.0.0"): "cache",  # keys of the first layer, (batch, heads, tokens, head_dim)
}
_NAMED = {"num_frames": "frames", "height": "height", "width": "width"}  # of a latent that is given as a sequence


def sizes_at(stage: "Stage", cls: str, step: int = 0) -> Sizes:
    """The sizes of one execution of a stage of a network of class ``cls``, at a step where a cache grows.

    ``batch``, ``tokens``, ``frames``, ``height`` and ``width`` of the network's main argument, as far as it has them;
    ``cache``, the tokens that are remembered; ``context`` (``context_2``, …), those of other sequences that it attends
    to; ``images``, of which each has its own ``height`` and ``width`` in patches.
    """
    shapes, found = _shapes_at(stage, step)
    main = next((name for name in _MAIN if name in shapes), next(iter(shapes), ""))
    shape = shapes.get(main, ())
    layout = _LAYOUTS.get((cls, len(shape))) or _LAYOUT.get(len(shape), "")
    found |= dict(zip(layout.split(), shape, strict=False))
    for name, shape in shapes.items():
        if fits := _CONTEXTS.fullmatch(name):
            found["context" + (fits[1] or "")] = shape[-2]
        elif other := _OTHERS.get((cls, name)):
            found[other] = shape[-2]
    kwargs = stage.call.kwargs
    found |= {size: kwargs[name] for name, size in _NAMED.items() if type(kwargs.get(name)) is int}
    return found | _images(stage)


def part_of(method: str) -> str:
    """The part of a network that ``model.vision_tower.forward`` calls: a module, a method, or ``forward`` itself."""
    return method.removesuffix(".forward").rpartition(".")[2]


def _shapes_at(stage: "Stage", step: int) -> tuple[Shapes, Sizes]:
    """Shapes of all tensors of a stage's call at a step, and ``cache``, where it has one."""
    from torch import Tensor

    from mmchar.generation import caches
    from mmchar.generation.structure import is_cache, leaves

    grown = dict(zip(stage.growth.places, stage.growth.dims[step], strict=True)) if stage.growth else {}
    shapes: Shapes = {}
    found: Sizes = {}
    for path, leaf in leaves((stage.call.args, dict(stage.call.kwargs)), whole=is_cache):
        if isinstance(leaf, Tensor):
            name = ".".join(map(str, path[1:]))
            shapes[name] = tuple(grown.get((path, dim), size) for dim, size in enumerate(leaf.shape))
        elif is_cache(leaf):
            found["cache"] = grown.get(None, caches.length(leaf))
    return shapes, found


def _images(stage: "Stage") -> Sizes:
    """Images of any size, and the patches of the first, as a call of Qwen-VL's tower says them in numbers."""
    from mmchar.tracing.known_values import known

    values = known(stage.call.kwargs["grid_thw"]) if "grid_thw" in stage.call.kwargs else None
    if values is None:
        return {}
    _, height, width = values[0].tolist()
    return {"images": len(values), "height": height, "width": width}
