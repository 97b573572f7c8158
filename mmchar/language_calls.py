"""How the parts of models that see, hear or draw with a language model are called; see :mod:`mmchar.calls`."""

from typing import Any

from torch import nn

from mmchar.calls import Inputs, Work


def encode_clip_image(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """CLIP's image tower and projection on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.get_image_features(pixel_values=pixels)


def encode_clip_text(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """CLIP's text tower and projection on ``(batch, tokens)`` ids."""
    ids = make.tokens(batch, tokens, vocabulary=module.config.text_config.vocab_size)
    return lambda: module.get_text_features(input_ids=ids)


def score_classes(module: nn.Module, make: Inputs, *, images: int, classes: int) -> Work:
    """CLIP's similarity of every image with every class, ``(images, classes)``, from both embeddings."""
    image, text = (make.normal(rows, module.config.projection_dim) for rows in (images, classes))

    def work() -> Any:
        left, right = (each / each.norm(dim=-1, keepdim=True) for each in (image, text))
        return (left @ right.t() * module.logit_scale.exp()).softmax(dim=-1)

    return work


def encode_tiles(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """LLaVA's vision tower on ``(images, channels, height, width)`` images or tiles of images."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.model.vision_tower(pixels)


def project_patches(module: nn.Module, make: Inputs, *, images: int, patches: int) -> Work:
    """LLaVA's adaptor (a linear layer or an MLP) on ``(images, patches, width)`` features."""
    features = make.normal(images, patches, module.config.vision_config.hidden_size)
    return lambda: module.model.multi_modal_projector(features)


def encode_image_blip2(module: nn.Module, make: Inputs, *, images: int) -> Work:
    """BLIP-2's vision tower on ``(images, channels, height, width)``."""
    pixels = _pixels(make, module.config.vision_config, images)
    return lambda: module.vision_model(pixel_values=pixels)


def project_queries(module: nn.Module, make: Inputs, *, images: int, context: int) -> Work:
    """BLIP-2's Q-Former over ``(images, context, width)`` features, and its projection to the language model."""
    features = make.normal(images, context, module.config.vision_config.hidden_size)

    def work() -> Any:
        queries = module.query_tokens.expand(images, -1, -1)
        found = module.qformer(query_embeds=queries, encoder_hidden_states=features)
        return module.language_projection(found.last_hidden_state)

    return work


def prefill_embeds(module: nn.Module, make: Inputs, *, batch: int, tokens: int) -> Work:
    """A language model on embedded image and text tokens; only the last position's logits are made."""
    embeds = make.normal(batch, tokens, module.config.get_text_config().hidden_size)
    lm = language_model(module)
    return lambda: lm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)


def language_model(module: nn.Module) -> Any:
    """The causal language model of a component: the component itself, or BLIP-2's, which has a head of its own."""
    return getattr(module, "language_model", module)


def _pixels(make: Inputs, vision: Any, images: int) -> Any:
    return make.normal(images, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size)
