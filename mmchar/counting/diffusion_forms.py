"""Closed forms of diffusion transformers and of what encodes and decodes for them, as in `closed_forms`."""

from collections.abc import Iterator

from mmchar.counting.closed_forms import Config, Form, Site, Sizes, autoencoder, causal_lm, nothing, patches


def encoding_lm(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A language model over a whole prompt; where it also sees, its text part."""
    yield from causal_lm(config.get("text_config", config), sizes)


def flux(config: Config, sizes: Sizes) -> Iterator[Site]:
    """FLUX and FLUX.2: every block, double or single, attends over the text and the latent, which comes as a sequence.

    **Source**: diffusers ``transformer_flux.py`` and ``pipeline_flux.py`` (``_pack_latents``).
    """
    tokens = sizes["tokens"] + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    calls = config["num_layers"] + config["num_single_layers"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, calls)


def sd3(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Stable Diffusion 3: every block over text and image; the dual blocks of 3.5 medium also over the image alone.

    **Source**: arXiv 2403.03206, section 4; diffusers ``transformer_sd3.py``.
    """
    image = patches(config, sizes)
    tokens = image + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])
    if dual := len(config["dual_attention_layers"]):
        yield Site("self", sizes["batch"], heads, image, image, head_dim, dual)


def dit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """DiT and PixArt: every block over the patches of the latent, and over the text where there is one.

    **Source**: arXiv 2212.09748, section 3.2; arXiv 2310.00426, section 2.3.
    """
    tokens, layers = patches(config, sizes), config["num_layers"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    if "context" in sizes:
        yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, layers)


def sana(config: Config, sizes: Sizes) -> Iterator[Site]:
    """SANA: cross attention to the text; over the image it attends linearly, without a similarity matrix.

    **Source**: arXiv 2410.10629, section 2.2.
    """
    heads, head_dim = config["num_cross_attention_heads"], config["cross_attention_head_dim"]
    tokens = patches(config, sizes)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, config["num_layers"])


def qwen_image(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Qwen-Image: every block attends over the text and the latent, which comes as a sequence.

    **Source**: arXiv 2508.02324, section 3; diffusers ``transformer_qwenimage.py``.
    """
    tokens = sizes["tokens"] + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])


def z_image(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Z-Image: refiners over the image and over the text, then layers over both; each padded to 32 tokens.

    **Source**: diffusers ``transformer_z_image.py`` (``SEQ_MULTI_OF``).
    """
    patch = config["all_patch_size"][0]
    image = _padded((sizes["height"] // patch) * (sizes["width"] // patch), 32)
    text = _padded(sizes["context"], 32)
    batch, heads, head_dim = sizes["batch"], config["n_heads"], config["dim"] // config["n_heads"]
    for tokens in (image, text):
        yield Site("self", batch, heads, tokens, tokens, head_dim, config["n_refiner_layers"])
    yield Site("joint", batch, heads, image + text, image + text, head_dim, config["n_layers"])


def hunyuan_image(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanImage 2.1: refiners over the prompt, then every block over image, prompt and glyphs.

    **Source**: diffusers ``transformer_hunyuanimage.py``.
    """
    batch, text = sizes["batch"], sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    rows, columns = (
        sizes[side] // patch for side, patch in zip(("height", "width"), config["patch_size"], strict=True)
    )
    tokens = rows * columns + text + sizes["context_2"]
    yield Site("self", batch, heads, text, text, head_dim, config["num_refiner_layers"])
    yield Site("joint", batch, heads, tokens, tokens, head_dim, config["num_layers"] + config["num_single_layers"])


def wan_decoder(config: Config, sizes: Sizes) -> Iterator[Site]:
    """The decoder of Wan and Qwen-Image: one head over each latent frame, in its middle, one frame after the other."""
    tokens = sizes["height"] * sizes["width"]
    base = config.get("decoder_base_dim") or config["base_dim"]
    yield Site("self", sizes["batch"], 1, tokens, tokens, base * config["dim_mult"][-1], sizes.get("frames", 1))


def _padded(tokens: int, multiple: int) -> int:
    return -(-tokens // multiple) * multiple


def bert(config: Config, sizes: Sizes) -> Iterator[Site]:
    """BERT: every layer attends over the prompt in both directions."""
    heads, tokens = config["num_attention_heads"], sizes["tokens"]
    head_dim = config["hidden_size"] // heads
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, config["num_hidden_layers"])


def hunyuan_dit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """HunyuanDiT: T5's text pooled with 8 heads; then every block over the patches and over both texts.

    **Source**: arXiv 2405.08748, section 2.1; diffusers ``hunyuan_transformer_2d.py``.
    """
    tokens, layers, second = patches(config, sizes), config["num_layers"], config["text_len_t5"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("cross", sizes["batch"], 8, 1, second + 1, config["cross_attention_dim_t5"] // 8, 1)
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"] + second, head_dim, layers)


def uvit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """aMUSEd: the transformer over the token image (halved at 512 pixels) and the text, the convolution blocks too.

    The attentions beside the convolutions, on the way down and on the way up, are both over the text.

    **Source**: diffusers ``uvit_2d.py`` and ``SkipFFTransformerBlock`` in its ``attention.py``.
    """
    batch, context = sizes["batch"], sizes["context"]
    halved = 2 if config["downsample"] else 1
    tokens = (sizes["height"] // halved) * (sizes["width"] // halved)
    heads, head_dim = config["block_num_heads"], config["block_out_channels"] // config["block_num_heads"]
    yield Site("cross", batch, heads, tokens, context, head_dim, 2 * 2 * config["num_res_blocks"])
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config["hidden_size"] // heads
    yield Site("self", batch, heads, tokens, tokens, head_dim, layers)
    yield Site("cross", batch, heads, tokens, context, head_dim, layers)


FORMS: dict[str, Form] = {
    "Qwen3ForCausalLM": encoding_lm,
    "Qwen3Model": encoding_lm,
    "Gemma2Model": nothing,
    "pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertModel": nothing,
    "pipelines.deprecated.unclip.text_proj.UnCLIPTextProjModel": nothing,
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux,
    "SD3Transformer2DModel": sd3,
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": dit,
    "SanaTransformer2DModel": sana,
    "UVit2DModel": uvit,
    "AutoencoderDC": nothing,
    "BertModel": bert,
    "HunyuanDiT2DModel": hunyuan_dit,
    "Qwen2_5_VLForConditionalGeneration": encoding_lm,
    "Mistral3ForConditionalGeneration": encoding_lm,
    "QwenImageTransformer2DModel": qwen_image,
    "ZImageTransformer2DModel": z_image,
    "HunyuanImageTransformer2DModel": hunyuan_image,
    "AutoencoderKLFlux2": autoencoder,
    "AutoencoderKLQwenImage": wan_decoder,
    "AutoencoderKLHunyuanImage": autoencoder,
}
