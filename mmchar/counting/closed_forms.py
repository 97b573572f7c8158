"""Closed forms: what a network attends to, from its configuration and its stage's sizes alone.

They are the second route to the lengths of the operator table (`seqlen`), so they know nothing of torch and make no
forward. A form is of a class, or of a part of it that is called by itself (``Class.part``); a few general ones serve
most of them. Sizes are those of `stage_sizes.sizes_at`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Config = Mapping[str, Any]
Sizes = Mapping[str, int]
Form = Callable[[Config, Sizes], Iterator["Site"]]

# What configurations call the same thing.
_HEADS = ("num_attention_heads", "num_heads", "heads")
_HEAD_DIM = ("head_dim", "attention_head_dim", "d_kv", "qk_dim")
_WIDTH = ("hidden_size", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "num_layers", "layers", "depth")


class Site(NamedTuple):
    """Attention calls of one shape in one execution of a stage; q is ``(batch, heads, q_len, head_dim)``."""

    attention: str
    batch: int
    heads: int
    q_len: int
    kv_len: int
    head_dim: int
    calls: int


def nothing(_config: Config, _sizes: Sizes) -> Iterator[Site]:
    """A component without an attention core: convolutions only, or attention written out as matrix products."""
    yield from ()


def dimensions(config: Config, part: str = "") -> tuple[int, int, int]:
    """(heads, head_dim, layers) of a transformer, or of a part like ``encoder``."""
    heads = _first(config, (f"{part}_attention_heads",) if part else _HEADS)
    layers = _first(config, (f"{part}_layers",) if part else _LAYERS)
    return heads, _first(config, _HEAD_DIM) or _first(config, _WIDTH) // heads, layers


def grid(config: Config, sizes: Sizes) -> tuple[int, int]:
    """(frames, tokens of each) of images or latents that are cut into patches."""
    patch = config.get("patch_size") or 1
    sides = [patch, patch] if isinstance(patch, int) else patch
    deep, high, wide = sides if len(sides) == 3 else (config.get("patch_size_t") or 1, *sides)
    return sizes.get("frames", 1) // deep, (sizes["height"] // high) * (sizes["width"] // wide)


def transformer(kind: str, *, part: str = "", within: str = "", marks: int = 0) -> Form:
    """Every layer over all tokens or patches, ``marks`` more, and the cache; then over a context, where there is one.

    Grouped-query attention stores fewer heads of keys and values; each query head still makes a similarity matrix.

    Parameters
    ----------
    kind : {"self", "causal"}
    part, within : str
        Prefix of the part's words in a configuration, and the name of a configuration inside of it.

    **Source**: of patches DiT, arXiv 2212.09748, section 3.2; PixArt, arXiv 2310.00426, section 2.3; Wan, arXiv
    2503.20314, section 4.2; LTX-Video, arXiv 2501.00103, section 2.2.
    """

    def form(config: Config, sizes: Sizes) -> Iterator[Site]:
        config = config.get(within, config)
        heads, head_dim, layers = dimensions(config, part)
        tokens = _tokens(config, sizes) + marks
        yield Site(kind, sizes["batch"], heads, tokens, sizes.get("cache", 0) + tokens, head_dim, layers)
        if context := sizes.get("context"):
            yield Site("cross", sizes["batch"], heads, tokens, context, head_dim, layers)

    return form


def joint(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Every block, double or single, over all patches and all texts in one sequence.

    HunyuanVideo has refiners over the prompt before; dual blocks of SD 3.5 medium attend over the image alone as well.

    **Source**: SD3, arXiv 2403.03206, section 4; FLUX, diffusers ``transformer_flux.py``; CogVideoX, arXiv 2408.06072,
    section 2.2; HunyuanVideo, arXiv 2412.03603, section 4.2; Qwen-Image, arXiv 2508.02324, section 3.
    """
    batch, (heads, head_dim, layers) = sizes["batch"], dimensions(config)
    image, text = _tokens(config, sizes), sizes["context"]
    whole = image + sum(length for name, length in sizes.items() if name.startswith("context"))
    yield Site("joint", batch, heads, whole, whole, head_dim, layers + config.get("num_single_layers", 0))
    if refiners := config.get("num_refiner_layers"):
        yield Site("self", batch, heads, text, text, head_dim, refiners)
    if dual := config.get("dual_attention_layers"):
        yield Site("self", batch, heads, image, image, head_dim, len(dual))


