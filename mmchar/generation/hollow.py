"""The world outside the networks while a generation is counted: a pipeline's own tensors, on the CPU.

Small tensors are computed for real, so that schedulers, masks and positions are right. What a network returned is not
known: it is *hollow*, zeros that take no memory. So is whatever is large; an operator on it takes no time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from mmchar.models.loading import uncollected
from mmchar.tracing import known_values, operators
from mmchar.tracing.operator_flop import Costs, distinct_bytes, dtype_of
from mmchar.tracing.question import question, tensors
from mmchar.tracing.trace import Recorder, Row

LARGE = 1 << 17  # elements from which a tensor outside the networks is not computed
_PLAIN = 11  # a token id that is nothing special in most vocabularies
_SIZED = frozenset(["zeros", "ones", "full", "empty", "randn", "rand", "randint"])


def hollow(tensor: Tensor) -> Tensor:
    """Zeros on the CPU in the shape of a tensor, without memory."""
    return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)


def record_outside(work: Callable[[], Any]) -> tuple[Any, list[Row]]:
    """What ``work`` returns, and the rows of the operators that it runs outside the networks that are watched."""
    with torch.no_grad(), _undisturbed(), Outside() as outside:
        out = work()
    return out, list(outside.rows.values())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """One thread, as small tensors make a second one wait longer than it helps; and no garbage collector.

    That would choose when memory is let go that something refers to in a circle, and so what is alive.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with uncollected():
            yield
    finally:
        torch.set_num_threads(threads)


class Outside(TorchDispatchMode):
    """Writes down every operator, one row each, and computes only what is small."""

    _should_skip_dynamo = Recorder._should_skip_dynamo

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, torch.dtype | None], Row] = {}
        self._costs = Costs(_bytes)
        self._seen: dict[Any, Any] = {}  # outputs of large operators, by what they were asked

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view and (view := _view_of_hollow(func, args, kwargs)) is not None:
            return view
        asked, inputs = question(args, kwargs, reals=False)
        name = func.overloadpacket.__name__
        out = self._computed(func, name, args, kwargs, inputs)
        if not func.is_view and name not in operators.FREE:
            answered, outputs = question((out,), {})
            self._row(func, name, inputs).add(self._costs.of(name, (asked, answered), args, inputs, outputs))
        return out

    def _computed(self, func: Any, name: str, args: tuple, kwargs: dict, inputs: list[Tensor]) -> Any:
        """The output of one operator: computed where all is small, hollow where anything is large or on ``meta``."""
        size = _size_asked(name, args)
        if size and prod(size) >= LARGE:
            return torch.zeros((), dtype=kwargs.get("dtype")).expand(size)
        writes = name.endswith("_") and not name.endswith("__")
        if any(tensor.is_meta or tensor.numel() >= LARGE for tensor in inputs):
            out = args[0] if writes else self._hollow(func, name, args, kwargs)  # nobody knows its values
            return torch.full(out.shape, _PLAIN) if name == "argmax" else out
        if writes and known_values.overlaps(args[0]):
            return args[0]
        try:
            out = func(*args, **kwargs)
            return _plain_choice(args, out) if name == "argmax" and len(args) > 1 else out
        except NotImplementedError:  # the CPU has no such kernel for this type
            return self._hollow(func, name, args, kwargs)

    def _hollow(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        asked, inputs = question(args, kwargs)
        out = self._seen.get((func, asked))
        if out is None:
            with _disable_current_modes():
                args, kwargs = tree_map(_on_meta, (args, kwargs))
                out = known_values.run(func, name, args, kwargs, tensors((*args, *kwargs.values())))
            if not any(tensor.dtype in (torch.int64, torch.bool) for tensor in inputs):  # places, whose values matter
                self._seen[func, asked] = out
        return hollow_if_meta(out) if isinstance(out, Tensor) else tree_map(hollow_if_meta, out)

    def _row(self, func: Any, name: str, inputs: list[Tensor]) -> Row:
        dtype = dtype_of(inputs)
        if (row := self.rows.get((name, dtype))) is None:
            kind = operators.category(name, pointwise=torch.Tag.pointwise in func.tags)
            text = str(dtype).removeprefix("torch.") if dtype else ""
            row = self.rows[name, dtype] = Row("", "pipeline", name, kind, dtype=text)
        return row


def _view_of_hollow(func: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """A part of a hollow tensor, which is hollow as well; None where it has to be found out, or is no single tensor."""
    if args[0].is_meta or not known_values.is_hollow(args[0]):
        return None
    try:
        out = func(*args, **kwargs)
    except RuntimeError:  # no view of one number that is shown at every place
        return None
    if type(out) is not Tensor:
        return None
    return hollow(out) if any(out.stride()) else out


def _plain_choice(args: tuple, chosen: Tensor) -> Tensor:
    """The largest of numbers along a dimension; of several that are equal not the first, which often is padding."""
    numbers, dim = args[0], args[1]
    if dim is None or numbers.shape[dim] <= _PLAIN:
        return chosen
    as_large = numbers.select(dim, _PLAIN) == numbers.amax(dim)
    return torch.where(as_large.reshape(chosen.shape), _PLAIN, chosen)


def _bytes(tensor: Tensor) -> int:
    """Bytes that a tensor has on a device: a hollow one stands for one with values of its own."""
    if known_values.is_hollow(tensor):
        return tensor.numel() * tensor.element_size()
    return distinct_bytes(tensor)


def _size_asked(name: str, args: tuple) -> list[int] | None:
    """The size that a tensor is made with, where no other tensor says it."""
    if name not in _SIZED:
        return None
    lists = [part for part in args if isinstance(part, (list, tuple)) and all(isinstance(n, int) for n in part)]
    return list(lists[0]) if lists else None


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    return known_values.given_if_tensor(value)


def hollow_if_meta(value: Any) -> Any:
    """`hollow` of a tensor on ``meta``; anything else as it is."""
    return hollow(value) if isinstance(value, Tensor) and value.is_meta else value
