"""One notebook executed by papermill in a process of its own, and the end of everything that the process started."""

import importlib.util
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmchar.runs.engine import Stop
from mmchar.runs.own_process import OwnProcess, ProcessDied, kill_marked


def require_papermill() -> None:
    """Raise a ValueError if what a run needs is not installed."""
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed; pip install {package}")


def relative_path(path: str | Path, folder: Path) -> str:
    """The path as seen from the folder, with forward slashes."""
    return Path(os.path.relpath(Path(path).resolve(), folder)).as_posix()


def part_file(folder: Path, name: str) -> Path:
    """Where papermill writes the notebook while it executes it."""
    return folder / f".{name}.part.ipynb"


def execute(
    notebook: Path, new: Path, given: dict[str, Any], id_: str, timeout_s: float, stop: Stop
) -> tuple[int | None, str]:
    """Exit code of papermill, and "timed out" or "interrupted" where it was ended from here.

    The notebook is run in its own folder. The folder `new` gets the log, and the executed notebook as `part_file`.
    Every process of the run has ``MMCHAR_RUN``, that folder, and ``MMCHAR_RUN_ID`` in its environment.
    """
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "MMCHAR_RUN": str(new), "MMCHAR_RUN_ID": id_}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    part = part_file(new, notebook.stem)
    process = OwnProcess(_papermill, notebook, part, given, log=new / "run.log", environment=environment)
    try:
        if stop.answer(process, timeout_s) is not None:
            return 0, ""
        return None, "interrupted" if stop.reason else "timed out"
    except ProcessDied:
        return process.exit_code(), ""
    finally:
        process.close()
        kill_marked(str(new))


def _papermill(pipe: Connection, notebook: Path, part: Path, given: dict[str, Any]) -> None:
    import logging

    import papermill

    os.chdir(notebook.parent)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    papermill.execute_notebook(
        notebook.name, relative_path(part, notebook.parent), given, kernel_name="python3", progress_bar=False
    )
    pipe.send("done")
