"""Closed forms: what each component class attends to, from its configuration and its stage's sizes alone.

One short function per class, or per part of a class that is called by itself (``Class.part``). They are the second
route to the lengths of the operator table (`seqlen`), so they know nothing of torch and make no forward.
Sizes are those of `stage_sizes.sizes_at`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Config = Mapping[str, Any]
Form = Callable[[Config, "Sizes"], Iterator["Site"]]
Sizes = Mapping[str, int]


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


def inside(key: str, form: Form) -> Form:
    """The form of a part whose configuration stands within its model's under ``key``."""

    def part(config: Config, sizes: Sizes) -> Iterator[Site]:
        yield from form(config[key], sizes)

    return part


def halvings(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """(height, width) at each level of a U-Net: a 3x3 convolution of stride 2 and padding 1 halves and rounds up."""
    sizes = [(height, width)]
    while len(sizes) < levels:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)


def clip_text(config: Config, sizes: Sizes) -> Iterator[Site]:
    """CLIP's text encoder: every layer attends causally over the prompt."""
    heads, tokens = config["num_attention_heads"], sizes["tokens"]
    head_dim = config["hidden_size"] // heads
    yield Site("causal", sizes["batch"], heads, tokens, tokens, head_dim, config["num_hidden_layers"])


def t5_encoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """T5's encoder: every layer attends over the prompt in both directions."""
    tokens = sizes["tokens"]
    yield Site("self", sizes["batch"], config["num_heads"], tokens, tokens, config["d_kv"], config["num_layers"])


def causal_lm(config: Config, sizes: Sizes) -> Iterator[Site]:
    """LLaMA: tokens that see what the cache remembers, those before them and themselves.

    Grouped-query attention stores fewer heads of keys and values; each query head still makes a similarity matrix.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    tokens = sizes["tokens"]
    kv_len = sizes.get("cache", 0) + tokens
    yield Site("causal", sizes["batch"], heads, tokens, kv_len, head_dim, config["num_hidden_layers"])


def marian_encoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Marian's encoder: every layer attends over the prompt in both directions."""
    heads, tokens = config["encoder_attention_heads"], sizes["tokens"]
    head_dim = config["d_model"] // heads
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, config["encoder_layers"])


def marian_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Marian's decoder: tokens over the cache and themselves, and over the prompt."""
    heads, layers, tokens = config["decoder_attention_heads"], config["decoder_layers"], sizes["tokens"]
    batch, head_dim = sizes["batch"], config["d_model"] // heads
    yield Site("causal", batch, heads, tokens, sizes.get("cache", 0) + tokens, head_dim, layers)
    yield Site("cross", batch, heads, tokens, sizes["context"], head_dim, layers)


