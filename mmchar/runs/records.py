"""What a run leaves behind: tables, figures and a result file with checksums, checks and provenance.

A result is a folder: ``tables/*.parquet`` (small ones as CSV too), ``figures/*``, and ``result.json``, which is written
last and names every other file with its sha256. A folder whose `read_result` raises is not a result.
"""

import json
import math
import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from mmchar.files import (
    atomic_write,
    check_file_name,
    checksum,
    finish_replace,
    read_sealed,
    replace_folder,
    sealed,
    set_aside,
)
from mmchar.locks import held
from mmchar.provenance import provenance
from mmchar.runs.figures import save_figure
from mmchar.tables.stored import write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA = 1
SMALL_ROWS = 1000  # tables up to this length are written as CSV too, for readers without parquet


class _Result(TypedDict):
    schema: Literal[1]
    notebook: str
    parameters: dict[str, Any]
    tables: dict[str, Any]
    figures: dict[str, str]
    checks: list[dict[str, Any]]
    files: dict[str, str]
    provenance: dict[str, Any]
    sha256: str


def attempt_folder(out_dir: Path) -> Path:
    """Where a run of a batch works until it is over, beside the folder of its result."""
    return out_dir.with_name(f".{out_dir.name}.new")


class Drawn(NamedTuple):
    """A figure of a result: its caption, and the name of the table that it shows."""

    figure: "Figure"
    caption: str
    table: str


class SkipRun(Exception):
    """Raised by a notebook that cannot run here, with the reason: ``raise SkipRun("needs an NVIDIA GPU")``."""


def save_result(
    out_dir: str | Path,
    *,
    notebook: str,
    parameters: dict[str, Any],
    tables: dict[str, "pd.DataFrame"],
    figures: dict[str, "Drawn"] | None = None,
    checks: Any = (),
) -> Path:
    """Path of ``result.json``, written after everything that it names.

    A result that was there before is good until the new one is complete, and then removed; a damaged one is set aside.
    `notebook` is the name of its file without suffix; of its `parameters`, ``out_dir`` says where, not
    what, and is not recorded. There is at least one table; it goes to ``tables/<name>.parquet``, and to CSV as well up
    to 1000 rows. `checks`, a list of dicts or a DataFrame, set expectation against result: ``claim`` or ``name``,
    ``expected``, ``got``, ``verdict``.
    """
    out_dir, figures = Path(out_dir), figures or {}
    for name in (*tables, *figures):
        check_file_name(name)
    if not tables:
        raise ValueError(f"result of {notebook!r} has no table; give at least one, as every number must be traceable")
    result = {
        "schema": SCHEMA,
        "notebook": notebook,
        "parameters": plain({k: v for k, v in parameters.items() if k != "out_dir"}),
        "checks": [_check(check) for check in (checks.to_dict("records") if hasattr(checks, "to_dict") else checks)],
        "figures": {name: drawn.caption for name, drawn in figures.items()},
        "provenance": provenance(),
    }
    if os.environ.get("MMCHAR_RUN") == str(attempt_folder(out_dir.resolve())):
        out_dir = attempt_folder(out_dir)  # in a batch, which puts it in its place when the run is good
    folder = out_dir.resolve()
    with _turn(folder):
        if line := set_aside_damaged(folder):
            warnings.warn(line, stacklevel=2)
        if not (folder / "result.json").exists():
            _write_result(folder, result, tables, figures)
            return out_dir / "result.json"
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        _write_result(new, result, tables, figures)
        replace_result(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out_dir / "result.json"


def _check(check: dict[str, Any]) -> dict[str, Any]:
    if not {"expected", "got", "verdict"} <= check.keys() or not {"claim", "name"} & check.keys():
        raise ValueError(f"check {check!r} is incomplete; give claim or name, expected, got and verdict")
    return plain(check)


def plain(value: Any) -> Any:
    """A copy that JSON can hold: numpy scalars become Python's, NaN becomes None, tuples lists, all else text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _write_result(out_dir: Path, result: dict, tables: dict, figures: dict) -> None:
    entries: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        files = [f"tables/{name}.parquet"] + ([f"tables/{name}.csv"] if len(table) <= SMALL_ROWS else [])
        for file in files:
            write_table(out_dir / file, table)
        entries[name] = {"files": files, "rows": len(table), "columns": [str(column) for column in table.columns]}
    paths = [out_dir / file for entry in entries.values() for file in entry["files"]]
    for name, (figure, caption, table) in figures.items():
        paths += save_figure(figure, name, caption, figures_dir=out_dir / "figures", table=tables[table])
    named = {path.relative_to(out_dir).as_posix(): checksum(path.read_bytes()) for path in paths}
    text = json.dumps(sealed(result | {"tables": entries, "files": named}), indent=1, allow_nan=False)
    atomic_write(out_dir / "result.json", text + "\n")


def _turn(folder: Path) -> Any:
    """Processes that write to one folder at once take turns, so that none sees a half of another's result."""
    return held(folder.parent / ".locks" / f"{folder.name}.replace.lock")


def replace_result(out_dir: Path, new: Path, of_run: tuple[str, ...] = ()) -> None:
    """Put the folder `new` in the place of `out_dir`, with the files there that no result named, but those `of_run`."""
    with _turn(out_dir):
        finish_replace(out_dir)
        named = {*_named_files(out_dir), "result.json", *of_run}
        for path in sorted(out_dir.rglob("*")):
            place = new / path.relative_to(out_dir)
            if path.is_file() and path.relative_to(out_dir).as_posix() not in named and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place, follow_symlinks=False)
        replace_folder(out_dir, new)


