"""One notebook executed by papermill in a process of its own, and the end of everything that the process started."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

# papermill as `python -m papermill`, which ends with the batch: its standard input is a pipe that only the batch holds.
_PAPERMILL = """
import os, runpy, sys, threading
def end_with_the_batch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_the_batch, daemon=True).start()
sys.argv[0] = "papermill"
runpy.run_module("papermill", run_name="__main__")
"""


def require_papermill() -> None:
    """Raise a ValueError if what a run needs is not installed."""
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed; pip install {package}")


def relative_path(path: str | Path, folder: Path) -> str:
    """The path as seen from the folder, with forward slashes."""
    return Path(os.path.relpath(Path(path).resolve(), folder)).as_posix()


def execute(
    notebook: Path, new: Path, given: dict[str, Any], marks: tuple[str, str], timeout_s: float, stop: threading.Event
) -> tuple[int, str]:
    """Exit code of papermill, and "timed out" or "interrupted" where it was ended from here.

    Parameters
    ----------
    notebook : Path
        It is run in its own folder.
    new : Path
        The folder of the run: its log, and the executed notebook as `part_file`.
    given : dict
        Parameters, less ``out_dir``.
    marks : (str, str)
        What every process of the run has in its environment, so that it can be found, and the run's id.
    timeout_s : float
    stop : threading.Event
        Ends the process when set.
    """
    import yaml  # comes with papermill, which reads the parameters as YAML; so 1e-5 and '012' must be written as YAML

    given = given | {"out_dir": relative_path(new, notebook.parent)}
    part = relative_path(part_file(new, notebook.stem), notebook.parent)
    command = [sys.executable, "-c", _PAPERMILL, notebook.name, part, "--kernel", "python3", "--no-progress-bar"]
    command += ["--parameters_yaml", yaml.safe_dump(given)]
    options: dict[str, Any] = {"cwd": notebook.parent, "env": _environment(*marks), "start_new_session": True}
    with open(new / "run.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, **options)
        try:
            ended = _watch(process, timeout_s, stop)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
            kill_marked(marks[0])
    return process.returncode, ended


def part_file(folder: Path, name: str) -> Path:
    """Where papermill writes the notebook while it executes it."""
    return folder / f".{name}.part.ipynb"


def _environment(mark: str, id_: str) -> dict[str, str]:
    """The environment of a run: ours, without a network for models, with figures drawn in the notebook."""
    fixed = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JUPYTER_PREFER_ENV_PATH": "1"}
    fixed |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "MMCHAR_RUN": mark, "MMCHAR_RUN_ID": id_}
    return {"HF_HUB_OFFLINE": "1", **os.environ, **fixed}


def _watch(process: subprocess.Popen, timeout_s: float, stop: threading.Event) -> str:
    end = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if stop.is_set():
                return "interrupted"
            if time.monotonic() > end:
                return "timed out"
            time.sleep(0.05)
    except KeyboardInterrupt:
        stop.set()
        return "interrupted"
    return ""


def kill_marked(mark: str) -> None:
    """Kill what is left of a run: kernels live in sessions of their own, so their process group is not ours."""
    import psutil  # comes with ipykernel

    def marked(process: psutil.Process) -> bool:
        try:
            return process.environ().get("MMCHAR_RUN") == mark
        except psutil.Error:
            return False

    for _ in range(5 if mark else 0):
        left = [process for process in psutil.process_iter() if marked(process)]
        if not left:
            return
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=2)
