"""Closed forms of models that see, hear or draw with a language model, as in `closed_forms`.

A class that holds several networks has a form for the language model, and one for each part that is a stage of its own.
"""

from collections.abc import Iterator

from mmchar.counting.closed_forms import (
    Config,
    Form,
    Site,
    Sizes,
    causal_lm,
    clip_text,
    inside,
    nothing,
    patches as patches_of,
)


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


def image_grid(config: Config, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Rows and columns of the token image of a model with a VQ tokenizer, at its own size or at a size in pixels."""
    vq = config["vq_config"]
    scale = 2 ** (len(vq["channel_multiplier"]) - 1)
    if "num_patches" in vq:  # Janus
        return vq["num_patches"], vq["num_patches"]
    own = vq.get("resolution")
    return (height or own) // scale, (width or own) // scale


def vision_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A vision transformer over all patches of each image or tile, and a class token."""
    heads, tokens = config["num_attention_heads"], patches_of(config, sizes) + 1
    head_dim = config["hidden_size"] // heads
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, config["num_hidden_layers"])


def output_projector(config: Config, sizes: Sizes) -> Iterator[Site]:
    """NExT-GPT's output projector: signal tokens over themselves, then queries over themselves and the signal."""
    batch, signal, queries = sizes["batch"], sizes["tokens"], config["queries"]
    heads, head_dim, layers = config["heads"], config["dim"] // config["heads"], config["layers"]
    yield Site("self", batch, heads, signal, signal, head_dim, layers)
    yield Site("self", batch, heads, queries, queries, head_dim, layers)
    yield Site("cross", batch, heads, queries, signal, head_dim, layers)


