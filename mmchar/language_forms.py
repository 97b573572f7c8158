"""Closed forms of models that see, hear or draw with a language model: what each attends to, from sizes alone.

A composite class runs one of its parts per stage; which one shows in the sizes: ``images`` for a vision tower,
``patches`` or ``context`` for an adaptor, ``tokens`` or ``cache`` for the language model.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmchar.closed_forms import Config, Site, Sizes, causal_lm, clip_text


def patches(vision: Config) -> int:
    """Patches of a square image at the tower's own size."""
    return (vision["image_size"] // vision["patch_size"]) ** 2


def next_tiles(config: Config, height: int, width: int) -> tuple[int, int]:
    """(tiles of the vision tower, tokens of the language model) of LLaVA-NeXT for an image of any size.

    The image is fitted into the best of the pinpoint sizes, cut into tiles, and encoded beside one small copy of the
    whole. Rows or columns of patches that hold only padding are dropped, and each row left ends with a newline token.

    **Source**: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next); ``select_best_resolution`` and
    ``_get_unpadded_features`` of transformers 5.23.
    """
    vision = config["vision_config"]
    tile, side = vision["image_size"], vision["image_size"] // vision["patch_size"]
    best = max(config["image_grid_pinpoints"], key=lambda size: _fit(height, width, *size))
    rows, columns = best[0] // tile, best[1] // tile
    high, wide = rows * side, columns * side
    if width / height > wide / high:
        high -= (high - int(round(height * wide / width, 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * high / height, 7))) // 2 * 2
    return rows * columns + 1, high * wide + high + side * side


def _fit(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """How well a canvas fits an image: pixels of it kept, then (negated) pixels of the canvas wasted."""
    scale = min(columns / width, rows / height)
    kept = min(int(width * scale) * int(height * scale), width * height)
    return kept, kept - rows * columns


def clip(config: Config, sizes: Sizes) -> Iterator[Site]:
    """CLIP: the image tower over all patches and a class token, or the text tower causally over the prompt."""
    if "tokens" in sizes:
        yield from clip_text(config["text_config"], sizes)
    elif "classes" not in sizes:
        yield from vision_tower(config["vision_config"], sizes)


def vision_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A vision transformer over all patches of each image or tile, and a class token."""
    heads, tokens = config["num_attention_heads"], patches(config) + 1
    head_dim = config["hidden_size"] // heads
    yield Site("self", sizes["images"], heads, tokens, tokens, head_dim, config["num_hidden_layers"])


def llava(config: Config, sizes: Sizes) -> Iterator[Site]:
    """LLaVA and LLaVA-NeXT: a vision tower, an MLP without attention, a causal language model."""
    if "images" not in sizes:
        yield from causal_lm(config["text_config"], sizes)
    elif "patches" not in sizes:
        yield from vision_tower(config["vision_config"], sizes)


def blip2(config: Config, sizes: Sizes) -> Iterator[Site]:
    """BLIP-2: a vision tower; queries over themselves and, in every other layer, the image; a causal language model."""
    if "images" not in sizes:
        yield from causal_lm(config["text_config"], sizes)
    elif "context" not in sizes:
        yield from vision_tower(config["vision_config"], sizes)
    else:
        former, queries = config["qformer_config"], config["num_query_tokens"]
        heads, layers = former["num_attention_heads"], former["num_hidden_layers"]
        head_dim, crossing = former["hidden_size"] // heads, -(-layers // former["cross_attention_frequency"])
        yield Site("self", sizes["images"], heads, queries, queries, head_dim, layers)
        yield Site("cross", sizes["images"], heads, queries, sizes["context"], head_dim, crossing)


LANGUAGE_FORMS: dict[str, Callable[[Config, Sizes], Iterator[Site]]] = {
    "CLIPModel": clip,
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava,
    "Blip2ForConditionalGeneration": blip2,
}
