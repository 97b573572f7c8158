"""The class that generates with some networks, where a model file names none: told by the networks' own classes."""

import re
from dataclasses import replace

import msgspec

from mmchar.models.specs import Model, ModelSpec, Pipeline

_DENOISERS = ("unet", "transformer")
# Classes of diffusers whose pipeline is not called after them.
_CALLED = {"SD3": "StableDiffusion3", "UNet2D": "DDPM"}


def with_pipeline(model: Model) -> Model:
    """A model whose spec says what generates with it; ValueError for networks that no pipeline is called after."""
    if model.spec.pipeline.cls:
        return model
    return replace(model, spec=msgspec.structs.replace(model.spec, pipeline=_pipeline(model)))


def _pipeline(model: Model) -> Pipeline:
    first, *others = model.components.values()
    if not others and hasattr(first, "main_input_name") and hasattr(first, "_from_config"):
        writes = hasattr(first, "generate") and first.can_generate()
        return Pipeline("transformers", "generate" if writes else "forward")
    import diffusers

    name = _name(model.spec)
    if not hasattr(diffusers, name):
        raise ValueError(
            f"{model.spec.name}: nothing says what generates with {', '.join(model.spec.components)}; "
            'name it in the file, e.g. "pipeline": {"library": "diffusers", "class": "FluxPipeline"}'
        )
    return Pipeline("diffusers", name)


def _name(spec: ModelSpec) -> str:
    part = next((spec.components[role] for role in _DENOISERS if role in spec.components), None)
    if part is None:
        return ""
    if part.cls == "UNet2DConditionModel":
        return f"StableDiffusion{'XL' if part.config.get('addition_embed_type') == 'text_time' else ''}Pipeline"
    kind = re.sub(r"(Transformer(2D|3D|1D)?)?Model$", "", part.cls)
    return f"{_CALLED.get(kind, kind)}Pipeline"
