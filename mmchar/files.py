"""Files written whole or not at all, and the checksums and names that they get."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def nearest_there(path: Path) -> Path:
    """The path itself, or the nearest folder above it, that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def can_write(folder: Path) -> bool:
    """Whether this is a folder in which files can be made."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def atomic_write(path: str | Path, data: bytes | str) -> Path:
    """The path, holding `data`: written beside it, flushed to disk and renamed, so that no reader sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with open(part, "xb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def _flush_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk, so that a file renamed in it is still there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot; the file itself is flushed
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """The new place of a damaged file or folder: ``<name>.damaged-<utc>`` beside it. Nothing of it is lost."""
    utc = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.damaged-{utc}")
    if aside.exists():  # two within one second
        aside = aside.with_name(f"{aside.name}-{uuid.uuid4().hex[:4]}")
    return path.rename(aside)


def replace_folder(folder: Path, new: Path) -> None:
    """Put the folder `new` in the place of `folder`; cut off anywhere, `finish_replace` completes or undoes it."""
    if folder.exists():
        folder.rename(_earlier(folder))
    new.rename(folder)
    _flush_folder(folder.parent)
    shutil.rmtree(_earlier(folder), ignore_errors=True)


def finish_replace(folder: Path) -> None:
    """Bring back the earlier folder if a replacement was cut off before the new one was in its place."""
    earlier = _earlier(folder)
    if folder.exists():
        shutil.rmtree(earlier, ignore_errors=True)
    elif earlier.exists():
        earlier.rename(folder)


def _earlier(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")


def checksum(data: bytes) -> str:
    """The sha256 of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> str:
    """JSON text that is the same for equal values; NaN and what JSON does not know raise ValueError or TypeError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum as ``sha256``; one that is not equal to its sealed self was changed."""
    body = {key: item for key, item in value.items() if key != "sha256"}
    return body | {"sha256": checksum(canonical_json(body).encode())}


def read_sealed(path: Path, kind: type) -> dict[str, Any]:
    """The JSON object in a file that was written `sealed`; ``kind``, a TypedDict, names the fields it must have.

    Raises
    ------
    FileNotFoundError
    ValueError
        One line that names the file: no JSON, another kind, or changed since it was sealed.
    """
    import msgspec

    try:
        found = json.loads(path.read_bytes())
        msgspec.convert(found, kind)
        if sealed(found) != found:
            raise ValueError("its checksum does not agree")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} is damaged ({error})") from error
    return found


def check_file_name(name: str) -> str:
    """The name, if it can be a file's name without suffix: letters, digits, ``-``, ``_`` and ``.``; else ValueError."""
    if not re.fullmatch(r"\w[\w-]*(\.[\w-]+)*", name):
        raise ValueError(f"{name!r} cannot be a file name; use letters, digits, '-', '_' and '.'")
    return name
