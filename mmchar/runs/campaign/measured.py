"""Measurements on disk: a row and a table for each point while a campaign runs, then packed into a few files.

``points/<id>.json`` is the row of a point and names its table, ``points/<id>.parquet``, by checksum. Packed, all tables
stand in ``measured-*.parquet``, with a column ``id``, and all rows in ``run.json``, which names every file by checksum
and is written last: whenever a campaign is cut off, what was measured before can be read.
"""

import json
import warnings
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd

from mmchar import files
from mmchar.files import atomic_write, check_file_name, checksum, read_sealed, sealed
from mmchar.tables.stored import decode_parquet, encode_parquet

Points = dict[str, tuple[dict[str, Any], pd.DataFrame | None]]  # row and table by id

SCHEMA = 1
MAX_BYTES = 16_000_000  # of one packed file
MAX_FILES = 7  # packed tables; run.json is the eighth file
MEASURED = ("ok", "partial")  # those with tables; partial has no rows of the stages that failed
_COLUMNS = "id status reason model request device dtype attention tiny levers stages samples warmup hardware time_s "
_COLUMNS += "doubts facts expect_s took_s utc"


class _Row(TypedDict):
    schema: Literal[1]
    id: str
    status: str
    reason: str
    asked: dict[str, Any]
    attempts: int
    facts: dict[str, Any]
    table: dict[str, Any] | None


class _Packed(TypedDict):
    schema: Literal[1]
    files: dict[str, str]
    points: dict[str, dict[str, Any]]


def write_point(folder: str | Path, row: dict[str, Any], table: pd.DataFrame | None = None) -> Path:
    """Path of the row of one point, written after its table; an earlier row of the same point is replaced."""
    points = Path(folder) / "points"
    check_file_name(row["id"])
    row = {"schema": SCHEMA, **row, "table": None}
    if table is not None:
        plain = table.copy()
        plain.attrs = {}  # the row has them
        data = encode_parquet(plain, compression="zstd")
        file = atomic_write(points / f"{row['id']}.parquet", data)
        row["table"] = {"file": file.name, "sha256": checksum(data), "rows": len(table)}
    return atomic_write(points / f"{row['id']}.json", json.dumps(sealed(row), indent=1, allow_nan=False) + "\n")


def read_measured(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All points of a folder, one row each, and the operator tables of those that were measured, one below the other.

    The points have id, status, reason, what was asked (model, request, device, dtype, attention, tiny, levers, stages,
    samples, warmup), hardware, ``time_s`` (sum of median * repeats over its stages; only where ok), ``doubts`` (lines),
    ``facts`` (the ``attrs`` of the table, per stage), expect_s, took_s, utc; the tables the columns of
    ``data/README.md``, and ``id``. A damaged file is left out, with a warning. ValueError if there is no such folder.
    """
    found, problems = load_points(folder)
    for problem in problems.values():
        warnings.warn(f"{problem}; it is left out", stacklevel=2)
    flat = [_flat(row, table) for row, table in found.values()]
    tables = [table.assign(id=name) for name, (_, table) in found.items() if table is not None]
    return pd.DataFrame(flat, columns=_COLUMNS.split()), _concat(tables) if tables else pd.DataFrame()


def _flat(row: dict[str, Any], table: pd.DataFrame | None) -> dict[str, Any]:
    facts, time_s = row["facts"], None
    if row["status"] == "ok" and table is not None:
        repeats = table.groupby("stage", observed=True)["repeats"].max()
        time_s = sum(seconds * int(repeats[stage]) for stage, seconds in facts["median_s"].items())
    doubts: list[str] = sum(facts.get("doubts", {}).values(), [])
    same = {key: row.get(key) for key in ("id", "status", "reason", "hardware", "expect_s", "took_s", "utc")}
    return {**row["asked"], **same, "facts": facts, "time_s": time_s, "doubts": doubts}


def stage_points(points: pd.DataFrame) -> pd.DataFrame:
    """One row per measured point and stage: id, model, request, settings, stage, and what its passes found.

    Columns beside those of the point: median_s, iqr_s, samples (their number), idle_share, launch_bound, energy_j,
    peak_bytes, coverage (of operators), doubts.
    """
    keep = ["id", "model", "request", "device", "dtype", "attention", "tiny", "levers", "hardware"]
    rows = []
    for point in points[points["status"].isin(MEASURED)].to_dict("records"):
        facts = point["facts"]
        for stage in facts["median_s"]:
            row = {key: point[key] for key in keep} | {"stage": stage, "samples": len(facts["samples"][stage])}
            row |= {key: facts[key][stage] for key in ("median_s", "iqr_s", "idle_share", "energy_j", "doubts")}
            row["launch_bound"] = (facts["idle"][stage] or {}).get("launch_bound")
            row["peak_bytes"] = (facts["memory"][stage] or {}).get("peak_bytes")
            rows.append({**row, "coverage": facts["coverage"][stage]["of_operators"]})
    return pd.DataFrame(rows)


def load_points(folder: str | Path) -> tuple[Points, dict[str, str]]:
    """Rows and tables of all points of a folder by id, sorted, and a line for each damaged file in it, by its name.

    A point that stands on its own replaces the packed one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} with measurements")
    found: Points = {}
    problems: dict[str, str] = {}
    for path in [folder / "run.json", *sorted((folder / "points").glob("*.json"))]:
        file = path.relative_to(folder).as_posix()
        try:
            read = read_sealed(path, _Packed if file == "run.json" else _Row)
        except FileNotFoundError:
            continue
        except ValueError as error:
            problems[file] = str(error)
            continue
        found |= _with_tables(folder, *_named_in(read), problems)
    return dict(sorted(found.items())), problems


