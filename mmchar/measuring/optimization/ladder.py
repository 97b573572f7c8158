"""The switches of a measurement that change how a model is run and not what it is asked for.

The number type and the attention backend are arguments of their own, fewer steps are the request's. Which levers there
are follows arXiv 2410.00215 (sections on SDPA, torch.compile with CUDA graphs, AutoQuant and LayerSkip) and the
optimization guides of diffusers; what each does to a model is in `execution`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from mmchar.faults import check_fields, did_you_mean
from mmchar.request import UNSET, Positive

Execution = Literal["eager", "compiled", "compiled-full", "graphs", "compiled-graphs"]
Quantization = Literal["none", "int8-weight-only", "int8-dynamic", "fp8-weight-only", "fp8-dynamic"]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
_FP8_PRODUCTS = (8, 9)  # compute capability from which a GPU multiplies fp8: CUDA programming guide, Ada and Hopper


@dataclass(frozen=True)
class Levers:
    """How a model is run; the defaults are PyTorch as it is. A value or combination that is not possible is refused.

    - ``execution``: ``compiled`` is ``torch.compile`` of the repeated blocks, one after the other, ``compiled-full`` of
      the whole execution; ``graphs`` is a CUDA graph of the eager kernels, with a static KV cache where there is a
      cache, ``compiled-graphs`` one of the fully compiled execution.
    - ``quantization``: what torchao makes of the linear layers; dynamic quantizes activations too.
    - ``channels_last``: the convolutions' weights as ``(batch, height, width, channels)`` in memory.
    - ``fused_qkv``: one projection for queries, keys and values in the denoiser.
    - ``cfg``: guidance as one execution of the doubled batch, or ``split`` into two, one after the other.
    - ``layer_skip``: self-speculative decoding whose draft leaves out every so many-th layer; 0 is none, 2 the most.
    - ``draft_tokens``: drafted before one execution of the whole model verifies them.
    - ``acceptance``: chance that a drafted token is accepted; weights are random, so it is stated, not measured.
    """

    execution: Execution = "eager"
    quantization: Quantization = "none"
    channels_last: bool = False
    fused_qkv: bool = False
    cfg: Literal["batched", "split"] = "batched"
    layer_skip: Annotated[int, Meta(ge=0, description="0 for none, or 2 or more")] = 0
    draft_tokens: Positive = 4
    acceptance: Share = UNSET

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layer_skip == 1:
            raise ValueError("layer_skip=1 is not 0 for none, or 2 or more")
        if bool(self.layer_skip) != (self.acceptance is not None):
            raise ValueError("layer_skip and acceptance go together: weights are random, so state both or neither")
        if self.layer_skip and self.on_graphs:
            raise ValueError(f"layer_skip cannot be measured with execution {self.execution!r}; use eager or compiled")

    @property
    def on_graphs(self) -> bool:
        """Whether executions are replayed from a CUDA graph."""
        return self.execution in ("graphs", "compiled-graphs")

    @property
    def compiles(self) -> bool:
        """Whether ``torch.compile`` is used."""
        return self.execution.startswith("compiled")

    @property
    def settles(self) -> bool:
        """Whether something is compiled or captured: that takes untimed executions first, and a static KV cache."""
        return self.execution != "eager"

    @property
    def by_kernel_name(self) -> bool:
        """Whether time can only be told by kernel: what is compiled, captured or quantized runs no eager operators."""
        return self.settles or self.quantization != "none"

    def given(self) -> dict[str, Any]:
        """The levers that are not at their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


FIELDS = tuple(f.name for f in fields(Levers))


class Rung(NamedTuple):
    """One step of an optimization ladder: what it is called, and what to measure with."""

    name: str
    dtype: str
    attention: str
    levers: Levers


def from_mapping(values: Mapping[str, Any]) -> Levers:
    """Levers from plain values; an unknown name is refused with the nearest valid one."""
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"unknown lever {name!r}; {did_you_mean(name, FIELDS)}levers are {', '.join(FIELDS)}")
    return Levers(**values)


def ladder(model: str) -> list[Rung]:
    """The rungs from eager float32 to the quantized model, each with what the one before it has."""
    if model not in _LADDERS:
        raise ValueError(
            f"no ladder for {model!r}; {did_you_mean(model, _LADDERS)}there is one for {', '.join(_LADDERS)}"
        )
    rungs = [Rung("eager fp32", "float32", "eager", Levers()), Rung("bf16", "bfloat16", "eager", Levers())]
    for name, more in {"SDPA": {}, **_LADDERS[model]}.items():
        rungs.append(Rung(name, "bfloat16", "flash", replace(rungs[-1].levers, **more)))
    return rungs


# What each rung adds. Weight-only int8 halves the bytes of a decode, which is memory bound; fp8 with quantized
# activations doubles the peak of a denoiser's matrix products, which are compute bound.
_GRAPHS = {"execution": "compiled-graphs"}
_U_NET: dict[str, dict[str, Any]] = {
    "channels last": {"channels_last": True, "fused_qkv": True},
    "compile": {"execution": "compiled-full"},
    "graphs": _GRAPHS,
    "quantized": {"quantization": "fp8-dynamic"},
}
_TRANSFORMER: dict[str, dict[str, Any]] = {
    "compile": {"fused_qkv": True, "execution": "compiled"},
    "graphs": _GRAPHS,
    "quantized": {"quantization": "fp8-dynamic"},
}
_DECODER: dict[str, dict[str, Any]] = {
    "compile": {"execution": "compiled-full"},  # the blocks one by one would be compiled once per layer number
    "graphs": _GRAPHS,
    "quantized": {"quantization": "int8-weight-only"},
}
_DECODERS = ("llama-2-7b", "codellama-7b", "chameleon-7b", "seamless-m4t-v2-large")
_LADDERS = {"sdxl-base-1.0": _U_NET, "flux.1-dev": _TRANSFORMER, **dict.fromkeys(_DECODERS, _DECODER)}


def check_levers(levers: Levers, *, device: str) -> None:
    """Refuse levers that this machine cannot pull, before a model is built, with what is possible instead."""
    on_gpu = device.startswith("cuda")
    if levers.on_graphs and not on_gpu:
        raise ValueError(f"execution {levers.execution!r} needs an NVIDIA GPU; on a cpu use eager or compiled")
    scheme = levers.quantization
    if scheme != "none" and find_spec("torchao") is None:
        raise ValueError(f"quantization {scheme!r} needs torchao: pip install 'mmchar[quantize]'")
    if scheme == "fp8-dynamic" and not (on_gpu and _capability(device) >= _FP8_PRODUCTS):
        raise ValueError("quantization 'fp8-dynamic' needs a GPU of compute capability 8.9 or newer; use int8-dynamic")


def _capability(device: str) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)
