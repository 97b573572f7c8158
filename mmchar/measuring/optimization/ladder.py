"""The switches of a measurement that change how a model is run and not what it is asked for.

The number type and the attention backend are arguments of their own, fewer steps are the request's. Which levers there
are follows arXiv 2410.00215 (sections on SDPA, torch.compile with CUDA graphs, AutoQuant and LayerSkip) and the
optimization guides of diffusers; what each does to a model is in `execution`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

EXECUTIONS = ("eager", "compiled", "compiled-full", "graphs", "compiled-graphs")
QUANTIZATIONS = ("none", "int8-weight-only", "int8-dynamic", "fp8-weight-only", "fp8-dynamic")
GUIDANCES = ("batched", "split")


@dataclass(frozen=True)
class Levers:
    """How a model is run; the defaults are PyTorch as it is.

    Parameters
    ----------
    execution : {"eager", "compiled", "compiled-full", "graphs", "compiled-graphs"}
        ``compiled``: ``torch.compile`` of the repeated blocks, one after the other; ``compiled-full``: of the whole
        execution; ``graphs``: a CUDA graph of the eager kernels, with a static KV cache where there is a cache;
        ``compiled-graphs``: a CUDA graph of the fully compiled execution.
    quantization : {"none", "int8-weight-only", "int8-dynamic", "fp8-weight-only", "fp8-dynamic"}
        What torchao makes of the linear layers; dynamic quantizes activations too.
    channels_last : bool
        The convolutions' weights as ``(batch, height, width, channels)`` in memory.
    fused_qkv : bool
        One projection for queries, keys and values in the denoiser.
    cfg : {"batched", "split"}
        Classifier-free guidance as one execution of the doubled batch, or as two, one after the other.
    layer_skip : int
        Self-speculative decoding whose draft leaves out every ``layer_skip``-th layer; 0 is none, 2 the most skipped.
    draft_tokens : int
        Tokens drafted before one execution of the whole model verifies them.
    acceptance : float, optional
        Chance that a drafted token is accepted. Weights are random, so it is stated, not measured.

    Raises
    ------
    ValueError
        A value that is not possible, or a combination that is not.
    """

    execution: str = "eager"
    quantization: str = "none"
    channels_last: bool = False
    fused_qkv: bool = False
    cfg: str = "batched"
    layer_skip: int = 0
    draft_tokens: int = 4
    acceptance: float | None = None

    def __post_init__(self) -> None:
        _choose("execution", self.execution, EXECUTIONS)
        _choose("quantization", self.quantization, QUANTIZATIONS)
        _choose("cfg", self.cfg, GUIDANCES)
        for name in ("channels_last", "fused_qkv"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible; give true or false")
        self._check_speculation()

    def _check_speculation(self) -> None:
        if not _is_whole(self.layer_skip) or self.layer_skip < 0 or self.layer_skip == 1:
            raise ValueError(f"layer_skip={self.layer_skip!r} is not possible; give 0 for none, or 2 or more")
        if not _is_whole(self.draft_tokens) or self.draft_tokens < 1:
            raise ValueError(f"draft_tokens={self.draft_tokens!r} is not a whole number of 1 or more")
        if self.acceptance is not None and not _is_share(self.acceptance):
            raise ValueError(f"acceptance={self.acceptance!r} is not a number from 0 to 1")
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
            near = difflib.get_close_matches(str(name), FIELDS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown lever {name!r}; {hint}levers are {', '.join(FIELDS)}")
    return Levers(**values)


def ladder(model: str) -> list[Rung]:
    """The rungs from eager float32 to the quantized model, each with what the one before it has.

    Raises
    ------
    ValueError
        A model that has no ladder.
    """
    if model not in _LADDERS:
        near = difflib.get_close_matches(str(model), _LADDERS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no ladder for {model!r}; {hint}there is one for {', '.join(_LADDERS)}")
    start = [
        Rung("eager fp32", "float32", "eager", Levers()),
        Rung("bf16", "bfloat16", "eager", Levers()),
        Rung("SDPA", "bfloat16", "flash", Levers()),
    ]
    return start + [Rung(name, "bfloat16", "flash", Levers(**levers)) for name, levers in _LADDERS[model].items()]


# Weight-only int8 halves the bytes of a decode, which is memory bound; fp8 with quantized activations doubles the peak
# of a denoiser's matrix products, which are compute bound.
_DECODER: dict[str, dict[str, Any]] = {
    "compile": {"execution": "compiled-full"},  # the blocks one by one would be compiled once per layer number
    "graphs": {"execution": "compiled-graphs"},
    "quantized": {"execution": "compiled-graphs", "quantization": "int8-weight-only"},
}
_U_NET: dict[str, dict[str, Any]] = {
    "channels last": {"channels_last": True, "fused_qkv": True},
    "compile": {"channels_last": True, "fused_qkv": True, "execution": "compiled-full"},
    "graphs": {"channels_last": True, "fused_qkv": True, "execution": "compiled-graphs"},
    "quantized": {
        "channels_last": True,
        "fused_qkv": True,
        "execution": "compiled-graphs",
        "quantization": "fp8-dynamic",
    },
}
_TRANSFORMER: dict[str, dict[str, Any]] = {
    "compile": {"fused_qkv": True, "execution": "compiled"},
    "graphs": {"fused_qkv": True, "execution": "compiled-graphs"},
    "quantized": {"fused_qkv": True, "execution": "compiled-graphs", "quantization": "fp8-dynamic"},
}
_LADDERS = {
    "sdxl-base-1.0": _U_NET,
    "flux.1-dev": _TRANSFORMER,
    "llama-2-7b": _DECODER,
    "codellama-7b": _DECODER,
    "chameleon-7b": _DECODER,
    "seamless-m4t-v2-large": _DECODER,
}


def _choose(name: str, value: Any, possible: tuple[str, ...]) -> None:
    if value not in possible:
        near = difflib.get_close_matches(str(value), possible, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {name} {value!r}; {hint}choose one of {', '.join(possible)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
