"""Closed forms of diffusion transformers and of what encodes and decodes for them, as in :mod:`mmchar.closed_forms`."""

from collections.abc import Callable, Iterator

from mmchar.closed_forms import Config, Site, Sizes, causal_lm


def nothing(_config: Config, _sizes: Sizes) -> Iterator[Site]:
    """A component without an attention core: convolutions only, or attention written out as matrix products."""
    yield from ()


def encoding_lm(config: Config, sizes: Sizes) -> Iterator[Site]:
    """A language model over a whole prompt; where it also sees, its text part."""
    yield from causal_lm(config.get("text_config", config), sizes)


def flux(config: Config, sizes: Sizes) -> Iterator[Site]:
    """FLUX and FLUX.2: every block, double or single, attends over the text and every 2x2 patch of the latent.

    **Source**: diffusers ``transformer_flux.py`` and ``pipeline_flux.py`` (``_pack_latents``).
    """
    tokens = (sizes["height"] // 2) * (sizes["width"] // 2) * sizes.get("frames", 1) + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    calls = config["num_layers"] + config["num_single_layers"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, calls)


def sd3(config: Config, sizes: Sizes) -> Iterator[Site]:
    """Stable Diffusion 3: every block over text and image; the dual blocks of 3.5 medium also over the image alone.

    **Source**: arXiv 2403.03206, section 4; diffusers ``transformer_sd3.py``.
    """
    image = _patches(config, sizes)
    tokens = image + sizes["context"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("joint", sizes["batch"], heads, tokens, tokens, head_dim, config["num_layers"])
    if dual := len(config["dual_attention_layers"]):
        yield Site("self", sizes["batch"], heads, image, image, head_dim, dual)


def dit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """DiT and PixArt: every block over the patches of the latent, and over the text where there is one.

    **Source**: arXiv 2212.09748, section 3.2; arXiv 2310.00426, section 2.3.
    """
    tokens, layers = _patches(config, sizes), config["num_layers"]
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    yield Site("self", sizes["batch"], heads, tokens, tokens, head_dim, layers)
    if "context" in sizes:
        yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, layers)


def sana(config: Config, sizes: Sizes) -> Iterator[Site]:
    """SANA: cross attention to the text; over the image it attends linearly, without a similarity matrix.

    **Source**: arXiv 2410.10629, section 2.2.
    """
    heads, head_dim = config["num_cross_attention_heads"], config["cross_attention_head_dim"]
    tokens = _patches(config, sizes)
    yield Site("cross", sizes["batch"], heads, tokens, sizes["context"], head_dim, config["num_layers"])


def uvit(config: Config, sizes: Sizes) -> Iterator[Site]:
    """aMUSEd: the transformer over the token image (halved at 512 pixels) and the text, the convolution blocks too.

    Each convolution block, down and up, holds an attention over the positions and one over the text.

    **Source**: diffusers ``uvit_2d.py``.
    """
    batch, context = sizes["batch"], sizes["context"]
    halved = 2 if config["downsample"] else 1
    tokens = (sizes["height"] // halved) * (sizes["width"] // halved)
    places = (
        (config["block_num_heads"], config["block_out_channels"], 2 * config["num_res_blocks"]),
        (config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]),
    )
    for heads, width, layers in places:
        yield Site("self", batch, heads, tokens, tokens, width // heads, layers)
        yield Site("cross", batch, heads, tokens, context, width // heads, layers)


def _patches(config: Config, sizes: Sizes) -> int:
    """Tokens of a latent cut into square patches."""
    patch = config["patch_size"]
    return (sizes["height"] // patch) * (sizes["width"] // patch)


FORMS: dict[str, Callable[[Config, Sizes], Iterator[Site]]] = {
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
}