def _named_files(out_dir: Path) -> list[str]:
    """The files that a good result names; none where there is none."""
    try:
        return list(read_result(out_dir)["files"])
    except ValueError:
        return []


def set_aside_damaged(out_dir: Path) -> str:
    """Set a folder aside that holds a result which is not good; a line that says so, or ""."""
    try:
        read_result(out_dir)
    except ValueError as error:
        if (out_dir / "result.json").exists():
            return f"{error}; the folder is kept as {set_aside(out_dir).name}"
    return ""


def save_measured(out_dir: str | Path, table: "pd.DataFrame") -> Path:
    """Path of the ``result.json`` of one measurement, in a folder of its own under `out_dir`; earlier ones stay.

    The table's ``attrs`` (model, request, settings, raw samples) are recorded as its parameters; `read_runs` lists all.
    """
    model = str(table.attrs.get("model", "measured"))
    name = check_file_name(f"{model}-{uuid.uuid4().hex[:8]}")
    try:
        return save_result(Path(out_dir) / name, notebook="measure", parameters=table.attrs, tables={model: table})
    except OSError as error:
        raise ValueError(f"cannot write to {out_dir}: {error.strerror or error}; choose another folder") from error


def read_result(out_dir: str | Path) -> dict[str, Any]:
    """The content of ``out_dir/result.json``, after checking its fields and the checksum of every file it names.

    ValueError if there is none, it is damaged or of another schema, or a file it names is missing or has changed.
    """
    out_dir = Path(out_dir)
    where = f"{out_dir.name}/result.json"
    try:
        result = read_sealed(out_dir / "result.json", _Result)
    except FileNotFoundError:
        advice = "the notebook ends with mmchar.runs.records.save_result(...)"
        raise ValueError(f"{where} does not exist; {advice}") from None
    except ValueError as error:
        raise ValueError(f"{error}; run its notebook again") from error
    for file, stored in result["files"].items():
        problem = _problem(out_dir, file, stored)
        if problem:
            raise ValueError(f"{where} is not valid: {file} {problem}; run its notebook again")
    return result


def _problem(out_dir: Path, file: str, stored: str) -> str:
    if Path(file).is_absolute() or ".." in Path(file).parts or not (out_dir / file).is_file():
        return "is missing"
    return "" if checksum((out_dir / file).read_bytes()) == stored else "has changed since it was written"
