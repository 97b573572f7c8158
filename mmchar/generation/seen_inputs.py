"""Prompts of a language model that sees: token ids with a place for every image token, and pixels of the right shape.

How pixels are laid out is told by what the model's forward takes; how many tokens an image becomes is asked of the
model itself, on ``meta``.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmchar.generation.run import on_meta
from mmchar.generation.structure import tensors
from mmchar.tracing.known_values import given_if_tensor
from mmchar.tracing.trace import trace

_SIDE = 224  # pixels, where a configuration says none: the usual size of an image encoder
_PATCHES = 32  # on a side of an image, where a model takes any size and none is asked for


def prompt_of(
    model: nn.Module, *, batch: int, prompt_tokens: int, height: int | None, width: int | None, images: int = 1
) -> dict[str, Any]:
    """What ``generate()`` is given for images and a text: ``input_ids`` ``(batch, tokens of images + of text)``.

    All ``images`` of a prompt stand before its text; a mark that a model needs before each takes, before the first, the
    place of a word. A model that does not see is given the text alone. Raises ValueError for several images where the
    model has a place for one.
    """
    sizes = {"height": height, "width": width}
    pixels = pixels_of(model, batch=batch, images=images, prompt_tokens=prompt_tokens, **sizes)
    if not pixels:
        return {"input_ids": torch.ones(batch, prompt_tokens, dtype=torch.int64)}
    place = image_token(model.config)
    if place is None:  # the images are attended to from beside the text
        if images > 1 and len(pixels["pixel_values"]) != batch:
            raise ValueError(f"images={images}, but {type(model).__name__} takes one image in a prompt")
        ids = torch.ones(batch, prompt_tokens, dtype=torch.int64)
        return {"input_ids": ids, **pixels}
    many = image_tokens(model, pixels) // (batch * images)
    special = {value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index"))}
    plain = next(token for token in range(3, 64) if token not in special)
    start = getattr(model.config, "vision_start_token_id", None)
    mark = [] if start is None or prompt_tokens == 1 else [start]
    row = (mark + [place] * many) * images + [plain] * (prompt_tokens - len(mark))
    ids = torch.tensor([row] * batch)
    kinds = (ids == place).long()
    takes = inspect.signature(model.forward).parameters
    named = [name for name in ("mm_token_type_ids", "token_type_ids") if name in takes]
    return {"input_ids": ids, **pixels, **dict.fromkeys(named[:1], kinds)}


def image_token(config: Any) -> int | None:
    """The token id in whose place an image's features are put; None where there is none."""
    parts = (config, getattr(config, "text_config", config))
    names = ("cross_attention_layers", "cross_layer_interval")
    if hasattr(config, names[0]) or any(getattr(part, name, None) for part in parts for name in names):
        return None  # it is attended to from beside the text
    return _said(config, "image_token_id", "image_token_index")


def image_tokens(model: Any, pixels: dict[str, Tensor]) -> int:
    """Tokens that images become, of all images together, as the model's own ``get_image_features`` makes them."""
    twin = on_meta(model)
    see = getattr(twin, "get_image_features", None) or twin.model.get_image_features
    takes = inspect.signature(see).parameters
    asked = {name: value for name, value in pixels.items() if name in takes or name == "pixel_values"}
    kept: list[Any] = []
    ready = tree_map(given_if_tensor, asked)
    trace(twin, lambda: kept.append(see(**ready)))
    out = getattr(kept[0], "pooler_output", kept[0])
    return sum(tensor.shape[:-1].numel() for tensor in tensors(out))


def pixels_of(
    model: nn.Module, *, batch: int, height: int | None, width: int | None, prompt_tokens: int, images: int
) -> dict[str, Tensor]:
    """Pixels and what goes with them, as the model's forward takes them; none for a blind one.

    They are of all images, ``(batch * images, …)``, or of each prompt's, ``(batch, images, …)``.
    """
    takes = inspect.signature(model.forward).parameters
    vision = getattr(model.config, "vision_config", None) or getattr(model.config, "vq_config", None)
    if "pixel_values" not in takes or vision is None:
        return {}
    many, side, dtype = batch * images, _said(vision, "image_size", "resolution"), next(model.parameters()).dtype
    channels = _said(vision, "num_channels", "in_channels", "in_chans") or 3

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=torch.int64)

    if "image_grid_thw" in takes:
        patch, frames = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
        side = side or _PATCHES * patch
        rows, columns = (height or side) // patch, (width or side) // patch
        pixels = zeros(many * rows * columns, channels * frames * patch * patch)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]] * many)}
    side = side or _SIDE
    height, width = height or side, width or side
    if "spatial_shapes" in takes:
        rows, columns = height // vision.patch_size, width // vision.patch_size
        return {
            "pixel_values": zeros(many, rows * columns, channels * vision.patch_size**2),
            "spatial_shapes": torch.tensor([[rows, columns]] * many),
            "pixel_attention_mask": ones(many, rows * columns),
        }
    sizes = torch.tensor([[height, width]] * many)
    if getattr(model.config, "image_grid_pinpoints", None):
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        tiles = image_size_to_num_patches([height, width], model.config.image_grid_pinpoints, side)
        return {"pixel_values": zeros(many, tiles, channels, side, side), "image_sizes": sizes}
    if "aspect_ratio_ids" in takes:
        tiles = vision.max_num_tiles
        return {
            "pixel_values": zeros(batch, images, tiles, channels, side, side),
            "aspect_ratio_ids": torch.full((batch, images), len(vision.supported_aspect_ratios)),
            "aspect_ratio_mask": ones(batch, images, tiles),
            "cross_attention_mask": ones(batch, prompt_tokens, images, tiles),
        }
    if "image_attention_mask" in takes:
        pixels = zeros(batch, images, channels, side, side)
        return {"pixel_values": pixels, "image_attention_mask": ones(batch, prompt_tokens, images)}
    if "pixel_attention_mask" in takes:  # several images a prompt, of which black ones are none
        return {"pixel_values": torch.ones(batch, images, channels, height, width, dtype=dtype)}
    pixels = zeros(many, channels, height, width)
    own = {"image_sizes": sizes} if vision.model_type == "pixtral" else {}  # images of any size, each told its own
    return {"pixel_values": pixels, **own}


def _said(config: Any, *names: str) -> Any:
    """The first of some fields that a configuration has a value for; of several sizes the first."""
    found = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
    return found[0] if isinstance(found, list | tuple) and found else found