def prior(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A prior over an image embedding: text tokens, pooled text, time, the noisy embedding and a token to read out."""
    tokens = sizes["context"] + config.get("additional_embeddings", 4)
    heads, head_dim, layers = dimensions(config)
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)


def autoencoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A decoder (KL or VQ): one head over all latent positions, of all frames, in its middle block."""
    if config.get("mid_block_add_attention", True):
        tokens = sizes.get("tokens") or sizes.get("frames", 1) * sizes["height"] * sizes["width"]
        yield Site("self", sizes["batch"], 1, tokens, tokens, config["block_out_channels"][-1], 1)


def image_encoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The encoder of an `autoencoder`, which halves an image at every level but the last."""
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    yield from autoencoder(config, {**sizes, "height": sizes["height"] // scale, "width": sizes["width"] // scale})


def frame_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The decoder of Wan and Qwen-Image: one head over each latent frame, in its middle, one frame after the other."""
    tokens, base = sizes["height"] * sizes["width"], config.get("decoder_base_dim") or config["base_dim"]
    yield Site("self", sizes["batch"], 1, tokens, tokens, base * config["dim_mult"][-1], sizes.get("frames", 1))


def tiled_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanVideo's autoencoder decodes four latent frames and the next at a time, every three frames.

    **Source**: diffusers ``autoencoder_kl_hunyuan_video.py``, ``_temporal_tiled_decode``.
    """
    frames = sizes["frames"]
    for tile in [min(5, frames - start) for start in range(0, frames, 3)] if frames > 4 else [frames]:
        yield from autoencoder(config, {**sizes, "frames": tile})


def video_tokenizer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """C-ViViT's decoder: each position over time, then each frame over its positions."""
    batch, frames, tokens = sizes["batch"], sizes["frames"], sizes["tokens"]
    heads, head_dim = config["heads"], config["dim"] // config["heads"]
    yield Site("temporal", batch * tokens, heads, frames, frames, head_dim, config["temporal_layers"])
    yield Site("spatial", batch * frames, heads, tokens, tokens, head_dim, config["spatial_layers"])


def qwen_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen-VL's tower: each image over all its patches or, in most layers of 2.5, within windows.

    Images of any size are not padded to one another, so each is a call of its own. A window at the edge is smaller.
    """
    config = config["vision_config"]
    heads, head_dim, layers = dimensions(config)
    rows, columns, images = sizes["height"], sizes["width"], sizes["images"]
    whole = len(config["fullatt_block_indexes"]) if "fullatt_block_indexes" in config else layers
    yield Site("self", 1, heads, rows * columns, rows * columns, head_dim, images * whole)
    if whole == layers:
        return
    side = config["window_size"] // config["patch_size"]
    for high, down in ((side, rows // side), (rows % side, 1)):
        for wide, across in ((side, columns // side), (columns % side, 1)):
            if calls := bool(high * wide) * down * across:
                yield Site("self", 1, heads, high * wide, high * wide, head_dim, images * (layers - whole) * calls)


def speech_encoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """SeamlessM4T's: all frames, and in each layer of the length adaptor what its strided convolutions leave."""
    for site in transformer("self", part="speech_encoder")(config, sizes):
        yield site
        frames, stride, adapters = site.q_len, config["adaptor_stride"], config["num_adapter_layers"]
        for _ in range(adapters):
            frames = (frames + stride // 2 * 2 - config["adaptor_kernel_size"]) // stride + 1
        yield site._replace(q_len=frames, kv_len=frames, calls=adapters)


def unit_decoder_layer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """One layer of SeamlessM4T's decoder of units, each of which is a stage of its own."""
    for site in transformer("self", part="t2u_decoder")(config, sizes):
        yield site._replace(calls=1)


def _first(config: Config, names: Sequence[str]) -> Any:
    return next((config[name] for name in names if config.get(name)), None)


def _tokens(config: Config, sizes: Sizes) -> int:
    """Tokens of the main argument: given as a sequence, or those of its patches."""
    if "tokens" in sizes:
        return sizes["tokens"]
    frames, each = grid(config, sizes)
    return frames * each
