"""A folder of tables that took long to make, each found again by everything that it depends on."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import platformdirs

from mmchar.files import atomic_write, canonical_json, checksum
from mmchar.locks import held, step_aside
from mmchar.tables.stored import decode_parquet, encode_parquet

PACKAGE = Path(__file__).parents[1]
# The rooms that decide what a count says: an edit anywhere else leaves the counted tables good.
COUNTING = ("tracing", "models", "generation", "counting")

_turns: list[Path] = []  # tables that this process is making, one within the other


def cached_table(key: dict[str, Any], build: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table that ``build`` makes, from the cache folder when it was built before with the same key.

    ``key`` is everything that the table depends on, in JSON types. A cached file that is damaged, or is another key's,
    is built again. Both ways give the table as parquet gives it back (tuples in ``attrs`` are lists). A cache folder
    that cannot be used costs one warning, not the table.
    """
    try:
        name = canonical_json(key)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cache key cannot be written as JSON ({error}); use plain types") from error
    folder = os.environ.get("MMCHAR_CACHE") or platformdirs.user_cache_path("mmchar")
    path = Path(folder) / f"{checksum(name.encode())}.table"
    if not _turns:
        step_aside()  # a process that holds a table others wait for goes on
    if (table := _read_cached(path, name)) is not None:
        return table
    with _turn(path):
        if (table := _read_cached(path, name)) is not None:  # another process has just made it
            return table
        payload = encode_parquet(build())
        try:
            atomic_write(path, checksum(name.encode() + payload).encode() + b"\n" + payload)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            warnings.warn(f"no table is cached ({reason}); set MMCHAR_CACHE to a folder you can write to", stacklevel=2)
    return decode_parquet(payload)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold a table's turn, so that processes side by side make it once; where nothing can be written, nothing waits."""
    lock = path.with_suffix(".lock")
    _turns.append(lock)
    with contextlib.ExitStack() as stack:
        stack.callback(_turns.pop)
        with contextlib.suppress(OSError):
            stack.enter_context(held(lock))
            stack.callback(lock.unlink, missing_ok=True)
        yield


def _read_cached(path: Path, name: str) -> pd.DataFrame | None:
    try:
        stored, _, payload = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return decode_parquet(payload) if checksum(name.encode() + payload).encode() == stored else None


@functools.cache
def source_hash(*files: Path) -> str:
    """sha256 over names and contents of files, by default of `COUNTING`, read once per process."""
    files = files or (PACKAGE / "request.py", *(file for room in COUNTING for file in (PACKAGE / room).rglob("*.py")))
    parts = [f"{file.name} {checksum(file.read_bytes())}" for file in sorted(files)]
    return checksum("\n".join(parts).encode())
