"""What a stage's network is called with, as the whole numbers that closed forms take: batch, frames, tokens, cache.

Read off the shapes of the call's tensors and the length of its cache; nothing is run.
"""

import re
from collections.abc import Mapping
from typing import Any

Sizes = dict[str, int]
Shapes = Mapping[str, tuple[int, ...]]  # of every tensor of a call, by its argument's name or place

# What the dimensions of a network's main argument are, by their number; the classes, or parts of them, that lay it out
# in another way.
_LAYOUT = {
    1: "batch",
    2: "batch tokens",
    3: "batch tokens channels",
    4: "batch channels height width",
    5: "batch channels frames height width",
}
_LAYOUTS = {
    **dict.fromkeys((("UVit2DModel", 3), ("VQModel", 3)), "batch height width"),  # ids of image tokens
    ("Emu3ForConditionalGeneration.decode", 3): "batch height width",
    ("StableAudioDiTModel", 3): "batch channels frames",
    ("Qwen2_5OmniForConditionalGeneration.audio_tower", 2): "channels frames",
    ("CViViT", 3): "batch frames tokens",
    ("ZImageTransformer2DModel", 4): "channels frames height width",  # one of a list
    ("MllamaForConditionalGeneration", 6): "batch images tiles channels height width",
    **dict.fromkeys(
        (
            ("CogVideoXTransformer3DModel", 5),
            ("UNetSpatioTemporalConditionModel", 5),
        ),
        "batch frames channels height width",
    ),
}
_MAIN = ("decoder_input_ids", "input_ids", "inputs_embeds")  # else the first tensor
_CONTEXTS = re.compile(r"encoder_(?:hidden_states|outputs\.last_hidden_state)(_\w+)?")
_OTHERS = {
    ("ZImageTransformer2DModel", "2.0"): "context",
    ("MaskedTokenTransformer", "1"): "context",
    ("HunyuanVideo15Transformer3DModel", "image_embeds"): "context_image",
    ("HSTU", "1.0.0"): "cache",  # keys of the first layer, (batch, heads, tokens, head_dim)
}
_SEEN = {"image_attention_mask": 2, "cross_attention_mask": 2}  # (batch, tokens, images, …): images that text sees
_NAMED = {"num_frames": "frames", "height": "height", "width": "width"}  # of a latent that is given as a sequence


def sizes_at(stage: Any, cls: str, step: int = 0) -> Sizes:
    """The sizes of one execution of a stage.

    Parameters
    ----------
    stage : Stage
        One of a plan.
    cls : str
        The class of its network.
    step : int
        Which of its executions, where a cache grows.

    Returns
    -------
    dict
        ``batch``, ``tokens``, ``frames``, ``height`` and ``width`` of the network's main argument, as far as it has
        them; ``cache``, the tokens that are remembered; ``context`` (``context_2``, …), those of other sequences that
        it attends to; ``images`` that a text sees; ``text_0``, …, the tokens that a mask leaves of each text.
    """
    shapes, found = shapes_at(stage, step)
    main = next((name for name in _MAIN if name in shapes), next(iter(shapes), ""))
    shape = shapes.get(main, ())
    names = (f"{cls}.{part_of(stage.method)}", cls)
    special = (_LAYOUTS[name, len(shape)] for name in names if (name, len(shape)) in _LAYOUTS)
    layout = next(special, _LAYOUT.get(len(shape), ""))
    found |= dict(zip(layout.split(), shape, strict=False))
    found |= _beside(cls, shapes)
    if "batch" not in found:  # a list of samples
        found["batch"] = sum(name.startswith(main.rpartition(".")[0] + ".") for name in shapes)
    return found | _said(stage)


def part_of(method: str) -> str:
    """The part of a network that ``model.vision_tower.forward`` calls: a module, a method, or ``forward`` itself."""
    return method.removesuffix(".forward").rpartition(".")[2]


def shapes_at(stage: Any, step: int) -> tuple[dict[str, tuple[int, ...]], Sizes]:
    """Shapes of all tensors of a stage's call at a step, by name (``past.0.1``), and ``cache``, where it has one."""
    from torch import Tensor

    from mmchar.generation import caches
    from mmchar.generation.structure import is_cache, leaves

    grown = dict(zip(stage.growth.places, stage.growth.dims[step], strict=True)) if stage.growth else {}
    shapes: dict[str, tuple[int, ...]] = {}
    found: Sizes = {}
    for path, leaf in leaves((stage.call.args, dict(stage.call.kwargs)), whole=is_cache):
        if isinstance(leaf, Tensor):
            name = ".".join(map(str, path[1:]))
            shapes[name] = tuple(grown.get((path, dim), size) for dim, size in enumerate(leaf.shape))
        elif is_cache(leaf):
            found["cache"] = grown.get(None, caches.length(leaf))
    return shapes, found


def _beside(cls: str, shapes: Shapes) -> Sizes:
    """Sizes of what a network is given beside its main argument."""
    found: Sizes = {}
    for name, shape in shapes.items():
        if fits := _CONTEXTS.fullmatch(name):
            found["context" + (fits[1] or "")] = shape[-2]
        elif other := _OTHERS.get((cls, name)):
            found[other] = shape[-2]
        elif name in _SEEN:
            found["images"] = shape[_SEEN[name]]
    return found


def _said(stage: Any) -> Sizes:
    """Sizes that a call says in numbers: of a latent given as a sequence, of patches of images, of masked texts."""
    from torch import Tensor

    from mmchar.tracing.known_values import known

    kwargs = stage.call.kwargs
    said = {size: kwargs[name] for name, size in _NAMED.items() if type(kwargs.get(name)) is int}
    grid = kwargs.get("grid_thw")
    values = known(grid) if isinstance(grid, Tensor) else None
    if values is not None:
        _, said["height"], said["width"] = (int(size) for size in values[0])
        said["images"] = len(values)
    mask = kwargs.get("encoder_attention_mask")
    values = known(mask) if isinstance(mask, Tensor) else None
    if values is not None and values.dim() == 2:
        said |= {f"text_{sample}": int(row.sum()) for sample, row in enumerate(values)}
    return said
