"""The runs behind figures and tables: found by name or id, shown in full, and compared with one another."""

import json
from pathlib import Path
from typing import Any

from mmchar.identity import differences
from mmchar.records import run_folders, run_state
from mmchar.tables import read_table

_SHORTEST_ID = 4


def find_run(results_dir: str | Path, name: str) -> Path:
    """The folder of the run with this name, or with an id that begins so, or at this path.

    Raises
    ------
    ValueError
        If there is none, or more than one.
    """
    if "/" in name and any(run_state(name)):
        return Path(name)
    if not Path(results_dir).is_dir():
        raise ValueError(f"no folder {str(results_dir)!r}; mmchar study writes the results that it lists")
    ids = {folder: _id(folder) for folder in run_folders(results_dir)}
    found = [folder for folder in ids if folder.name == name]
    if not found and len(name) >= _SHORTEST_ID:
        found = [folder for folder, id_ in ids.items() if id_.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} is the id of {', '.join(folder.name for folder in found)}; give the name")
    known = ", ".join(f"{folder.name} ({id_})" for folder, id_ in list(ids.items())[:8])
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    raise ValueError(f"no run {name!r} in {str(results_dir)!r}; there are {known or 'none'}{more}")


def _id(folder: Path) -> str:
    status, result = run_state(folder)
    return result.get("id") or status.get("id") or ""


def show_run(results_dir: str | Path, name: str) -> dict[str, Any]:
    """What is known of one run: what was run, how it ended, where and when, with what, and what it left.

    ``status`` and ``message`` are of the latest run; all else is of the good result, where there is one.
    """
    folder = find_run(results_dir, name)
    status, result = run_state(folder)
    made = (result or status).get("provenance") or {}
    shown = {"run": folder.name, "id": _id(folder), "notebook": result.get("notebook", status.get("name", folder.name))}
    shown |= {key: status.get(key) for key in ("status", "message", "cell", "seconds", "why")}
    shown |= {"utc": made.get("utc"), "git_commit": made.get("git_commit"), "versions": made.get("versions", {})}
    hardware = {key: made.get(key) for key in ("system", "cpu", "cores", "memory_bytes", "gpus", "gpu_driver")}
    shown |= {"hardware": hardware, "parameters": result.get("parameters", status.get("parameters", {}))}
    named = set(result.get("files", {}))
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shown |= {"files": sorted(named | set(found)), "figures": result.get("figures", {})}
    return shown | {"tables": result.get("tables", {}), "checks": result.get("checks", [])}


def diff_runs(results_dir: str | Path, first: str, second: str) -> list[dict[str, Any]]:
    """What differs between two runs, one row each: ``what``, ``name``, and the values ``first`` and ``second``.

    `what` is parameter, version, hardware, code (of the notebook and the package), check or table. Of a table the
    number of rows and the mean of each column of numbers are compared.
    """
    one, two = (show_run(results_dir, name) for name in (first, second))
    rows = []
    for what, key in (("parameter", "parameters"), ("version", "versions"), ("hardware", "hardware")):
        rows += _changed(what, one[key], two[key])
    rows += _changed("code", {"git_commit": one["git_commit"]}, {"git_commit": two["git_commit"]})
    states = [run_state(find_run(results_dir, name))[1] for name in (first, second)]
    before, after = (state.get("identity") for state in states)
    if before and after:
        executed = find_run(results_dir, second) / f"{two['notebook']}.ipynb"
        same = {key: before[key] for key in ("parameters", "versions", "hardware")}
        said = differences(before, after | same, executed if executed.is_file() else None)
        rows += [{"what": "code", "name": phrase, "first": "", "second": ""} for phrase in said]
    rows += _changed("check", *(_judged(run["checks"]) for run in (one, two)))
    folders = [find_run(results_dir, name) for name in (first, second)]
    pairs = zip(folders, (one, two), strict=True)
    return rows + _changed("table", *(_numbers(folder, run["tables"]) for folder, run in pairs))


def _changed(what: str, one: dict[str, Any], two: dict[str, Any]) -> list[dict[str, Any]]:
    names = [name for name in dict.fromkeys([*one, *two]) if one.get(name) != two.get(name)]
    return [{"what": what, "name": name, "first": one.get(name), "second": two.get(name)} for name in names]


def _judged(checks: list[dict[str, Any]]) -> dict[str, str]:
    """What each check got, with its verdict."""
    return {
        " ".join(filter(None, (check.get("claim"), check.get("name")))): f"{check['got']} ({check['verdict']})"
        for check in checks
    }


def _numbers(folder: Path, tables: dict[str, Any]) -> dict[str, float]:
    """Rows of every table, and the mean of each of its columns of numbers."""
    found: dict[str, float] = {}
    for name, entry in tables.items():
        table = read_table(folder / entry["files"][0])
        found[f"{name}: rows"] = len(table)
        means = table.select_dtypes("number").mean()
        found |= {f"{name}.{column}: mean": float(f"{value:.6g}") for column, value in means.items() if value == value}
    return found


def text_of(value: Any) -> str:
    """A value on one line."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
