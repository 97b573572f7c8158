"""An error inside a library's code in one line: the model, the network that ran, the library's line, what it said."""

import linecache
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmchar.faults import said_by

_OURS = str(Path(__file__).parents[1])
_LIBRARY = re.compile(r".*[/\\]((?:diffusers|transformers)[/\\].+)")
_TORCH = re.compile(r"[/\\](torch|contextlib\.py)\b")
# What torch says where code asks a tensor on meta for its values.
_NO_VALUES = re.compile(
    r"meta tensor|on meta|data-dependent|_local_scalar_dense|no data|reads the values", re.IGNORECASE
)
# What is said where a pipeline's own tensors are of another number type than its networks'.
_OTHER_TYPE = re.compile(
    r"BFloat16|expected scalar type|expected m1 and m2 to have the same dtype|should be the same|same dtype"
)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Raise what a library raises as a ValueError of one line that begins with ``name``; ours stay as they are."""
    try:
        yield
    except Exception as error:  # any library raises any kind
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and frames[-1].filename.startswith(_OURS):
            raise
        raise ValueError(_line(name, error, frames)) from error


def _line(name: str, error: Exception, frames: traceback.StackSummary) -> str:
    inside = [frame for frame in frames if _LIBRARY.match(frame.filename)]
    others = [frame for frame in frames if not _TORCH.search(frame.filename) and not frame.filename.startswith(_OURS)]
    frame = (inside or others or frames)[-1]
    found = _LIBRARY.match(frame.filename)
    place = f"{found[1] if found else Path(frame.filename).name}:{frame.lineno}"
    ran = f", {error.__notes__[0]}" if getattr(error, "__notes__", None) else ""
    said = said_by(error)
    if _NO_VALUES.search(said):
        code = linecache.getline(frame.filename, frame.lineno or 0).strip()
        said = f"{code!r} asks for values that a count does not compute; give the call what that line works out"
    if _OTHER_TYPE.search(said):
        said = f"{said}; it may run in another number type, e.g. float32"
    return f"{name}{ran}: {said} ({place})"


@contextmanager
def without_advice() -> Iterator[None]:
    """Keep what transformers and diffusers advise to themselves: of a model's made-up inputs it says nothing."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
