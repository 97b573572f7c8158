"""What goes wrong, in one line: what an error says, and which name was perhaps meant."""

import difflib
from collections.abc import Iterable


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
