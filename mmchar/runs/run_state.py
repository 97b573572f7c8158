"""How the latest run into a folder ended, by ``status.json``, and the good result that the folder holds."""

import contextlib
import json
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write, sealed
from mmchar.locks import is_held, run_lock
from mmchar.runs.records import read_result

KILLED = "the batch was killed"


def attempt_folder(out_dir: Path) -> Path:
    """Where a run works until it is over, beside the folder of its result."""
    return out_dir.with_name(f".{out_dir.name}.new")


def write_status(folder: Path, status: dict[str, Any]) -> None:
    """Write ``status.json`` with its checksum."""
    atomic_write(folder / "status.json", json.dumps(sealed(status), indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """The content of ``status.json``; {} where there is none.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    where = f"{folder.name}/status.json"
    try:
        status = json.loads((folder / "status.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({error})") from error
    if not isinstance(status, dict) or not isinstance(status.get("status"), str):
        raise ValueError(f"{where} is damaged (no status in it)")
    if "sha256" in status and sealed(status) != status:
        raise ValueError(f"{where} is damaged (its checksum does not agree)")
    return status


def run_state(out_dir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the latest run into a folder ended, and the good result that it holds; {} for what there is not.

    The status is that of ``status.json`` where that speaks of the result; ``running`` while a process works on the run,
    and ``died`` where that process was killed. A good result of an earlier run stays good when a later one fails. The
    result has also ``id`` and ``identity`` (None if it was made by hand) of its run.
    """
    out_dir = Path(out_dir)
    problem = ""
    try:
        status = read_status(out_dir)
    except ValueError as error:
        status, problem = {}, str(error)
    try:
        result = read_result(out_dir)
    except ValueError as error:
        result = {}
        problem = problem or (str(error) if (out_dir / "result.json").exists() else "")
        if status.get("status") == "ok":
            problem = problem or str(error)
    of_status, earlier = status.get("result"), status.get("earlier") or {}
    if result and of_status != result["sha256"] and earlier.get("result") != result["sha256"]:
        status = {"status": "ok", "message": problem}  # a result made by hand, of which the batch knows nothing
        result |= {"id": result["sha256"][:12], "identity": None}
    elif result and status["status"] != "ok" and of_status == result["sha256"]:
        result = {}  # its notebook failed after it was saved
    elif result:
        origin = status if of_status == result["sha256"] else earlier
        result |= {"id": origin.get("id") or result["sha256"][:12], "identity": origin.get("identity")}
    elif problem:
        status = status | {"status": "damaged", "message": problem}
    return _in_progress(out_dir) or status, result


def _in_progress(out_dir: Path) -> dict[str, Any]:
    """The status of an attempt that is not filed yet: running, or died if no process holds its lock; else {}."""
    new = attempt_folder(out_dir)
    if not new.exists():
        return {}
    status: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        status = read_status(new)
    if is_held(run_lock(out_dir)):
        return status | {"status": "running"}
    return status | {"status": "died", "message": KILLED} if status.get("status", "running") == "running" else status
