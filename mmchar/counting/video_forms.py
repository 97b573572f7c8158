"""Closed forms of video and audio diffusion models, as in `closed_forms`."""

from collections.abc import Iterator

from mmchar.counting.closed_forms import (
    _BLOCKS,
    Config,
    Form,
    Site,
    Sizes,
    _per_level,
    _walk,
    autoencoder,
    causal_lm,
    halvings,
    image_encoder,
    nothing,
    patches,
    t5_encoder,
)
from mmchar.counting.diffusion_forms import encoding_lm, wan_decoder


def unet_motion(config: Config, sizes: Sizes) -> Iterator[Site]:
    """AnimateDiff: a 2-D U-Net on every frame; after each layer, also where it has no transformer, time, twice.

    **Source**: AnimateDiff, arXiv 2307.04725, section 4.2; diffusers ``unet_motion_model.py``.
    """
    batch, frames, channels = sizes["batch"], sizes["frames"], config["block_out_channels"]
    heads, motion_heads = config["num_attention_heads"], config["motion_num_attention_heads"]
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    for level, block, layers in _walk(config, "UNetMidBlockCrossAttnMotion"):
        tokens, width = levels[level][0] * levels[level][1], channels[level]
        if _BLOCKS[block] == "transformer":
            yield Site("spatial", batch * frames, heads, tokens, tokens, width // heads, layers)
            yield Site("cross", batch * frames, heads, tokens, sizes["context"], width // heads, layers)
        yield Site("temporal", batch * tokens, motion_heads, frames, frames, width // motion_heads, 2 * layers)


def unet_spatio_temporal(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Stable Video Diffusion: per layer, each frame and then each position over time; both also look at the image.

    The image is one token, so their cross attentions have one key.

    **Source**: arXiv 2311.15127, appendix D; diffusers ``transformer_temporal.py``.
    """
    batch, frames, channels = sizes["batch"], sizes["frames"], config["block_out_channels"]
    heads = _per_level(config["num_attention_heads"], len(channels))
    depths = _per_level(config["transformer_layers_per_block"], len(channels))
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    for level, block, layers in _walk(config, "UNetMidBlockSpatioTemporal"):
        if _BLOCKS[block] == "transformer":
            tokens, number = levels[level][0] * levels[level][1], heads[level]
            head_dim, calls = channels[level] // number, layers * depths[level]
            yield Site("spatial", batch * frames, number, tokens, tokens, head_dim, calls)
            yield Site("cross", batch * frames, number, tokens, 1, head_dim, calls)
            yield Site("temporal", batch * tokens, number, frames, frames, head_dim, calls)
            yield Site("cross", batch * tokens, number, frames, 1, head_dim, calls)


def temporal_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The decoder of Stable Video Diffusion: each frame, one of a batch, attends over its positions, in one head.

    Its middle has an attention only between its layers, so none where there is one.
    """
    if config["layers_per_block"] > 1:
        yield from autoencoder(config, sizes)


def latte(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Latte: in turns each frame over its patches and the text, and each patch over the frames.

    **Source**: arXiv 2401.03048, section 3.2, variant 1; diffusers ``latte_transformer_3d.py``.
    """
    batch, frames, tokens, layers = sizes["batch"], sizes["frames"], patches(config, sizes), config["num_layers"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("spatial", batch * frames, heads, tokens, tokens, head_dim, layers)
    yield Site("cross", batch * frames, heads, tokens, sizes["context"], head_dim, layers)
    yield Site("temporal", batch * tokens, heads, frames, frames, head_dim, layers)


def wan(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Wan: every block over all patches of all frames, then over the text.

    **Source**: arXiv 2503.20314, section 4.2; diffusers ``transformer_wan.py``.
    """
    deep, high, wide = config["patch_size"]
    tokens = (sizes["frames"] // deep) * (sizes["height"] // high) * (sizes["width"] // wide)
    heads, head_dim, layers = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, layers)


def ltx(config: Config, sizes: Sizes) -> Iterator[Site]:
    """LTX-Video: every block over all places of the latent, then over the text.

    **Source**: arXiv 2501.00103, section 2.2; diffusers ``transformer_ltx.py``.
    """
    tokens = sizes["frames"] * sizes["height"] * sizes["width"]
    heads, head_dim, layers = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, layers)


def cogvideox(config: Config, sizes: Sizes) -> Iterator[Site]:
    """CogVideoX: every block over the text and all patches of all frames, in one sequence.

    **Source**: arXiv 2408.06072, section 2.2; diffusers ``cogvideox_transformer_3d.py``.
    """
    patch, frames = config["patch_size"], sizes["frames"] // (config["patch_size_t"] or 1)
    tokens = frames * (sizes["height"] // patch) * (sizes["width"] // patch) + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])


def hunyuan_video(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanVideo: refiners over the prompt, then every block over it and all patches of all frames.

    **Source**: arXiv 2412.03603, section 4.2; diffusers ``transformer_hunyuan_video.py``.
    """
    patch, deep, text = config["patch_size"], config["patch_size_t"], sizes["context"]
    tokens = (sizes["frames"] // deep) * (sizes["height"] // patch) * (sizes["width"] // patch) + text
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("self", sizes["batch"], heads, text, text, head_dim, config["num_refiner_layers"])
    calls = config["num_layers"] + config["num_single_layers"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, calls)


def causal_video_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanVideo's autoencoder decodes four latent frames and the next at a time, every three frames.

    **Source**: diffusers ``autoencoder_kl_hunyuan_video.py``, ``_temporal_tiled_decode``.
    """
    frames = sizes["frames"]
    for tile in [min(5, frames - start) for start in range(0, frames, 3)] if frames > 4 else [frames]:
        yield from whole_video_decoder(config, {**sizes, "frames": tile})


def hunyuan_video_15(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanVideo 1.5: refiners over the prompt, then every block over video, prompt, glyphs and an image's tokens.

    **Source**: diffusers ``transformer_hunyuan_video15.py``.
    """
    patch, deep, text = config["patch_size"], config["patch_size_t"], sizes["context"]
    video = (sizes["frames"] // deep) * (sizes["height"] // patch) * (sizes["width"] // patch)
    tokens = video + text + sizes["context_2"] + sizes["context_image"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("self", sizes["batch"], heads, text, text, head_dim, config["num_refiner_layers"])
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])


def whole_video_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanVideo's decoders: one head over all positions of all latent frames of a tile, masked over time."""
    tokens = sizes["frames"] * sizes["height"] * sizes["width"]
    yield Site("self", sizes["batch"], 1, tokens, tokens, config["block_out_channels"][-1], 1)


def mochi(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Mochi: one pooling of the text with 8 heads; then every block over video and text, one sample after the other.

    Of each text (``text_0``, …) the tokens that its mask leaves: of an empty one, none.

    **Source**: diffusers ``transformer_mochi.py`` and ``MochiAttnProcessor2_0``, ``MochiAttentionPool``.
    """
    video = sizes["frames"] * patches(config, sizes)
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("cross", sizes["batch"], 8, 1, sizes["context"] + 1, config["text_embed_dim"] // 8, 1)
    for sample in range(sizes["batch"]):
        tokens = video + sizes[f"text_{sample}"]
        yield Site("joint", 1, heads, tokens, tokens, head_dim, config["num_layers"])


def stable_audio(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Stable Audio: every block over all frames and a token of time and duration, then over the text.

    **Source**: arXiv 2407.14358, section 2; diffusers ``stable_audio_transformer.py``.
    """
    heads, head_dim, layers = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    tokens = sizes["frames"] + 1
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, layers)


def gpt2(config: Config, sizes: Sizes) -> Iterator[Site]:
    """GPT-2: as LLaMA, in its own words."""
    width, layers = config["n_embd"], config["n_layer"]
    said = {"num_attention_heads": config["n_head"], "hidden_size": width, "num_hidden_layers": layers}
    yield from causal_lm(said, sizes)


def audioldm2_unet(config: Config, sizes: Sizes) -> Iterator[Site]:
    """AudioLDM 2: after each layer a transformer over itself, one over the generated tokens and one over the text.

    Each attends twice, first to the positions; the larger model ends with one more over itself.

    **Source**: diffusers ``audioldm2/modeling_audioldm2.py``.
    """
    batch, channels, heads = sizes["batch"], config["block_out_channels"], config["attention_head_dim"]
    levels = halvings(sizes["height"], sizes["width"], len(channels))
    depth = config["transformer_layers_per_block"]
    for level, block, layers in _walk(config, "UNetMidBlock2DCrossAttn"):
        if _BLOCKS[block] != "transformer":
            continue
        tokens, head_dim, calls = levels[level][0] * levels[level][1], channels[level] // heads, layers * depth
        for place, width in enumerate(config["cross_attention_dim"][level]):
            seen = (sizes["context"] if place <= 1 else sizes["context_1"]) if width else tokens
            yield Site("self", batch, heads, tokens, tokens, head_dim, calls)
            yield Site("cross" if width else "self", batch, heads, tokens, seen, head_dim, calls)


FORMS: dict[str, Form] = {
    "UNetMotionModel": unet_motion,
    "UNetSpatioTemporalConditionModel": unet_spatio_temporal,
    "AutoencoderKLTemporalDecoder": temporal_decoder,
    "AutoencoderKLTemporalDecoder.encode": image_encoder,
    "LatteTransformer3DModel": latte,
    "WanTransformer3DModel": wan,
    "AutoencoderKLWan": wan_decoder,
    "UMT5EncoderModel": t5_encoder,
    "LTXVideoTransformer3DModel": ltx,
    "AutoencoderKLLTXVideo": nothing,
    "CogVideoXTransformer3DModel": cogvideox,
    "AutoencoderKLCogVideoX": nothing,
    "LlamaModel": encoding_lm,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "HunyuanVideo15Transformer3DModel": hunyuan_video_15,
    "AutoencoderKLHunyuanVideo15": whole_video_decoder,
    "MochiTransformer3DModel": mochi,
    "AutoencoderKLMochi": nothing,
    "ClapTextModelWithProjection": nothing,
    "ClapModel": nothing,
    **dict.fromkeys(("AudioLDM2ProjectionModel", "StableAudioProjectionModel"), nothing),
    "GPT2LMHeadModel": gpt2,
    "AudioLDM2UNet2DConditionModel": audioldm2_unet,
    "SpeechT5HifiGan": nothing,
    "StableAudioDiTModel": stable_audio,
    "AutoencoderOobleck": nothing,
    "AutoencoderKLHunyuanVideo": causal_video_decoder,
    "AutoencoderKLHunyuanVideo.decoder": whole_video_decoder,
}