def q_former(config: Config, sizes: Sizes) -> Iterator[Site]:
    """BLIP-2's adaptor: queries over themselves and, in every so many layers, over the image."""
    batch, queries, heads = sizes["batch"], sizes["tokens"], config["num_attention_heads"]
    head_dim, layers = config["hidden_size"] // heads, config["num_hidden_layers"]
    yield Site("self", batch, heads, queries, queries, head_dim, layers)
    crossing = -(-layers // config["cross_attention_frequency"])
    yield Site("cross", batch, heads, queries, sizes["context"], head_dim, crossing)


def qwen_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen-VL's tower: each image over all its patches or, in most layers of 2.5, within windows.

    Images of any size are not padded to one another, so each is a call of its own. A window at the edge is smaller.
    """
    heads, layers, images = config["num_heads"], config["depth"], sizes["images"]
    head_dim, rows, columns = config["hidden_size"] // heads, sizes["height"], sizes["width"]
    whole = len(config["fullatt_block_indexes"]) if "fullatt_block_indexes" in config else layers
    yield Site("self", 1, heads, rows * columns, rows * columns, head_dim, images * whole)
    if whole < layers:
        side = config["window_size"] // config["patch_size"]
        for high, down in _pieces(rows, side):
            for wide, across in _pieces(columns, side):
                calls = images * (layers - whole) * down * across
                yield Site("self", 1, heads, high * wide, high * wide, head_dim, calls)


def _pieces(length: int, side: int) -> list[tuple[int, int]]:
    """(size, how many) of the windows along one side: whole ones, then what is left."""
    pieces = [(side, length // side), (length % side, 1)]
    return [(size, many) for size, many in pieces if size and many]


def mllama_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Llama 3.2 Vision's tower: all tiles of an image at once, each padded to a multiple of 8, local and global layers.

    **Source**: transformers ``modeling_mllama.py``.
    """
    heads, layers = config["attention_heads"], config["num_hidden_layers"] + config["num_global_layers"]
    tokens = sizes["tiles"] * (-(-(patches_of(config, sizes) + 1) // 8) * 8)
    yield Site("self", sizes["batch"] * sizes["images"], heads, tokens, tokens, config["hidden_size"] // heads, layers)


def mllama(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Llama 3.2 Vision: text over itself or, in some layers in place of that, over all tiles of its images.

    Of a single token behind a mask, the query heads that share keys are made the queries of one head.

    **Source**: transformers ``modeling_mllama.py``: cross-attention *replaces* self-attention in
    ``cross_attention_layers``; ``pack_gqa`` in its ``integrations/sdpa_attention.py``.
    """
    vision, text = config["vision_config"], config["text_config"]
    seen = sizes["images"] * vision["max_num_tiles"] * (patches(vision) + 1)
    crossing, one = len(text["cross_attention_layers"]), sizes["tokens"] == 1
    for site in causal_lm(text, sizes):
        yield site._replace(calls=site.calls - crossing)
        heads = text["num_key_value_heads"] if one else site.heads
        q_len = site.q_len * site.heads // heads
        yield site._replace(attention="cross", heads=heads, q_len=q_len, kv_len=seen, calls=crossing)


def idefics_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """IDEFICS' vision tower, which calls its width another name."""
    yield from vision_tower({**config, "hidden_size": config["embed_dim"]}, sizes)


def idefics(config: Config, sizes: Sizes) -> Iterator[Site]:
    """IDEFICS (an open Flamingo): a language model with cross-attention added every few layers.

    The resampler's own attention is written as two batched products, which the library does not fuse: no row here.
    """
    seen = sizes["images"] * config["perceiver_config"]["resampler_n_latents"]
    crossing = -(-config["num_hidden_layers"] // config["cross_layer_interval"])
    for site in causal_lm(config, sizes):
        yield site
        yield site._replace(attention="cross", kv_len=seen, calls=crossing)


def emu3_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Emu3's image decoder, which makes a clip of a picture and attends at its lowest level.

    One attention in the middle block, and one after each layer of the level in ``attn_resolutions``.
    """
    heads, tokens = config["num_attention_heads"], sizes["height"] * sizes["width"]
    batch, calls = sizes["batch"] * config["temporal_downsample_factor"], config["num_res_blocks"] + 2
    yield Site("self", batch, heads, tokens, tokens, config["hidden_size"] // heads, calls)


def adapted_frames(config: Config, frames: int) -> int:
    """Frames that a speech encoder's length adaptor leaves: a strided convolution per adaptor layer."""
    kernel, stride = config["adaptor_kernel_size"], config["adaptor_stride"]
    for _ in range(config["num_adapter_layers"]):
        frames = (frames + stride // 2 * 2 - kernel) // stride + 1
    return frames


def hstu(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HSTU: the history over itself, or all candidates over the history and themselves; head_dim is the queries'."""
    tokens = sizes["tokens"]
    kv_len = sizes.get("cache", 0) + tokens
    yield Site("causal", sizes["batch"], config["heads"], tokens, kv_len, config["qk_dim"], config["layers"])


def seamless(part: str) -> Form:
    """SeamlessM4T's encoders over themselves, its text decoder over its cache and the encoded, its unit decoder."""

    def form(config: Config, sizes: Sizes) -> Iterator[Site]:
        heads, batch, tokens = config[part + "_attention_heads"], sizes["batch"], sizes["tokens"]
        head_dim, layers = config["hidden_size"] // heads, config[part + "_layers"]
        if part != "decoder":
            yield Site("self", batch, heads, tokens, tokens, head_dim, 1 if part == "t2u_decoder" else layers)
        if part == "speech_encoder":  # what the adaptor has shortened is attended to once per adaptor layer
            short = adapted_frames(config, tokens)
            yield Site("self", batch, heads, short, short, head_dim, config["num_adapter_layers"])
        if part == "decoder":
            yield Site("causal", batch, heads, tokens, sizes.get("cache", 0) + tokens, head_dim, layers)
            yield Site("cross", batch, heads, tokens, sizes["context"], head_dim, layers)

    return form


def audio_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's audio tower: chunks of ``2 * n_window`` frames, halved by a convolution; each over itself."""
    tower = config["thinker_config"]["audio_config"]
    heads = tower["encoder_attention_heads"]
    for frames, many in _pieces(sizes["frames"], 2 * tower["n_window"]):
        tokens = (frames - 1) // 2 + 1
        yield Site("self", 1, heads, tokens, tokens, tower["d_model"] // heads, many * tower["encoder_layers"])


def omni_prefill(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The model inside Qwen2.5-Omni's thinker or talker, which differ in width."""
    talker, text = config["talker_config"], config["thinker_config"]["text_config"]
    yield from causal_lm(talker if sizes["channels"] == talker["hidden_size"] else text, sizes)


def thinker(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's writing model on one token."""
    yield from causal_lm(config["thinker_config"]["text_config"], sizes)


def talker(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's speaking model on one code."""
    yield from causal_lm(config["talker_config"], sizes)


def sound_transformer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """All frames of sound, with and without the codes, behind a block mask."""
    dit = config["token2wav_config"]["dit_config"]
    tokens, heads = sizes["tokens"], dit["num_attention_heads"]
    yield Site("self", 2 * sizes["batch"], heads, tokens, tokens, dit["head_dim"], dit["num_hidden_layers"])


_SEAMLESS, _OMNI, _JANUS = (
    *("SeamlessM4Tv2Model", "Qwen2_5OmniForConditionalGeneration", "JanusForConditionalGeneration"),
)
FORMS: dict[str, Form] = {
    "CLIPModel.get_image_features": inside("vision_config", vision_tower),
    "CLIPModel.get_text_features": inside("text_config", clip_text),
    "CLIPVisionModel": vision_tower,
    "CLIPVisionModelWithProjection": vision_tower,
    "LinearAdaptor": nothing,
    "OutputProjector": output_projector,
    "LlavaForConditionalGeneration": inside("text_config", causal_lm),
    "LlavaForConditionalGeneration.vision_tower": inside("vision_config", vision_tower),
    "LlavaNextForConditionalGeneration": inside("text_config", causal_lm),
    "LlavaNextForConditionalGeneration.vision_tower": inside("vision_config", vision_tower),
    "Blip2ForConditionalGeneration": inside("text_config", causal_lm),
    "Blip2ForConditionalGeneration.vision_model": inside("vision_config", vision_tower),
    "Blip2ForConditionalGeneration.qformer": inside("qformer_config", q_former),
    "Qwen2_5_VLForConditionalGeneration": inside("text_config", causal_lm),
    "Qwen2_5_VLForConditionalGeneration.visual": inside("vision_config", qwen_tower),
    "Qwen3VLForConditionalGeneration": inside("text_config", causal_lm),
    "Qwen3VLForConditionalGeneration.visual": inside("vision_config", qwen_tower),
    "MllamaForConditionalGeneration": mllama,
    "MllamaForConditionalGeneration.vision_model": inside("vision_config", mllama_tower),
    "IdeficsForVisionText2Text": idefics,
    "IdeficsForVisionText2Text.vision_model": inside("vision_config", idefics_tower),
    "IdeficsForVisionText2Text.perceiver_resampler": nothing,
    "ChameleonForConditionalGeneration": causal_lm,
    "Emu3ForConditionalGeneration": inside("text_config", causal_lm),
    "Emu3ForConditionalGeneration.decode": inside("vq_config", emu3_decoder),
    "HSTU": hstu,
    "HSTU.retrieve": nothing,
    _SEAMLESS: seamless("decoder"),
    f"{_SEAMLESS}.text_encoder": seamless("encoder"),
    f"{_SEAMLESS}.speech_encoder": seamless("speech_encoder"),
    f"{_SEAMLESS}.encoder": seamless("t2u_encoder"),
    **{f"{_SEAMLESS}.{layer}": seamless("t2u_decoder") for layer in range(6)},  # layers of the unit decoder
    **{f"{_SEAMLESS}.{part}": nothing for part in ("duration_predictor", "dur_predictor", "lm_head", "hifi_gan")},
    f"{_OMNI}.audio_tower": audio_tower,
    f"{_OMNI}.model": omni_prefill,
    f"{_OMNI}.thinker": thinker,
    f"{_OMNI}.talker": talker,
    f"{_OMNI}.code2wav_dit_model": sound_transformer,
    _OMNI: nothing,  # heads, projections, the vocoder
    _JANUS: nothing,  # heads and embeddings of codes, the image decoder
    f"{_JANUS}.language_model": inside("text_config", causal_lm),
}
