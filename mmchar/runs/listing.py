"""The runs behind figures and tables: listed, found by name or id, shown in full, and compared with one another."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from mmchar.runs.identity import differences
from mmchar.runs.run_state import run_state
from mmchar.tables.stored import read_table

_SHORTEST_ID = 4
_COLUMNS = ["run", "notebook", "status", "id", "seconds", "cell", "message", "parameters", "checks", "utc"]
_COLUMNS += ["mmchar", "torch", "git_commit", "cpu", "gpus"]
_CHECK_COLUMNS = ["run", "notebook", "claim", "name", "expected", "got", "verdict", "quick"]
_HARDWARE = ("system", "cpu", "cores", "memory_bytes", "gpus", "gpu_driver")


def run_folders(results_dir: str | Path) -> list[Path]:
    """The folders of all runs under a folder, sorted; also of those that have only begun. ValueError without it."""
    if not Path(results_dir).is_dir():
        raise ValueError(f"no folder {str(results_dir)!r}; mmchar study writes the results that it lists")
    files = [path for name in ("result.json", "status.json") for path in Path(results_dir).glob(f"*/{name}")]
    begun = (re.fullmatch(r"\.([^.].*)\.new|([^.].*)", file.parent.name) for file in files)
    return sorted({Path(results_dir) / (found[1] or found[2]) for found in begun if found})


def read_runs(results_dir: str | Path) -> pd.DataFrame:
    """One row per run folder under `results_dir`, sorted by name.

    Columns: run, notebook, status of the latest run (ok, failed, died, timed out, interrupted, skipped, running;
    damaged where a file is not valid), id, seconds, cell, message, parameters (dict), checks (their number, of its good
    result, also an earlier one), utc, mmchar, torch, git_commit, cpu, gpus.
    """
    rows = []
    for folder in run_folders(results_dir):
        shown = _known(folder)
        shown |= {"status": "damaged"} if ".damaged-" in folder.name else {}
        shown |= {"checks": len(shown["checks"]), **shown["versions"], **shown["hardware"]}
        rows.append(shown)
    return pd.DataFrame(rows, columns=_COLUMNS)


def read_checks(results_dir: str | Path) -> pd.DataFrame:
    """One row per check of every good result under `results_dir`, sorted by run.

    Columns: run, notebook, claim and name ("" where the check has none), expected, got, verdict, quick (bool).
    """
    rows = []
    for folder in run_folders(results_dir):
        run, result = folder.name, run_state(folder)[1]
        if not result or ".damaged-" in run:
            continue
        of_run = {"run": run, "notebook": result["notebook"], "quick": result["parameters"].get("quick") is True}
        rows += [{"claim": "", "name": "", **check, **of_run} for check in result["checks"]]
    return pd.DataFrame(rows, columns=_CHECK_COLUMNS)


def find_run(results_dir: str | Path, name: str) -> Path:
    """The folder of the run with this name, or with an id that begins so, or at this path; ValueError if not one."""
    if "/" in name and any(run_state(name)):
        return Path(name)
    ids = {folder: _known(folder)["id"] or "" for folder in run_folders(results_dir)}
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


def show_run(results_dir: str | Path, name: str) -> dict[str, Any]:
    """What is known of one run: what was run, how it ended, where and when, with what, and what it left.

    ``status`` and ``message`` are of the latest run; all else is of the good result, where there is one.
    """
    return _known(find_run(results_dir, name))


def _known(folder: Path) -> dict[str, Any]:
    status, result = run_state(folder)
    made = result.get("provenance") or status.get("provenance") or {}
    shown = {"run": folder.name, "id": result.get("id") or status.get("id")}
    shown["notebook"] = result.get("notebook", status.get("name", folder.name))
    shown |= {key: status.get(key) for key in ("status", "message", "cell", "seconds", "why")}
    shown |= {"utc": made.get("utc"), "git_commit": made.get("git_commit"), "versions": made.get("versions", {})}
    shown["hardware"] = {key: made.get(key) for key in _HARDWARE}
    shown["parameters"] = result.get("parameters", status.get("parameters", {}))
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shown |= {"files": sorted({*result.get("files", {}), *found}), "figures": result.get("figures", {})}
    return shown | {"tables": result.get("tables", {}), "checks": result.get("checks", [])}


def diff_runs(results_dir: str | Path, first: str, second: str) -> list[dict[str, Any]]:
    """What differs between two runs, one row each: ``what``, ``name``, and the values ``first`` and ``second``.

    `what` is parameter, version, hardware, code (of the notebook and the package), check or table. Of a table the
    number of rows and the mean of each column of numbers are compared.
    """
    folders = [find_run(results_dir, name) for name in (first, second)]
    one, two = map(_known, folders)
    rows = []
    for what, key in (("parameter", "parameters"), ("version", "versions"), ("hardware", "hardware")):
        rows += _changed(what, one[key], two[key])
    rows += _changed("code", {"git_commit": one["git_commit"]}, {"git_commit": two["git_commit"]})
    before, after = (run_state(folder)[1].get("identity") for folder in folders)
    if before and after:
        executed = folders[1] / f"{two['notebook']}.ipynb"
        same = {key: before[key] for key in ("parameters", "versions", "hardware")}
        said = differences(before, after | same, executed if executed.is_file() else None)
        rows += [{"what": "code", "name": phrase, "first": "", "second": ""} for phrase in said]
    rows += _changed("check", _judged(one["checks"]), _judged(two["checks"]))
    return rows + _changed("table", _numbers(folders[0], one["tables"]), _numbers(folders[1], two["tables"]))


def _changed(what: str, one: dict[str, Any], two: dict[str, Any]) -> list[dict[str, Any]]:
    names = [name for name in dict.fromkeys([*one, *two]) if one.get(name) != two.get(name)]
    return [{"what": what, "name": name, "first": one.get(name), "second": two.get(name)} for name in names]


def _judged(checks: list[dict[str, Any]]) -> dict[str, str]:
    names = [" ".join(filter(None, (check.get("claim"), check.get("name")))) for check in checks]
    return {name: f"{check['got']} ({check['verdict']})" for name, check in zip(names, checks, strict=True)}


def _numbers(folder: Path, tables: dict[str, Any]) -> dict[str, float]:
    """Rows of every table, and the mean of each of its columns of numbers."""
    found: dict[str, float] = {}
    for name, entry in tables.items():
        table = read_table(folder / entry["files"][0])
        found[f"{name}: rows"] = len(table)
        means = table.select_dtypes("number").mean().dropna()
        found |= {f"{name}.{column}: mean": float(f"{value:.6g}") for column, value in means.items()}
    return found


def text_of(value: Any) -> str:
    """A value on one line."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
