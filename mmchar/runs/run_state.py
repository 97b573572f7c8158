"""How the latest run into a folder ended, by ``status.json``, and the good result that the folder holds."""

import contextlib
import json
from pathlib import Path
from typing import Any, TypedDict

from mmchar.files import atomic_write, read_sealed, sealed
from mmchar.locks import is_held, run_lock
from mmchar.runs.records import attempt_folder, read_result

KILLED = "the batch was killed"


class _Status(TypedDict):
    status: str
    sha256: str


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
