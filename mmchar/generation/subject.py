"""What is characterized: a pipeline, a model with ``generate()``, or any module; each as a generation that can be run.

A `Subject` says nothing of what its work does: that is seen (`run.record`).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.generation.from_folders import pipelines
from mmchar.generation.recording import Subject
from mmchar.generation.run import on_meta
from mmchar.generation.structure import copied


def subject_of(
    model: Any, inputs: tuple[Any, ...], call: Mapping[str, Any], *, device: str = "meta", role: str = "lm"
) -> Subject:
    """The generation of an object of the user's own, a pipeline, a model or a module, which stays as it is.

    It is called with its own call's arguments; a model with ``generate()`` with those, or with ``prompt_tokens`` and
    ``new_tokens``, and its network is called by ``role``. The device ``"meta"`` copies the structure there; any other
    takes the object as it is. Raises ValueError for an argument that the call does not take.
    """
    if hasattr(model, "components") and hasattr(model, "register_modules"):
        return _pipeline(model, inputs, call, device)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{type(model).__name__} is no pipeline, model or module; give one, or a zoo name, file or folder"
        )
    twin = on_meta(model) if device == "meta" else model
    if hasattr(model, "generate") and _is_written(model, call):
        return _language_model(twin, call, role)
    if "prompt_tokens" in call and not inputs:
        return _forward(twin, (), {"input_ids": _ids(call), **_rest(call)})
    return _forward(twin, inputs, call)


def _pipeline(pipe: Any, inputs: tuple[Any, ...], call: Mapping[str, Any], device: str) -> Subject:
    if inputs:
        raise ValueError(f"{type(pipe).__name__}: give its arguments by name, e.g. prompt='a cat'")
    pipelines.check_arguments(pipe.__call__, call, owner=type(pipe).__name__)
    twin = pipelines.on_meta(pipe) if device == "meta" else pipe
    makes = makes_of(pipe.__call__)
    return Subject(type(pipe).__name__, pipelines.networks_of(twin), pipelines.work(twin, call), call, makes=makes)


def makes_of(call: Callable[..., Any]) -> str | None:
    """What a pipeline makes, by what its call can be asked for; None where that does not tell."""
    asks = set(inspect.signature(call).parameters)
    if asks & {"num_frames", "video_length"}:
        return "video"
    return "audio" if any(name.startswith("audio_") for name in asks) else None


def _is_written(model: Any, call: Mapping[str, Any]) -> bool:
    """Whether these are arguments of ``generate()`` and not of one forward."""
    if {"new_tokens", "max_new_tokens"} & call.keys():
        return True
    takes = inspect.signature(model.forward).parameters.values()
    names = {part.name for part in takes if part.kind is not part.VAR_KEYWORD}
    return "prompt_tokens" not in call and not call.keys() <= names


def _language_model(model: Any, call: Mapping[str, Any], role: str) -> Subject:
    """``generate()``, made to write all the tokens that are asked for."""
    given = _rest(call)
    new = call.get("new_tokens", call.get("max_new_tokens"))
    if "prompt_tokens" in call:
        given.setdefault("input_ids", _ids(call))
    given |= {"max_new_tokens": new, "min_new_tokens": new} if new else {}
    given.setdefault("do_sample", False)
    if getattr(model.generation_config, "pad_token_id", None) is None:
        given.setdefault("pad_token_id", 0)
    if isinstance(given.get("input_ids"), Tensor):
        given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    return Subject(type(model).__name__, {role: model}, lambda: model.generate(**given), _plain(call))


def _forward(module: nn.Module, inputs: tuple[Any, ...], call: Mapping[str, Any]) -> Subject:
    pipelines.check_arguments(module.forward, call, owner=type(module).__name__)
    args, kwargs = copied((tuple(inputs), dict(call)))
    return Subject(type(module).__name__, {"model": module}, lambda: module(*args, **kwargs), _plain(call))


def _ids(call: Mapping[str, Any]) -> Tensor:
    """Token ids ``(batch, prompt tokens)`` that stand for a prompt."""
    return torch.ones(call.get("batch", 1), call["prompt_tokens"], dtype=torch.int64)


def _rest(call: Mapping[str, Any]) -> dict[str, Any]:
    own = ("prompt_tokens", "new_tokens", "max_new_tokens", "min_new_tokens", "batch")
    return {name: value for name, value in call.items() if name not in own}


def _plain(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if isinstance(value, int | float | str | bool)}
