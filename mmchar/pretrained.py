"""Load saved weights through ``from_pretrained``: safetensors only, no remote code."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmchar.models import Component, Model, ModelSpec

PIPELINES = {"StableDiffusionPipeline": "latent_diffusion"}
LANGUAGE_MODELS = ("LlamaForCausalLM",)


def load_pretrained(path: str, *, device: str, dtype: str) -> Model:
    """A diffusers pipeline or a transformers language model from a local folder or a hub id.

    The spec is made from the loaded configurations, so the model can be counted and measured like one of the zoo.

    Raises
    ------
    ValueError
        ``device="meta"``, a folder without ``model_index.json`` or ``config.json``, a class of no known family, or a
        library error (no safetensors, no network), in one line.
    """
    if device == "meta":
        raise ValueError("weights='pretrained' needs a real device; use device='cpu' or 'cuda', or weights='random'")
    kind = _kind(path)
    return _pipeline(path, device, dtype) if kind == "pipeline" else _language_model(path, kind, device, dtype)


def _kind(path: str) -> str:
    """``"pipeline"``, or the class of a language model; a hub id is asked for its index."""
    folder = Path(path)
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            return "pipeline"
        if not (folder / "config.json").is_file():
            raise ValueError(f"{path!r} holds neither model_index.json (diffusers) nor config.json (transformers)")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    else:
        from huggingface_hub import file_exists
        from transformers import PretrainedConfig

        if _reach(path, file_exists, path, "model_index.json"):
            return "pipeline"
        config, _ = _reach(path, PretrainedConfig.get_config_dict, path)
    return (config.get("architectures") or ["unknown"])[0]


def _pipeline(path: str, device: str, dtype: str) -> Model:
    import torch
    from diffusers import DiffusionPipeline

    index = _reach(path, DiffusionPipeline.load_config, path)
    name = index["_class_name"]
    if name not in PIPELINES:
        raise ValueError(f"{path!r} is a {name}; families known so far: {', '.join(PIPELINES)}")
    unused = {part: None for part in ("tokenizer", "safety_checker", "feature_extractor") if part in index}
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **unused}
    pipe = _reach(path, DiffusionPipeline.from_pretrained, path, **options).to(device)
    networks = {role: part for role, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    modules = {role: part.eval().requires_grad_(False) for role, part in networks.items()}
    parts = {role: _component(module, path) for role, module in modules.items()}
    unet, text = modules["unet"].config, modules["text_encoder"].config
    scale = 2 ** (len(modules["vae"].config.block_out_channels) - 1)
    side = unet.sample_size * scale
    tokens, size = text.max_position_embeddings, {"multiple_of": scale}
    request = {"batch": 1, "prompt_tokens": tokens, "height": side, "width": side, "steps": 50, "guidance": 7.5}
    limits = {"prompt_tokens": {"max": tokens}, "height": size, "width": size}
    spec = _spec(path, PIPELINES[name], parts, request, limits, {"context": ["text_encoder"]})
    return Model(spec, modules, device, dtype)


def _language_model(path: str, architecture: str, device: str, dtype: str) -> Model:
    import torch
    from transformers import AutoModelForCausalLM

    if architecture not in LANGUAGE_MODELS:
        raise ValueError(f"{path!r} is a {architecture}; language models known so far: {', '.join(LANGUAGE_MODELS)}")
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
    module = _reach(path, AutoModelForCausalLM.from_pretrained, path, **options).to(device)
    most = module.config.max_position_embeddings
    request = {"batch": 1, "prompt_tokens": min(512, most // 2), "new_tokens": min(256, most // 2)}
    limits = {"prompt_tokens+new_tokens": {"max": most}}
    spec = _spec(path, "autoregressive", {"lm": _component(module, path)}, request, limits, {})
    return Model(spec, {"lm": module.eval().requires_grad_(False)}, device, dtype)


def _reach(path: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a library's call returns; its error (no safetensors, no network, no such file) in one line."""
    try:
        return call(*args, **options)
    except Exception as error:  # the libraries raise errors of many kinds, and none of them is swallowed
        raise ValueError(f"cannot load {path!r}: {' '.join(str(error).split())[:300]}") from error


def _component(module: Any, path: str) -> Component:
    config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
    library = type(module).__module__.split(".")[0]
    return Component(library, type(module).__name__, config, source=f"loaded from {Path(path).name}")


def _spec(
    path: str,
    family: str,
    parts: Mapping[str, Component],
    request: Mapping[str, Any],
    limits: Mapping[str, Any],
    options: Mapping[str, Any],
) -> ModelSpec:
    return ModelSpec(
        name=Path(path).name,
        family=family,
        year=0,
        summary="loaded with saved weights",
        components=parts,
        options=options,
        request=request,
        request_source="the loaded configuration",
        tiny_request={},
        limits=limits,
    )
