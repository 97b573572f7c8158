"""The folder that a run works in until it is over: filed when it ended, recovered when its batch was killed."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write, finish_replace, set_aside
from mmchar.runs.notebooks import last_cell, load_notebook
from mmchar.runs.own_process import kill_marked
from mmchar.runs.papermill_process import part_file
from mmchar.runs.records import attempt_folder, read_result, replace_result, set_aside_damaged
from mmchar.runs.run_state import KILLED, read_status, run_state, write_status


def recover(out_dir: Path, name: str) -> None:
    """Bring a folder into order that a killed batch or a damaged disk left; its lock is held."""
    finish_replace(out_dir)
    try:
        read_status(out_dir)
    except ValueError as error:
        say(f"{error}; it is kept as {set_aside(out_dir / 'status.json').name}")
    if line := set_aside_damaged(out_dir):
        say(line)
    new = attempt_folder(out_dir)
    if not new.exists():
        return
    try:
        status = read_status(new)
    except ValueError:
        status = {}
    if not status:  # killed before it began
        say(f"{set_aside(new).name}: left by a killed batch") if any(new.iterdir()) else new.rmdir()
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


def say(line: str) -> None:
    """Tell the user of a batch, on stderr."""
    print(f"mmchar: {line}", file=sys.stderr, flush=True)
