"""Measurements on disk: a row and a table for each point while a campaign runs, then packed into a few files.

``points/<id>.json`` is the row of a point and names its table, ``points/<id>.parquet``, by checksum. Packed, all tables
stand in ``measured-*.parquet``, with a column ``id``, and all rows in ``run.json``, which names every file by checksum
and is written last: whenever a campaign is cut off, what was measured before can be read.
"""

import io
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.files import atomic_write, canonical_json, check_file_name, checksum

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MAX_BYTES = 16_000_000  # of one packed file
MAX_FILES = 7  # packed tables; run.json is the eighth file
MEASURED = ("ok", "partial")  # those with tables; partial has no rows of the stages that failed
_ROW = {"id": str, "status": str, "reason": str, "asked": dict, "attempts": int, "facts": dict}


def write_point(folder: str | Path, row: dict[str, Any], table: "pd.DataFrame | None" = None) -> Path:
    """Path of the row of one point, written after its table; an earlier row of the same point is replaced."""
    points = Path(folder) / "points"
    check_file_name(row["id"])
    row = {"schema": SCHEMA, **row, "table": None}
    if table is not None:
        plain = table.copy()
        plain.attrs = {}  # the row has them
        data = _encode(plain)
        file = atomic_write(points / f"{row['id']}.parquet", data)
        row["table"] = {"file": file.name, "sha256": checksum(data), "rows": len(table)}
    row["sha256"] = checksum(canonical_json(row).encode())
    return atomic_write(points / f"{row['id']}.json", json.dumps(row, indent=1, allow_nan=False) + "\n")


def read_measured(folder: str | Path) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """All points of a folder, one row each, and the operator tables of those that were measured, one below the other.

    A damaged file is left out, with a warning that names it.

    Returns
    -------
    points : DataFrame
        id, status, reason, what was asked (model, request, device, dtype, attention, tiny, levers, stages, samples,
        warmup), hardware, ``time_s`` (sum of median * repeats over its stages; only where ok), ``doubts`` (lines),
        ``facts`` (the ``attrs`` of the table, per stage), expect_s, took_s, utc.
    rows : DataFrame
        The columns of ``data/README.md``, and ``id``.

    Raises
    ------
    ValueError
        If there is no such folder.
    """
    import pandas as pd

    found, problems = load_points(folder)
    for problem in problems:
        warnings.warn(f"{problem}; it is left out", stacklevel=2)
    columns = "id status reason model request device dtype attention tiny levers stages samples warmup hardware time_s "
    columns += "doubts facts expect_s took_s utc"
    flat = [_flat(row, table) for row, table in found.values()]
    tables = [table.assign(id=name) for name, (_, table) in found.items() if table is not None]
    points = pd.DataFrame(flat, columns=columns.split())
    return points, _concat(tables) if tables else pd.DataFrame()


def stage_points(points: "pd.DataFrame") -> "pd.DataFrame":
    """One row per measured point and stage: id, model, request, settings, stage, and what its passes found.

    Columns beside those of the point: median_s, iqr_s, samples (their number), idle_share, launch_bound, energy_j,
    peak_bytes, coverage (of operators), doubts.
    """
    import pandas as pd

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


