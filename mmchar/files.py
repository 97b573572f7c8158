"""Files written whole or not at all, and the checksums and names that they get."""

import hashlib
import json
import os
import re
import uuid
from pathlib import Path


def atomic_write(path: str | Path, data: bytes | str) -> Path:
    """The path, holding `data`: written beside it, flushed to disk and renamed, so that no reader sees half a file.

    Parameters
    ----------
    path : str or Path
        Where to; missing folders are made.
    data : bytes or str
        Text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with open(part, "xb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def checksum(data: bytes) -> str:
    """The sha256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> str:
    """JSON text that is the same for equal values; NaN and what JSON does not know raise ValueError or TypeError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_file_name(name: str) -> str:
    """The name, if it can be a file's name without suffix: letters, digits, ``-``, ``_`` and ``.``, and no path.

    Raises
    ------
    ValueError
        If it cannot.
    """
    if not re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", name):
        raise ValueError(f"{name!r} cannot be a file name; use letters, digits, '-', '_' and '.'")
    return name
