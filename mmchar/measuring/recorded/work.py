"""What a recorded call computes and moves: it is made on ``meta`` with tensors of the recorded shapes, and counted."""

import ast
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmchar.measuring.recorded.attribution import HEADS_FIRST, is_attention, overloads
from mmchar.measuring.recorded.recording import Argument, Call
from mmchar.tracing.trace import Row, trace

_TYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "long int": torch.int64,
    "long": torch.int64,
    "int": torch.int32,
    "short int": torch.int16,
    "signed char": torch.int8,
    "unsigned char": torch.uint8,
    "bool": torch.bool,
    "c10::Half": torch.float16,
    "c10::BFloat16": torch.bfloat16,
    "c10::complex<float>": torch.complex64,
    "c10::complex<double>": torch.complex128,
}
_EIGHT_BITS = re.compile(r"c10::Float8_(\w+)")
_TOO_LARGE = 2**62  # for a column of integers, and for any GPU
_CAUSAL = 5  # which argument of flash-attn's forward says so, as of its version 2


def dtype_of(recorded: str) -> torch.dtype | None:
    """The number type that a profiler calls so; None for one that is no tensor's."""
    if eight := _EIGHT_BITS.fullmatch(recorded):
        return getattr(torch, f"float8_{eight[1]}", None)
    return _TYPES.get(recorded)


def shapes_of(call: Call) -> str:
    """The shapes of the tensors that a call was given, as ``4x197x768, 768x768``."""
    lists = (argument.shape if argument.type == "TensorList" else [argument.shape] for argument in call.arguments)
    return ", ".join("x".join(map(str, shape)) for shapes in lists for shape in shapes if shape)


def work_of(call: Call, own: torch.dtype) -> Row | None:
    """FLOPs, bytes, lengths and number type of one call, by the formulas of `mmchar.tracing`.

    Of tensors in lists, as those of ``cat``, no number type is recorded: they are taken to be of the type ``own``.
    None where shapes were not recorded, where this version of torch has no such operator, or where it needs to know
    what is not recorded.
    """
    if not any(argument.type for argument in call.arguments):
        return None
    try:
        rows = trace(nn.Module(), _attention(call) if is_attention(call.name) else _same(call, own))
    except Exception:  # noqa: BLE001  whatever torch says of arguments that were not recorded whole
        return None
    found = rows[0] if rows else Row("", "", call.name, "")  # what is free has no row
    for row in rows[1:]:
        found.flop += row.flop
        found.read_bytes += row.read_bytes
        found.write_bytes += row.write_bytes
    return found if max(found.flop, found.read_bytes, found.write_bytes) < _TOO_LARGE else None


def _same(call: Call, own: torch.dtype) -> Callable[[], Any]:
    """The call of the same operator; one that writes into an argument is called without it."""
    for form in overloads(call.name):
        wanted, given = form._schema.arguments, call.arguments
        if len(wanted) > len(given) or any(dtype_of(rest.type) is None for rest in given[len(wanted) :]):
            continue
        try:
            values = [_value(one, argument, own) for one, argument in zip(given, wanted, strict=False)]
        except TypeError:
            continue  # what was recorded is not for this form
        by_name = {argument.name: value for value, argument in zip(values, wanted, strict=True) if argument.kwarg_only}
        in_order = values[: len(values) - len(by_name)]
        return lambda: form(*in_order, **by_name)
    raise ValueError(f"no form of {call.name} takes what was recorded")


def _value(given: Argument, wanted: Any, own: torch.dtype) -> Any:
    """The value of an argument; what is not recorded has its default. A TypeError where it is of another type."""
    kind, dtype = str(wanted.type), dtype_of(given.type)
    if kind == "Tensor" or (kind == "Optional[Tensor]" and given.type):
        return _tensor(given)
    if kind == "List[Tensor]" and given.type == "TensorList":
        return [torch.empty(shape, dtype=own, device="meta") for shape in given.shape]
    if dtype is not None or (kind.startswith("List") and "Tensor" in kind):
        raise TypeError(f"{wanted.name} is no {kind}")
    if wanted.name in ("device", "pin_memory"):
        return torch.device("meta") if wanted.name == "device" else None
    if not given.value:
        return wanted.default_value if wanted.has_default_value() else None
    try:
        return ast.literal_eval(given.value)
    except (ValueError, SyntaxError):
        return float(given.value)  # inf, nan


def _tensor(given: Argument) -> Tensor:
    dtype = dtype_of(given.type)
    if dtype is None:
        raise TypeError(f"{given.type!r} is no tensor")
    if len(given.strides) == len(given.shape):
        return torch.empty_strided(given.shape, given.strides, dtype=dtype, device="meta")
    return torch.empty(given.shape, dtype=dtype, device="meta")


def _attention(call: Call) -> Callable[[], Any]:
    """The core that an attention kernel, of PyTorch or of a package, computes; q is [b, h, q, d] or [b, q, h, d]."""
    q, k, v = map(_tensor, call.arguments[:3])
    if not HEADS_FIRST.fullmatch(call.name):
        if q.dim() != 4:
            raise ValueError(f"{call.name} of sequences of several lengths, which are not recorded")
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask, causal = _mask_and_causal(call)
    return lambda: torch.ops.aten.scaled_dot_product_attention(q, k, v, mask, 0.0, causal)


def _mask_and_causal(call: Call) -> tuple[Tensor | None, bool]:
    forms = overloads(call.name)
    if not forms:
        return None, [given.value for given in call.arguments[_CAUSAL : _CAUSAL + 1]] == ["True"]
    named = dict(zip((argument.name for argument in forms[0]._schema.arguments), call.arguments, strict=False))
    masks = [named[name] for name in ("attn_mask", "attn_bias", "bias") if name in named and named[name].type]
    says = [named[name].value for name in ("is_causal", "custom_mask_type") if name in named]
    return _tensor(masks[0]) if masks else None, any(text not in ("", "False", "0") for text in says)