def _named_in(read: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Rows by id, and the checksum of each file that holds tables of them, of packed points or of a single one."""
    if "points" in read:
        return read["points"], read["files"]
    table = read["table"]
    return {read["id"]: read}, {f"points/{table['file']}": table["sha256"]} if table else {}


def _with_tables(folder: Path, rows: dict[str, Any], files: dict[str, str], problems: dict[str, str]) -> Points:
    """The rows with their tables; those whose table is in a damaged file are left out."""
    tables: dict[str, pd.DataFrame] = {}
    for file, stored in files.items():
        try:
            data = (folder / file).read_bytes()
        except OSError as error:
            problems[file] = f"{file} is damaged ({error.strerror})"
            continue
        if checksum(data) != stored:
            problems[file] = f"{file} is damaged (its checksum does not agree)"
            continue
        table = decode_parquet(data)
        if "id" in table:
            by_id = table.groupby("id", observed=True, sort=False)
            tables |= {str(name): _concat([part.drop(columns="id")]) for name, part in by_id}
        else:
            tables |= dict.fromkeys(rows, table)
    return {name: (row, tables.get(name)) for name, row in rows.items() if row["table"] is None or name in tables}


def set_aside(folder: str | Path) -> list[str]:
    """Rename every damaged file of a folder, so that its points are measured again; a line for each."""
    problems = load_points(folder)[1]
    for file in problems:
        if (Path(folder) / file).exists():
            files.set_aside(Path(folder) / file)
    return list(problems.values())


def pack(folder: str | Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> list[str]:
    """Put all points of a folder into at most ``max_files`` tables of at most ``max_bytes`` and one ``run.json``.

    Returns the points that found no place; they stay as they are, under ``points``. Old files are removed only after
    the new ones are written and named, so that a full disk, or a kill, costs nothing.
    """
    folder, found = Path(folder), load_points(folder)[0]
    if not found:
        return []
    tables = {name: table.assign(id=name) for name, (_, table) in found.items() if table is not None}
    bins = _fill(list(tables.values()), max_bytes)[:max_files]
    placed = {name for _, names in bins for name in names}
    named = {f"measured-{number:03d}-{checksum(data)[:8]}.parquet": data for number, (data, _) in enumerate(bins)}
    for file, data in named.items():
        if not (folder / file).exists():
            atomic_write(folder / file, data)
    rows = {name: row for name, (row, _) in found.items() if name in placed or name not in tables}
    run = {"schema": SCHEMA, "files": {file: checksum(data) for file, data in named.items()}, "points": rows}
    atomic_write(folder / "run.json", json.dumps(sealed(run), allow_nan=False, separators=(",", ":")) + "\n")
    for path in folder.glob("measured-*.parquet"):
        if path.name not in named:
            path.unlink()
    for name in rows:
        for suffix in (".json", ".parquet"):
            (folder / "points" / f"{name}{suffix}").unlink(missing_ok=True)
    if (folder / "points").is_dir() and not any((folder / "points").iterdir()):
        (folder / "points").rmdir()
    return [name for name in found if name not in rows]


def _fill(tables: list[pd.DataFrame], max_bytes: int) -> list[tuple[bytes, list[str]]]:
    """Files, each with the names in it; one table that is alone larger than a file may be is left out."""
    if not tables:
        return []
    data = encode_parquet(_concat(tables), compression="zstd")
    if len(data) <= max_bytes:
        return [(data, [table["id"].iloc[0] for table in tables])]
    half = len(tables) // 2
    return _fill(tables[:half], max_bytes) + _fill(tables[half:], max_bytes) if half else []


def _concat(tables: list[pd.DataFrame]) -> pd.DataFrame:
    from mmchar.counting.operator_table import TEXT

    plain = [table.astype(dict.fromkeys([c for c in TEXT if c in table], object)) for table in tables]
    both = pd.concat(plain, ignore_index=True)
    return both.astype(dict.fromkeys([c for c in (*TEXT, "id") if c in both], "category"))
