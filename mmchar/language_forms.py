"""Closed forms of models that see, hear or draw with a language model: what each attends to, from sizes alone.

A composite class runs one of its parts per stage; which one shows in the sizes: ``images`` for a vision tower,
``patches`` or ``context`` for an adaptor, ``tokens`` or ``cache`` for the language model.
"""

from collections.abc import Callable, Iterator

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


def image_grid(config: Config, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Rows and columns of the token image of a model with a VQ tokenizer, at its own size or at a size in pixels."""
    vq = config["vq_config"]
    scale = 2 ** (len(vq["channel_multiplier"]) - 1)
    if "num_patches" in vq:  # Janus
        return vq["num_patches"], vq["num_patches"]
    own = vq.get("resolution")
    return (height or own) // scale, (width or own) // scale


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


def output_projector(config: Config, sizes: Sizes) -> Iterator[Site]:
    """NExT-GPT's output projector: signal tokens over themselves, then queries over themselves and the signal."""
    batch, signal, queries = sizes["batch"], sizes["tokens"], config["queries"]
    heads, head_dim, layers = config["heads"], config["dim"] // config["heads"], config["layers"]
    yield Site("self", batch, heads, signal, signal, head_dim, layers)
    yield Site("self", batch, heads, queries, queries, head_dim, layers)
    yield Site("cross", batch, heads, queries, signal, head_dim, layers)


def no_attention(_config: Config, _sizes: Sizes) -> Iterator[Site]:
    """A component that does not attend."""
    yield from ()


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


def qwen_vl(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen-VL: each image over all its patches or, in most layers of 2.5, within windows; a causal language model.

    Images of any size are not padded to one another, so each is a call of its own. A window at the edge is smaller.
    """
    if "images" not in sizes:
        yield from causal_lm(config["text_config"], sizes)
        return
    vision = config["vision_config"]
    heads, layers, images = vision["num_heads"], vision["depth"], sizes["images"]
    head_dim, rows, columns = vision["hidden_size"] // heads, sizes["height"], sizes["width"]
    whole = len(vision["fullatt_block_indexes"]) if "fullatt_block_indexes" in vision else layers
    yield Site("self", 1, heads, rows * columns, rows * columns, head_dim, images * whole)
    if whole < layers:
        side = vision["window_size"] // vision["patch_size"]
        for high, down in _pieces(rows, side):
            for wide, across in _pieces(columns, side):
                calls = images * (layers - whole) * down * across
                yield Site("self", 1, heads, high * wide, high * wide, head_dim, calls)


def _pieces(length: int, side: int) -> list[tuple[int, int]]:
    """(size, how many) of the windows along one side: whole ones, then what is left."""
    pieces = [(side, length // side), (length % side, 1)]
    return [(size, many) for size, many in pieces if size and many]


def mllama(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Llama 3.2 Vision: all tiles of an image at once, padded to a multiple of 8; text over itself, or over the image.

    **Source**: transformers ``modeling_mllama.py``: local and global layers; cross-attention *replaces* self-attention
    in ``cross_attention_layers``.
    """
    vision, text = config["vision_config"], config["text_config"]
    if "patches" in sizes:
        return
    if "images" in sizes:
        heads = vision["attention_heads"]
        tokens = vision["max_num_tiles"] * (-(-(patches(vision) + 1) // 8) * 8)
        layers = vision["num_hidden_layers"] + vision["num_global_layers"]
        yield Site("self", sizes["images"], heads, tokens, tokens, vision["hidden_size"] // heads, layers)
        return
    crossing = len(text["cross_attention_layers"])
    for site in causal_lm(text, sizes):
        yield site._replace(calls=site.calls - crossing)
        yield site._replace(attention="cross", kv_len=sizes["context"], calls=crossing)


def idefics(config: Config, sizes: Sizes) -> Iterator[Site]:
    """IDEFICS (an open Flamingo): a vision tower, a resampler, and a language model with cross-attention added.

    The resampler's own attention is written as two batched products, which the library does not fuse: no row here.
    """
    vision = config["vision_config"]
    if "patches" in sizes:
        return
    if "images" in sizes:
        yield from vision_tower({**vision, "hidden_size": vision["embed_dim"]}, sizes)
        return
    crossing = -(-config["num_hidden_layers"] // config["cross_layer_interval"])
    for site in causal_lm(config, sizes):
        yield site
        yield site._replace(attention="cross", kv_len=sizes["context"], calls=crossing)


def chameleon(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Chameleon: one causal language model for text and image tokens; its tokenizer's attention is not fused."""
    if "images" not in sizes:
        yield from causal_lm(config, sizes)


def janus(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Janus: a causal language model; its image decoder's attention is not fused."""
    if "height" not in sizes:
        yield from causal_lm(config["text_config"], sizes)


def emu3(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Emu3: a causal language model; an image decoder that makes a clip of a picture and attends at its lowest level.

    One attention in the middle block, and one after each layer of the level in ``attn_resolutions``.
    """
    if "height" not in sizes:
        yield from causal_lm(config["text_config"], sizes)
        return
    vq = config["vq_config"]
    heads, tokens = vq["num_attention_heads"], sizes["height"] * sizes["width"]
    batch, calls = sizes["batch"] * vq["temporal_downsample_factor"], vq["num_res_blocks"] + 2
    yield Site("self", batch, heads, tokens, tokens, vq["hidden_size"] // heads, calls)


def adapted_frames(config: Config, frames: int) -> int:
    """Frames that a speech encoder's length adaptor leaves: a strided convolution per adaptor layer."""
    kernel, stride = config["adaptor_kernel_size"], config["adaptor_stride"]
    for _ in range(config["num_adapter_layers"]):
        frames = (frames + stride // 2 * 2 - kernel) // stride + 1
    return frames


def seamless(config: Config, sizes: Sizes) -> Iterator[Site]:
    """SeamlessM4T: encoders over speech or text, a text decoder over its cache and the encoded, a unit decoder.

    Speech is encoded in full and, after the adaptor has shortened it, attended to once per adaptor layer.
    """
    batch, width = sizes.get("batch", 0), config["hidden_size"]

    def site(kind: str, part: str, q_len: int, kv_len: int, rows: int = batch) -> Site:
        heads = config[part + "_attention_heads"]
        return Site(kind, rows, heads, q_len, kv_len, width // heads, config[part + "_layers"])

    if "rows" in sizes:  # the KV cache is moved, nothing attends
        return
    if "beams" in sizes:
        rows = batch * sizes["beams"]
        yield site("causal", "decoder", 1, sizes.get("cache", 0) + 1, rows)
        yield site("cross", "decoder", 1, sizes["context"], rows)
    elif "frames" in sizes:
        short = adapted_frames(config, sizes["frames"])
        yield site("self", "speech_encoder", sizes["frames"], sizes["frames"])
        yield site("self", "speech_encoder", short, short)._replace(calls=config["num_adapter_layers"])
    elif "context" in sizes:
        yield site("causal", "decoder", sizes["tokens"], sizes["tokens"])
        yield site("cross", "decoder", sizes["tokens"], sizes["context"])
    elif "tokens" in sizes:
        yield site("self", "encoder", sizes["tokens"], sizes["tokens"])
    elif "chars" in sizes:
        yield site("self", "t2u_decoder", sizes["units"], sizes["units"])
    elif "subwords" in sizes:
        yield site("self", "t2u_encoder", sizes["subwords"], sizes["subwords"])


def audio_tower(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's audio tower: chunks of ``2 * n_window`` frames, halved by a convolution; each over itself."""
    tower = config["thinker_config"]["audio_config"]
    heads, chunk = tower["encoder_attention_heads"], 2 * tower["n_window"]
    for frames, many in _pieces(sizes["frames"], chunk):
        tokens = (frames - 1) // 2 + 1
        calls = sizes["batch"] * many * tower["encoder_layers"]
        yield Site("self", 1, heads, tokens, tokens, tower["d_model"] // heads, calls)


def thinker(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's language model that writes."""
    yield from causal_lm(config["thinker_config"]["text_config"], sizes)


def talker(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's language model that speaks."""
    yield from causal_lm(config["talker_config"], sizes)


def sound_transformer(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen2.5-Omni's diffusion transformer: all frames of sound, with and without the codes, behind a block mask."""
    dit = config["token2wav_config"]["dit_config"]
    tokens, heads = sizes["codes"] * dit["repeats"], dit["num_attention_heads"]
    yield Site("self", 2 * sizes["batch"], heads, tokens, tokens, dit["head_dim"], dit["num_hidden_layers"])


def hstu(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HSTU: the history over itself, or all candidates over the history and themselves; head_dim is the queries'."""
    if "most" in sizes:
        return
    q_len = sizes["candidates"] if "candidates" in sizes else sizes["tokens"]
    kv_len = q_len + sizes.get("cache", 0)
    yield Site("causal", sizes["batch"], config["heads"], q_len, kv_len, config["qk_dim"], config["layers"])


FORMS: dict[str, Callable[[Config, Sizes], Iterator[Site]]] = {
    "CLIPModel": clip,
    "CLIPVisionModel": vision_tower,
    "CLIPVisionModelWithProjection": vision_tower,
    "LinearAdaptor": no_attention,
    "OutputProjector": output_projector,
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava,
    "Blip2ForConditionalGeneration": blip2,
    "Qwen2_5_VLForConditionalGeneration": qwen_vl,
    "Qwen3VLForConditionalGeneration": qwen_vl,
    "MllamaForConditionalGeneration": mllama,
    "IdeficsForVisionText2Text": idefics,
    "ChameleonForConditionalGeneration": chameleon,
    "JanusForConditionalGeneration": janus,
    "Emu3ForConditionalGeneration": emu3,
    "SeamlessM4Tv2Model": seamless,
    "Qwen2_5OmniForConditionalGeneration": no_attention,
    "encode_audio": audio_tower,
    **dict.fromkeys(("prefill_thinker", "decode_thinker"), thinker),
    **dict.fromkeys(("prefill_talker", "decode_talker"), talker),
    "denoise_sound": sound_transformer,
    "HSTU": hstu,
}
