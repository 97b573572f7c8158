"""The folder of a run: how the latest run into it ended, by ``status.json``, and the good result that it holds.

A run works in a folder of its own until it is over: filed when it ended, recovered when its batch was killed.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TypedDict

from mmchar.files import atomic_write, finish_replace, read_sealed, sealed, set_aside
from mmchar.locks import is_held, run_lock
from mmchar.runs.notebooks import last_cell, load_notebook
from mmchar.runs.own_process import kill_marked
from mmchar.runs.records import attempt_folder, read_result, replace_result, set_aside_damaged

KILLED = "the batch was killed"


class _Status(TypedDict):
    status: str
    sha256: str


def part_file(folder: Path, name: str) -> Path:
    """Where papermill writes the notebook while it executes it."""
    return folder / f".{name}.part.ipynb"


def write_status(folder: Path, status: dict[str, Any]) -> None:
    """Write ``status.json`` with its checksum."""
    atomic_write(folder / "status.json", json.dumps(sealed(status), indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """The content of ``status.json``; {} where there is none, ValueError where it is damaged."""
    try:
        return read_sealed(folder / "status.json", _Status)
    except FileNotFoundError:
        return {}


def run_state(out_dir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the latest run into a folder ended, and the good result that it holds; {} for what there is not.

    The status is that of ``status.json`` where that speaks of the result; ``running`` while a process works on the run,
    and ``died`` where that process was killed. A good result of an earlier run stays good when a later one fails. The
    result has also ``id`` and ``identity`` (None if it was made by hand) of its run.
    """
    out_dir = Path(out_dir)
    status: dict[str, Any] = {}
    result: dict[str, Any] = {}
    problem = ""
    try:
        status = read_status(out_dir)
    except ValueError as error:
        problem = str(error)
    try:
        result = read_result(out_dir)
    except ValueError as error:
        if status.get("status") == "ok" or (out_dir / "result.json").exists():
            problem = problem or str(error)
    if result:
        status, result = _of_result(status, result, problem)
    elif problem:
        status = status | {"status": "damaged", "message": problem}
    return _in_progress(out_dir) or status, result


def _of_result(status: dict[str, Any], result: dict[str, Any], problem: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The status, and the result with the id and identity of its run; no result if its notebook failed after it."""
    sha256, earlier = result["sha256"], status.get("earlier") or {}
    if status.get("result") == sha256:
        made_by = status
    elif earlier.get("result") == sha256:
        made_by = earlier
    else:  # made by hand; the batch knows nothing of it
        status = made_by = {"status": "ok", "message": problem}
    if made_by.get("status", "ok") != "ok":
        return status, {}
    return status, result | {"id": made_by.get("id") or sha256[:12], "identity": made_by.get("identity")}


def _in_progress(out_dir: Path) -> dict[str, Any]:
    """The status of an attempt that is not filed yet: running, or died if no process holds its lock; else {}."""
    new = attempt_folder(out_dir)
    if not new.exists():
        return {}
    status: dict[str, Any] = {"status": "running"}
    with contextlib.suppress(ValueError):
        status |= read_status(new)
    if is_held(run_lock(out_dir)):
        return status | {"status": "running"}
    return status | {"status": "died", "message": KILLED} if status["status"] == "running" else status


def recover(out_dir: Path, name: str) -> None:
    """Bring a folder into order that a killed batch or a damaged disk left; its lock is held."""
    finish_replace(out_dir)
    try:
        read_status(out_dir)
    except ValueError as error:
        _say(f"{error}; it is kept as {set_aside(out_dir / 'status.json').name}")
    if line := set_aside_damaged(out_dir):
        _say(line)
    new = attempt_folder(out_dir)
    if not new.exists():
        return
    try:
        status = read_status(new)
    except ValueError:
        status = {}
    if not status:  # killed before it began
        _say(f"{set_aside(new).name}: left by a killed batch") if any(new.iterdir()) else new.rmdir()
        return
    if status["status"] == "running":
        kill_marked(str(new))
        cell, _ = keep_executed(new, name)
        status |= {"status": "died", "cell": cell, "message": KILLED}
    file_run(out_dir, new, name, status)


def keep_executed(new: Path, name: str) -> tuple[int, str]:
    """Keep the executed notebook, without the paths that papermill notes; the cell where it ended, and its error."""
    part = part_file(new, name)
    if not part.exists():
        return 0, ""
    try:
        executed = load_notebook(part)
    except ValueError:  # killed while it was written
        part.rename(new / f"{name}.ipynb.damaged")
        return 0, ""
    for key in ("input_path", "output_path", "environment_variables"):
        executed.get("metadata", {}).get("papermill", {}).pop(key, None)
    atomic_write(new / f"{name}.ipynb", json.dumps(executed, indent=1, ensure_ascii=False) + "\n")
    part.unlink()
    return last_cell(executed)


def keep_only_log(folder: Path) -> None:
    """Remove all but the status and the log."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("status.json", "run.log"):
            path.unlink()


def file_run(out_dir: Path, new: Path, name: str, status: dict[str, Any]) -> None:
    """Put a run that is over in its place: all of it where it is good or nothing good is there, else its log only.

    What is to be done follows from the files alone, so that it can be done again where it was cut off.
    """
    try:
        made = read_result(new)["sha256"]
    except ValueError:
        made = None
    good = run_state(out_dir)[1] if status["status"] != "ok" else {}
    earlier = {"result": good["sha256"], "id": good["id"], "identity": good["identity"]} if good else None
    write_status(new, status | {"result": made, "earlier": earlier})
    logs = {"run.log": "run.log", f"{name}.ipynb": f"{name}.latest.ipynb", "status.json": "status.json"}
    if not good:
        replace_result(out_dir, new, (*logs, f"{name}.latest.ipynb"))
        return
    for file, kept in logs.items():
        if (new / file).exists():
            os.replace(new / file, out_dir / kept)
    shutil.rmtree(new)


def _say(line: str) -> None:
    print(f"mmchar: {line}", file=sys.stderr, flush=True)