def vit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A vision transformer over all patches of an image, and its class token."""
    heads, tokens = config["num_attention_heads"], patches(config, sizes) + 1
    head_dim = config["hidden_size"] // heads
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, config["num_hidden_layers"])


def unet_2d_condition(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A text-conditioned U-Net: where a level attends, every layer does so over all positions of that level.

    ``attention_head_dim`` holds the *number* of heads in transformer blocks and the *width* of a head in the others.

    **Source**: diffusers ``unet_2d_condition.py`` and, on that naming, diffusers issue 2011.
    """
    if config.get("dual_cross_attention"):
        raise ValueError("no closed form for a U-Net with dual_cross_attention")
    batch, context, channels = sizes["batch"], sizes.get("context", 0), config["block_out_channels"]
    head_numbers = _per_level(config["attention_head_dim"], len(channels))
    depths = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    text_only = _per_level(config.get("only_cross_attention", False), len(channels))
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    for place, (level, block, layers) in enumerate(_walk(config, middle)):
        tokens, number, width = levels[level][0] * levels[level][1], head_numbers[level], channels[level]
        if _BLOCKS[block] == "transformer":
            calls = layers * depths[level]
            twice = text_only[level] and place != len(channels)  # its first attention is over the text too; mid is not
            first = ("cross", context) if twice and context else ("self", tokens)
            second = ("cross", context) if context else ("self", tokens)  # without text it sees itself
            for kind, kv_len in (first, second):
                yield Site(kind, batch, number, tokens, kv_len, width // number, calls)
        elif _BLOCKS[block] == "added":  # Imagen, App. D.3.1: keys and values of the text beside those of the image
            yield Site("joint", batch, width // number, tokens, tokens + context, number, layers)


def unet_2d(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A U-Net without text: heads of ``attention_head_dim`` channels, in the middle too unless it is switched off."""
    channels = config["block_out_channels"]
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    middle = "UNetMidBlock2D" if config.get("add_attention", True) else None
    for level, block, layers in _walk(config, middle):
        if _BLOCKS[block] == "self":
            tokens, width = levels[level][0] * levels[level][1], channels[level]
            head_dim = config.get("attention_head_dim", 8) or width
            yield Site("self", sizes["batch"], width // head_dim, tokens, tokens, head_dim, layers)


def unet_3d_condition(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A spatio-temporal U-Net: per layer, each frame over its positions and the text, then each position over time.

    A temporal transformer attends twice over the frames (both of its attentions are self attention), and one of them,
    with 8 heads, comes before the first level. Here ``attention_head_dim`` is the width of a head, as its name says.

    **Source**: diffusers ``unet_3d_condition.py``, ``unet_3d_blocks.py`` (``Transformer2DModel(channels // n, n)``).
    """
    batch, frames, channels = sizes["batch"], sizes["frames"], config["block_out_channels"]
    head_dim = config["attention_head_dim"]
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    yield Site("temporal", batch * levels[0][0] * levels[0][1], 8, frames, frames, head_dim, 2)
    for level, block, layers in _walk(config, "UNetMidBlock3DCrossAttn"):
        if _BLOCKS[block] == "transformer":
            tokens, heads = levels[level][0] * levels[level][1], channels[level] // head_dim
            yield Site("spatial", batch * frames, heads, tokens, tokens, head_dim, layers)
            yield Site("cross", batch * frames, heads, tokens, sizes["context"], head_dim, layers)
            yield Site("temporal", batch * tokens, heads, frames, frames, head_dim, 2 * layers)


def patches(config: Config, sizes: Sizes) -> int:
    """Tokens of an image or a latent cut into square patches."""
    patch = config["patch_size"]
    return (sizes["height"] // patch) * (sizes["width"] // patch)


def autoencoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """An image decoder (KL or VQ): one head over all latent positions, in its middle block."""
    if config.get("mid_block_add_attention", True):
        tokens = sizes["tokens"] if "tokens" in sizes else sizes["height"] * sizes["width"]
        yield Site("self", sizes["batch"], 1, tokens, tokens, config["block_out_channels"][-1], 1)


def image_encoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The encoder of an `autoencoder`, which halves an image at every level but the last."""
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    yield from autoencoder(config, {**sizes, "height": sizes["height"] // scale, "width": sizes["width"] // scale})


def diffusion_prior(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A prior over an image embedding: text tokens, pooled text, time, the noisy embedding and a token to read out."""
    tokens = sizes["context"] + config.get("additional_embeddings", 4)
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])


def discrete_transformer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A masked-token image transformer over all tokens, and over its context where it has one."""
    heads, head_dim, layers = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    yield Site("self", sizes["batch"], heads, sizes["tokens"], sizes["tokens"], head_dim, layers)
    if context := sizes.get("context"):
        yield Site("cross", sizes["batch"], heads, sizes["tokens"], context, head_dim, layers)


def masked_token_transformer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A masked-token video transformer over all tokens of all frames, and over its text."""
    heads, layers = config["heads"], config["layers"]
    head_dim = config["dim"] // heads
    yield Site("self", sizes["batch"], heads, sizes["tokens"], sizes["tokens"], head_dim, layers)
    yield Site("cross", sizes["batch"], heads, sizes["tokens"], sizes["context"], head_dim, layers)


def video_tokenizer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """C-ViViT's decoder: each position over time, then each frame over its positions."""
    batch, frames, tokens = sizes["batch"], sizes["frames"], sizes["tokens"]
    heads, head_dim = config["heads"], config["dim"] // config["heads"]
    yield Site("temporal", batch * tokens, heads, frames, frames, head_dim, config["temporal_layers"])
    yield Site("spatial", batch * frames, heads, tokens, tokens, head_dim, config["spatial_layers"])


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


FORMS: dict[str, Form] = {
    "CLIPTextModel": clip_text,
    "CLIPTextModelWithProjection": clip_text,
    "T5EncoderModel": t5_encoder,
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "GemmaForCausalLM"), causal_lm),
    **dict.fromkeys(("Phi3ForCausalLM", "Olmo2ForCausalLM", "GraniteForCausalLM"), causal_lm),
    "MarianMTModel": marian_decoder,
    "MarianMTModel.encoder": marian_encoder,
    "ViTModel": vit,
    "UNet2DConditionModel": unet_2d_condition,
    "UNet2DModel": unet_2d,
    "UNet3DConditionModel": unet_3d_condition,
    "AutoencoderKL": autoencoder,
    "AutoencoderKL.encode": image_encoder,
    "VQModel": autoencoder,
    "PriorTransformer": diffusion_prior,
    "Transformer2DModel": discrete_transformer,
    "MaskedTokenTransformer": masked_token_transformer,
    "CViViT": video_tokenizer,
    "EfficientUNet": efficient_unet,
}

