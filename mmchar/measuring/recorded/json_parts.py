"""The parts of a profiler's JSON, one after the other, so that a file of any size is read in little memory."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

EVENTS = "traceEvents"
_DECODER = json.JSONDecoder(strict=False)  # names of kernels hold what names of files may hold
_SPACE = re.compile(r"[ \t\r\n]*")
_PIECE = 1 << 20  # characters
_EDGE = 16  # an error so close to the end of a piece may be one of where it was cut
_OTHERS = {
    b"SQLite format 3\0": "a database of Nsight Systems, whose kernels have no shapes",
    b"PK\x03\x04": "a zip archive; unpack it",
}


def read_parts(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Every entry of the JSON object in a file, plain or gzipped, as (key, value); of `EVENTS` every event by itself.

    Raises
    ------
    ValueError
        One line that names the file: it cannot be read, is cut off, or is no object of JSON.
    """
    try:
        with _opened(Path(path)) as file:
            yield from _entries(_Text(file))
    except EOFError as error:
        raise ValueError(f"{path} is cut off ({error}); copy or record it again") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; give a trace as .json or .json.gz") from error
    except (zlib.error, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no trace of torch.profiler: {error}") from error


def _opened(path: Path) -> IO[str]:
    with open(path, "rb") as file:
        head = file.read(16)
    if other := next((says for magic, says in _OTHERS.items() if head.startswith(magic)), ""):
        raise ValueError(f"it is {other}")
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "replace"}
    return gzip.open(path, "rt", **how) if head.startswith(b"\x1f\x8b") else open(path, **how)


class _Text:
    """A text that is read piece by piece, and the place up to which it is understood."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._at, self._before = file, "", 0, 0

    def mark(self) -> str:
        """The next character that is no space; it is taken. An EOFError where there is none."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
        while self._at == len(self._text):
            if not self._more():
                raise EOFError(f"it ends at character {self._before + self._at}")
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
        self._at += 1
        return self._text[self._at - 1]

    def value(self) -> Any:
        """The next value, from its first character on."""
        self.mark()
        self._at -= 1
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _EDGE
                if not cut:
                    raise ValueError(f"{error.msg} at character {self._before + error.pos}") from None
                if not self._more():
                    raise EOFError(f"it ends at character {self._before + len(self._text)}") from None

    def items(self, end: str) -> Iterator[None]:
        """Before each item of a list or an object whose first bracket is taken; the last one is ``end``."""
        first = True
        while (mark := self.mark()) != end:
            if (mark == ",") == first:
                raise ValueError(f"Expecting ',' or {end!r} at character {self._before + self._at - 1}")
            self._at -= first
            first = False
            yield

    def _more(self) -> bool:
        piece = self._file.read(max(_PIECE, len(self._text) - self._at))  # a long value is not tried too often
        self._before += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


def _entries(text: _Text) -> Iterator[tuple[str, Any]]:
    if text.mark() != "{":
        raise ValueError("it does not hold a JSON object")
    for _ in text.items("}"):
        key = text.value()
        if not isinstance(key, str) or text.mark() != ":":
            raise ValueError("an entry of its object has no name")
        if key != EVENTS:
            yield key, text.value()
            continue
        if text.mark() != "[":
            raise ValueError(f"its {EVENTS} are no list")
        for _ in text.items("]"):
            yield key, text.value()
