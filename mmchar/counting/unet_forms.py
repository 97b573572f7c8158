"""Closed forms of U-Nets, by their levels and the types of their blocks."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmchar.counting.closed_forms import Config, Site, Sizes

# How the layers of a U-Net's block attend, by its type.
_BLOCKS = {
    **dict.fromkeys(("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"), "transformer"),
    **dict.fromkeys(("CrossAttnDownBlock3D", "CrossAttnUpBlock3D", "UNetMidBlock3DCrossAttn"), "transformer"),
    "SimpleCrossAttnDownBlock2D": "text added",
    "SimpleCrossAttnUpBlock2D": "text added",
    "UNetMidBlock2DSimpleCrossAttn": "text added",
    **dict.fromkeys(("AttnDownBlock2D", "AttnUpBlock2D", "UNetMidBlock2D"), "positions"),
    **dict.fromkeys(("DownBlock2D", "UpBlock2D", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), ""),
    **dict.fromkeys(("DownBlock3D", "UpBlock3D"), ""),
}


def halvings(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(height, width) at each level of a U-Net: a 3x3 convolution of stride 2 and padding 1 halves and rounds up."""
    sizes = [(height, width)]
    while len(sizes) < levels:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)


def unet_2d_condition(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A text-conditioned U-Net: where a level attends, every layer does so over all positions of that level.

    ``attention_head_dim`` holds the *number* of heads in transformer blocks and the *width* of a head in the others.

    **Source**: diffusers ``unet_2d_condition.py`` and, on that naming, diffusers issue 2011; blocks that add the text
    to the keys of the image: Imagen, arXiv 2205.11487, App. D.3.1.
    """
    if config.get("dual_cross_attention"):
        raise ValueError("no closed form for a U-Net with dual_cross_attention")
    batch, context, levels = sizes["batch"], sizes.get("context", 0), len(config["block_out_channels"])
    numbers, depths, text_only = (
        _per_level(value, levels)
        for value in (
            config["attention_head_dim"],
            config.get("transformer_layers_per_block", 1),
            config.get("only_cross_attention", False),
        )
    )
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    for block, level, tokens, width, layers in _walk(config, sizes, middle):
        number = numbers[level]
        if _BLOCKS[block] == "transformer":
            cross = ("cross", context) if context else ("self", tokens)  # without a text it sees itself
            first = cross if text_only[level] and block != middle else ("self", tokens)
            for kind, kv_len in (first, cross):
                yield Site(kind, batch, number, tokens, kv_len, width // number, layers * depths[level])
        elif _BLOCKS[block] == "text added":
            yield Site("joint", batch, width // number, tokens, tokens + context, number, layers)


def unet_2d(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A U-Net without text: heads of ``attention_head_dim`` channels, in the middle too unless it is switched off."""
    middle = "UNetMidBlock2D" if config.get("add_attention", True) else None
    for block, _, tokens, width, layers in _walk(config, sizes, middle):
        if _BLOCKS[block] == "positions":
            head_dim = config.get("attention_head_dim", 8) or width
            yield Site("self", sizes["batch"], width // head_dim, tokens, tokens, head_dim, layers)


def unet_3d_condition(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A spatio-temporal U-Net: per layer, each frame over its positions and the text, then each position over time.

    A temporal transformer attends twice over the frames (both of its attentions are self attention), and one of them,
    with 8 heads, comes before the first level. Here ``attention_head_dim`` is the width of a head, as its name says.

    **Source**: diffusers ``unet_3d_condition.py``, ``unet_3d_blocks.py`` (``Transformer2DModel(channels // n, n)``).
    """
    batch, frames, head_dim = sizes["batch"], sizes["frames"], config["attention_head_dim"]
    yield Site("temporal", batch * sizes["height"] * sizes["width"], 8, frames, frames, head_dim, 2)
    for block, _, tokens, width, layers in _walk(config, sizes, "UNetMidBlock3DCrossAttn"):
        if _BLOCKS[block] == "transformer":
            heads = width // head_dim
            yield Site("spatial", batch * frames, heads, tokens, tokens, head_dim, layers)
            yield Site("cross", batch * frames, heads, tokens, sizes["context"], head_dim, layers)
            yield Site("temporal", batch * tokens, heads, frames, frames, head_dim, 2 * layers)


def efficient_unet(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Imagen's super-resolution U-Net: a level halves before it attends, once on the way down and once on the way up.

    Heads together are twice as wide as the channels (Imagen, Fig. A.28); keys are the text's, or image and text joined.
    """
    heads = config["attention_heads"]
    levels = halvings(sizes["height"], sizes["width"], len(config["channels"]) + 1)[1:]
    for (rows, columns), width, kind in zip(levels, config["channels"], config["attention"], strict=True):
        if kind:
            kv_len = sizes["context"] + (rows * columns if kind == "joint" else 0)
            yield Site(kind, sizes["batch"], heads, rows * columns, kv_len, 2 * width // heads, 2)


def _walk(config: Config, sizes: Sizes, middle: str | None) -> Iterator[tuple[str, int, int, int, int]]:
    """(block type, level, tokens, width, layers) in the order of a U-Net: down, middle, up with one more layer each."""
    down, up, widths = config["down_block_types"], config["up_block_types"], config["block_out_channels"]
    layers = _per_level(config.get("layers_per_block", 2), len(down))
    bottom = len(down) - 1
    path = [(block, level, layers[level]) for level, block in enumerate(down)]
    path += [(middle, bottom, 1)] if middle else []
    path += [(block, bottom - index, layers[bottom - index] + 1) for index, block in enumerate(up)]
    sides = halvings(sizes["height"], sizes["width"], len(down))
    for block, level, many in path:
        if block not in _BLOCKS:
            raise ValueError(f"no closed form for the U-Net block {block}; there is one for {', '.join(_BLOCKS)}")
        yield block, level, sides[level][0] * sides[level][1], widths[level], many


def _per_level(value: Any, levels: int) -> Sequence[Any]:
    return (value,) * levels if isinstance(value, int) else value
