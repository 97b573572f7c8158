"""What goes wrong, in one line: what an error says, which name was perhaps meant, and which value is none."""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec


def text_of(error: BaseException, most: int = 300) -> str:
    """The first characters of an error's text, on one line."""
    return " ".join(str(error).split())[:most]


def typed(error: BaseException, most: int = 300) -> str:
    """An error's type and text, on one line."""
    return f"{type(error).__name__}: {text_of(error)}"[:most]


def said_by(error: BaseException) -> str:
    """What an error says, on one line, with its type where it is none of ours."""
    return text_of(error) if isinstance(error, ValueError) and str(error).strip() else typed(error)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``"did you mean 'steps'? "`` for a name that is nearly a known one, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""


def check_fields(made: Any) -> None:
    """Refuse a dataclass with a value that its field's type does not allow; None is one where it is the default.

    What a value should be is said by the description of the type's ``msgspec.Meta``, or by the choices there are.
    """
    kinds = get_type_hints(type(made), include_extras=True)
    for name, value, default in ((field.name, getattr(made, field.name), field.default) for field in fields(made)):
        if value is None and default is None:
            continue
        try:
            msgspec.convert(value, kinds[name])
        except msgspec.ValidationError as error:
            raise ValueError(_refused(name, value, kinds[name])) from error


def _refused(name: str, value: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        possible = get_args(kind)
        return f"unknown {name} {value!r}; {did_you_mean(value, possible)}choose one of {', '.join(possible)}"
    return f"{name}={value!r} is not {'true or false' if kind is bool else kind.__metadata__[-1].description}"