def load_points(
    folder: str | Path, *, tables: bool = True
) -> "tuple[dict[str, tuple[dict[str, Any], pd.DataFrame | None]], list[str]]":
    """Rows and tables of all points of a folder by id, sorted, and what is damaged in it, a line per file.

    A point that stands on its own replaces the packed one. With ``tables=False`` all are None, and only checked.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} with measurements")
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, row, table in (*_packed(folder, tables, problems), *_single(folder, tables, problems)):
        found[name] = (row, table)
    return dict(sorted(found.items())), problems


def set_aside(folder: str | Path) -> list[str]:
    """Rename every damaged file of a folder, so that its points are measured again; a line for each."""
    _, problems = load_points(folder, tables=False)
    for line in problems:
        path = Path(folder) / line.split(" is damaged")[0]
        if path.exists():
            path.replace(path.with_name(f"{path.name}.damaged"))
    return problems


def pack(folder: str | Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> list[str]:
    """Put all points of a folder into at most ``max_files`` tables of at most ``max_bytes`` and one ``run.json``.

    Returns the points that found no place; they stay as they are, under ``points``. Old files are removed only after
    the new ones are written and named, so that a full disk, or a kill, costs nothing.
    """
    folder = Path(folder)
    found, _ = load_points(folder)
    if not found:
        return []
    bins, left = _fill({name: table for name, (_, table) in found.items()}, max_bytes, max_files)
    files = {}
    for number, (data, _) in enumerate(bins):
        file = f"measured-{number:03d}-{checksum(data)[:8]}.parquet"
        if not (folder / file).exists():
            atomic_write(folder / file, data)
        files[file] = checksum(data)
    rows = {name: row for name, (row, _) in found.items() if name not in left}
    run = {"schema": SCHEMA, "files": files, "points": rows}
    run["sha256"] = checksum(canonical_json(run).encode())
    atomic_write(folder / "run.json", json.dumps(run, allow_nan=False, separators=(",", ":")) + "\n")
    for path in folder.glob("measured-*.parquet"):
        if path.name not in files:
            path.unlink()
    for name in rows:
        for suffix in (".json", ".parquet"):
            (folder / "points" / f"{name}{suffix}").unlink(missing_ok=True)
    if (folder / "points").is_dir() and not any((folder / "points").iterdir()):
        (folder / "points").rmdir()
    return left


def _fill(
    tables: "dict[str, pd.DataFrame | None]", max_bytes: int, max_files: int
) -> tuple[list[tuple[bytes, list[str]]], list[str]]:
    """The files, each with the names in it, and the names that found no place; each file as full as it gets."""
    bins: list[tuple[bytes, list[str]]] = []
    left: list[str] = []
    waiting = [name for name, table in tables.items() if table is not None]
    while waiting and len(bins) < max_files:
        many, data = len(waiting), b""
        while many:
            data = _encode(_concat([tables[name].assign(id=name) for name in waiting[:many]]))  # type: ignore[union-attr]
            if len(data) <= max_bytes:
                break
            many = min(many - 1, int(many * max_bytes / len(data)))
        if many:
            bins.append((data, waiting[:many]))
        else:
            left.append(waiting[0])  # one table alone is larger than a file may be
        waiting = waiting[max(many, 1) :]
    return bins, left + waiting


def _concat(tables: "list[pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    from mmchar.counting.operator_table import TEXT

    plain = [table.astype(dict.fromkeys([c for c in TEXT if c in table], object)) for table in tables]
    both = pd.concat(plain, ignore_index=True)
    return both.astype(dict.fromkeys([c for c in (*TEXT, "id") if c in both], "category"))


def _encode(table: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _packed(folder: Path, tables: bool, problems: list[str]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    run = _read_json(folder / "run.json", {"files": dict, "points": dict}, "", problems)
    if run is None:
        return
    names: set[str] = set()
    by_id: dict[str, Any] = {}
    for file, stored in run["files"].items():
        table = _read_parquet(folder, file, stored, problems)
        if table is not None:
            for name, part in table.groupby("id", observed=True, sort=False):
                names.add(str(name))
                if tables:
                    by_id[str(name)] = _concat([part.drop(columns="id")])
    for name, row in run["points"].items():
        if row.get("table") is None or name in names:
            yield name, row, by_id.get(name)


def _single(folder: Path, tables: bool, problems: list[str]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for path in sorted((folder / "points").glob("*.json")):
        row = _read_json(path, _ROW, "points/", problems)
        if row is None:
            continue
        table = None
        if row["table"]:
            table = _read_parquet(folder, f"points/{row['table']['file']}", row["table"]["sha256"], problems)
            if table is None:
                continue
        yield row["id"], row, table if tables else None


def _read_json(path: Path, needed: dict[str, type], prefix: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
        body = {key: value for key, value in found.items() if key != "sha256"}
        good = found["schema"] == SCHEMA and all(isinstance(found[key], kind) for key, kind in needed.items())
        if good and checksum(canonical_json(body).encode()) == found["sha256"]:
            return found
        problems.append(f"{prefix}{path.name} is damaged: it does not follow schema {SCHEMA}, or its checksum differs")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.append(f"{prefix}{path.name} is damaged ({type(error).__name__})")
    return None


def _read_parquet(folder: Path, file: str, stored: str, problems: list[str]) -> "pd.DataFrame | None":
    import pandas as pd

    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        problems.append(f"{file} is damaged ({error.strerror or type(error).__name__})")
        return None
    if checksum(data) != stored:
        problems.append(f"{file} is damaged: its checksum differs")
        return None
    return pd.read_parquet(io.BytesIO(data))


def _flat(row: dict[str, Any], table: "pd.DataFrame | None") -> dict[str, Any]:
    facts = row["facts"]
    time_s = None
    if row["status"] == "ok" and table is not None:
        repeats = table.groupby("stage", observed=True)["repeats"].max()
        time_s = sum(seconds * int(repeats[stage]) for stage, seconds in facts["median_s"].items())
    doubts = _lines(facts.get("doubts", {}).values())
    same = {key: row.get(key) for key in ("id", "status", "reason", "hardware", "expect_s", "took_s", "utc")}
    return {**row["asked"], **same, "facts": facts, "time_s": time_s, "doubts": doubts}


def _lines(parts: Iterable[list[str]]) -> list[str]:
    return [line for part in parts for line in part]