# How each layer of a block attends: a transformer (self, then cross), over positions and added text, over positions.
_BLOCKS = {
    **dict.fromkeys(("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"), "transformer"),
    **dict.fromkeys(("CrossAttnDownBlock3D", "CrossAttnUpBlock3D", "UNetMidBlock3DCrossAttn"), "transformer"),
    **dict.fromkeys(
        ("CrossAttnDownBlockMotion", "CrossAttnUpBlockMotion", "UNetMidBlockCrossAttnMotion"), "transformer"
    ),
    **dict.fromkeys(
        ("CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "UNetMidBlockSpatioTemporal"),
        "transformer",
    ),
    **dict.fromkeys(
        ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D", "UNetMidBlock2DSimpleCrossAttn"), "added"
    ),
    **dict.fromkeys(("AttnDownBlock2D", "AttnUpBlock2D", "UNetMidBlock2D"), "self"),
    **dict.fromkeys(("DownBlock2D", "UpBlock2D", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), ""),
    **dict.fromkeys(("DownBlock3D", "UpBlock3D", "DownBlockMotion", "UpBlockMotion"), ""),
    **dict.fromkeys(("DownBlockSpatioTemporal", "UpBlockSpatioTemporal"), ""),
}


def _walk(config: Config, middle: str | None) -> Iterator[tuple[int, str, int]]:
    """(level, block type, layers) of a U-Net in the order of its forward: down, middle, up with one more layer each."""
    down, up = config["down_block_types"], config["up_block_types"]
    layers = _per_level(config.get("layers_per_block", 2), len(down))
    bottom = len(down) - 1
    path = [(level, block, layers[level]) for level, block in enumerate(down)]
    path += [(bottom, middle, 1)] if middle else []
    path += [(bottom - index, block, layers[bottom - index] + 1) for index, block in enumerate(up)]
    for _, block, _ in path:
        if block not in _BLOCKS:
            raise ValueError(f"no closed form for the U-Net block {block}; there is one for {', '.join(_BLOCKS)}")
    yield from path


def _per_level(value: int | Sequence[int], levels: int) -> Sequence[int]:
    return (value,) * levels if isinstance(value, int) else value
