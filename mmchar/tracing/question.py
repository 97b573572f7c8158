"""What an operator is asked: its arguments, with tensors as they look. Its output and its cost follow from that."""

from collections.abc import Iterable
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor

Question = tuple[Any, ...]
_AS_THEY_ARE = frozenset([int, str, NoneType, torch.dtype, torch.device, torch.layout, torch.memory_format])


class OperatorCall(NamedTuple):
    """One call of an operator, with the tensors among its arguments and the `question` that these are."""

    func: Any
    name: str
    args: tuple
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    asked: Question

    @classmethod
    def of(cls, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> "OperatorCall":
        """The call of an operator that goes by ``name``. Raises ValueError where a tensor is nested."""
        asked, inputs = question(args, kwargs)
        return cls(func, name, args, kwargs, inputs, asked)


def question(args: tuple, kwargs: dict[str, Any], *, reals: bool = True) -> tuple[Question, list[Tensor]]:
    """The question that a call's arguments are, and the tensors among them in order, those in lists too.

    A tensor's shape, strides and type count, and whether it is on ``meta``, but no values. 1, 1.0 and True are three
    different questions; without ``reals`` 1.0 and 2.0 are the same.

    Raises ValueError where a tensor is nested.
    """
    found: list[Tensor] = []
    asked = _parts(args, found, reals)
    if kwargs:
        asked += (*kwargs, *_parts(tuple(kwargs.values()), found, reals))
    return asked, found


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments or results, those in lists too, in order.

    Raises ValueError where one of them is nested.
    """
    return question(tuple(values), {})[1]


def _parts(parts: tuple | list, found: list[Tensor], reals: bool) -> Question:
    asked: list[Any] = []
    for part in parts:
        if type(part) in _AS_THEY_ARE:  # most are
            asked.append(part)
        elif isinstance(part, Tensor):
            if part.is_nested:  # its rows have lengths of their own, so shapes do not say what an operator does
                raise ValueError(
                    "nested tensors are not counted; pad the sequences to one length and pass a mask instead"
                )
            found.append(part)
            asked.append((part.shape, part.stride(), part.dtype, part.is_meta))
        elif isinstance(part, (list, tuple)):
            asked.append(_parts(part, found, reals))
        elif isinstance(part, float | bool):
            asked.append((type(part), part if reals or part is True else None))
        else:
            asked.append(part)
    return tuple(asked)
