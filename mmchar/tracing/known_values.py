"""Values of small tensors on ``meta``: what a mask, a position or a size says is kept beside the tensor that has none.

Code that reads values (``.item()``, ``tolist()``, ``x[mask]``) then branches on meta as it does on a device. A value is
known where everything that it was computed from is: inputs that were given, ranges, constants. What comes out of
weights or activations is not.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from mmchar.tracing.meta_outputs import meta_output
from mmchar.tracing.operators import words
from mmchar.tracing.question import Question, tensors

_LIMIT = 1 << 16  # whole numbers or truths in a tensor of which the values are kept
_FEW = 1 << 12  # real numbers in such a tensor: times and scales, not activations
_CONSTANTS = words("arange zeros ones full linspace scalar_tensor eye tril_indices new_zeros new_ones new_full")
_LIKE = words("zeros_like ones_like full_like")
# Operators whose output's shape is in their inputs' values; meta has no kernel for them.
_SHAPED_BY_VALUES = words("nonzero repeat_interleave masked_select unique_dim unique_consecutive _unique2 bincount")

_reads = 0  # how often values decided something so far


def reads() -> int:
    """How often code has read the values of a tensor so far, in this process."""
    return _reads


def note_read() -> None:
    """Say that values were read, so that another call with other values may do another thing."""
    global _reads
    _reads += 1


def given(tensor: Tensor) -> Tensor:
    """A tensor on ``meta`` in place of one with values, which are kept if they are few; ``(…)`` as given, but dense."""
    if tensor.is_meta:
        return tensor
    hollow = is_hollow(tensor)
    dense = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if not hollow and not overlaps(tensor):
        dense = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if not hollow and _is_few(tensor):
        with _disable_current_modes():  # a copy that nobody asked for
            dense.known = tensor.detach().clone().cpu()
    return dense


def is_hollow(tensor: Tensor) -> bool:
    """Whether a tensor stands for values that nobody computed: one number, shown at every place."""
    return tensor.numel() > 1 and not any(tensor.stride())


def known(tensor: Tensor) -> Tensor | None:
    """The values of a tensor: its own off ``meta``, else those kept beside it; None where nobody knows."""
    return getattr(tensor, "known", None) if tensor.is_meta else tensor


def run(
    func: Callable[..., Any],
    name: str,
    args: tuple,
    kwargs: dict,
    inputs: list[Tensor],
    asked: Question | None = None,
) -> Any:
    """An operator's output, on ``meta`` where any input is, with its values beside it where they are known.

    ``asked`` is the `question` of the arguments, where it is known already.
    """
    on_meta = [tensor.is_meta for tensor in inputs]
    if not any(on_meta):
        out = func(*args, **kwargs)
        if not inputs and name in _CONSTANTS and _is_small(out):  # a constant made on meta, with its values
            _keep(out, _compute(func, args, kwargs))
        return out
    values = all_known(inputs)
    if values and (name in _SHAPED_BY_VALUES or (name == "index" and _has_mask(args[1]))):
        note_read()
        return _each(given_if_tensor, _compute(func, args, kwargs))
    if not values and _selects_by_mask(name, args):
        return _pick_by_mask(func, args)
    if not all(on_meta):
        args, kwargs, asked = _each(given_if_tensor, args), _each(given_if_tensor, kwargs), None
    if kwargs.get("device") is not None:  # there is no copying from meta to anywhere
        kwargs, asked = {**kwargs, "device": torch.device("meta")}, None
    if name.endswith("_") and not name.startswith("_"):
        out = func(*args, **kwargs)
        _update(func, args, kwargs, values)
        return out
    out = meta_output(func, args, kwargs, asked)
    if (values or name in _LIKE) and _is_small(out):
        _keep(out, _compute(func, args, kwargs, like=name in _LIKE))
    return out


def _each(change: Callable[[Any], Any], part: Any) -> Any:
    """An operator's arguments or results with each part changed, those in lists too."""
    if isinstance(part, dict):
        return {name: _each(change, value) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        changed = [_each(change, value) for value in part]
        return changed if isinstance(part, list) else tuple(changed)
    return change(part)


def given_if_tensor(value: Any) -> Any:
    """`given`, for a part of a structure."""
    return given(value) if isinstance(value, Tensor) else value


def all_known(inputs: Iterable[Tensor]) -> bool:
    """Whether the values of every tensor are known."""
    return all(not tensor.is_meta or hasattr(tensor, "known") for tensor in inputs)


def _has_mask(indices: Iterable[Any]) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _is_small(out: Any) -> bool:
    found = tensors((out,))
    return bool(found) and all(part.is_meta and _is_few(part) for part in found)


def _is_few(tensor: Tensor) -> bool:
    return tensor.numel() <= (_FEW if tensor.is_floating_point() else _LIMIT)


def _compute(func: Callable[..., Any], args: tuple, kwargs: dict, *, like: bool = False) -> Any:
    """The same operator on values; of a tensor "like" another only the shape matters."""

    def value(part: Any) -> Any:
        if isinstance(part, torch.device) and part.type == "meta":
            return torch.device("cpu")
        if not isinstance(part, Tensor):
            return part
        found = known(part)
        return found if found is not None or not like else torch.empty(part.shape, dtype=part.dtype)

    args, kwargs = _each(value, args), _each(value, kwargs)
    try:
        return func(*args, **kwargs)
    except (RuntimeError, IndexError):  # the values make no sense there, e.g. an index out of reach
        return None


def _update(func: Callable[..., Any], args: tuple, kwargs: dict, values: bool) -> None:
    """What an operator in place leaves of its destination's values."""
    destination = args[0]
    if not isinstance(destination, Tensor) or not hasattr(destination, "known"):
        return
    if not values or _compute(func, args, kwargs) is None:
        del destination.known


def _keep(out: Any, values: Any) -> None:
    if values is None:
        return
    pairs = zip(out, values, strict=True) if isinstance(out, (list, tuple)) else [(out, values)]
    for tensor, value in pairs:
        if isinstance(tensor, Tensor) and isinstance(value, Tensor):
            tensor.known = value


def overlaps(tensor: Tensor) -> bool:
    """Whether several places of a tensor are the same memory, as of one that was broadcast."""
    return any(length > 1 and stride == 0 for length, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _selects_by_mask(name: str, args: tuple) -> bool:
    """Whether this is ``x[mask]``, ``~mask`` or ``nonzero`` on meta: its shape hangs on what the mask holds."""
    if name == "nonzero":
        return args[0].is_meta
    if name == "bitwise_not":
        return args[0].is_meta and args[0].dtype == torch.bool
    return name == "index" and _has_mask(args[1])


def _pick_by_mask(func: Any, args: tuple) -> Tensor:
    """``x[mask]`` and the like on meta: of a mask that nobody knows as if all ones, and nothing of its negation."""
    if func.overloadpacket.__name__ == "nonzero":
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
    if len(args) == 1:
        out = func(*args)
        out.keeps_nothing = not getattr(args[0], "keeps_nothing", False)
        return out
    picks: list[Tensor | None] = []
    for mask in args[1]:
        if mask is None or mask.dtype != torch.bool:
            picks.append(mask)
            continue
        values = known(mask)
        unknown = 0 if getattr(mask, "keeps_nothing", False) else mask.numel()
        kept = unknown if values is None else int(values.sum())
        picks += [torch.empty(kept, dtype=torch.int64, device="meta")] * mask.dim()
    return func(given(args[0]), picks)


@contextmanager
def readable() -> Iterator[None]:
    """Meanwhile known values can be read and given as lists on meta, where no automatic number type applies."""
    functions: dict[str, Any] = {"tensor": _tensor, "as_tensor": _tensor, "autocast": _autocast}
    with patch.multiple(Tensor, tolist=_tolist, numpy=_numpy), patch.multiple(torch, **functions):
        yield


_own_tolist, _own_tensor, _own_numpy = Tensor.tolist, torch.tensor, Tensor.numpy


def _tolist(tensor: Tensor) -> Any:
    values = known(tensor)
    note_read()
    if values is None:
        raise NotImplementedError(f"reads the values of a tensor {tuple(tensor.shape)} that the networks computed")
    return _own_tolist(values)


def _numpy(tensor: Tensor, **options: Any) -> Any:
    """Values as numpy has them; zeros where nobody knows them, as of a single number that is read."""
    values = known(tensor)
    return _own_numpy(torch.zeros(tensor.shape, dtype=tensor.dtype) if values is None else values, **options)


def _tensor(data: Any, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> Tensor:
    if isinstance(data, Tensor):
        return data.to(device=device or data.device, dtype=dtype or data.dtype)
    data = _each(_as_list, data)
    if device is not None and torch.device(device).type == "meta":
        return given(_own_tensor(data, *args, device="cpu", dtype=dtype, **kwargs))
    return _own_tensor(data, *args, device=device, dtype=dtype, **kwargs)


def _as_list(part: Any) -> Any:
    return _tolist(part) if isinstance(part, Tensor) and part.is_meta else part


class _autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "meta":
            super().__init__("cpu", enabled=False)
        else:
            super().__init__(device_type, *args, **kwargs)
