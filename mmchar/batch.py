"""One notebook as a batch job: strict parameters, one papermill process, a status that can be believed.

The notebook of a killed kernel looks completed. So a run is good only if papermill exits with 0 *and* leaves a result
that `mmchar.records.read_result` accepts.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write
from mmchar.notebooks import last_cell, load_notebook
from mmchar.parameters import check_parameters, read_parameters
from mmchar.provenance import provenance
from mmchar.records import discard_result, read_result


@dataclass(frozen=True)
class RunStatus:
    """How a run ended: ok, failed, died, timed out or interrupted; `cell` counts from 1 as a reader does (0: none)."""

    name: str
    status: str
    seconds: float
    cell: int = 0
    message: str = ""


def run_notebook(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: dict[str, Any] | None = None,
    *,
    timeout_s: float = 1800,
    stop: threading.Event | None = None,
) -> RunStatus:
    """How one run of a notebook through papermill ended; never raises for what happens inside the notebook.

    `out_dir` then holds the notebook's result, the executed notebook, ``run.log`` and ``status.json``. A result of an
    earlier run is removed first.

    Parameters
    ----------
    notebook : str or Path
        Must have a parameter ``out_dir``; it is run in its own folder and given paths relative to that.
    out_dir : str or Path
    parameters : dict, optional
        What differs from the defaults, except ``out_dir``.
    timeout_s : float
        Seconds for the whole run; then every process of it is killed.
    stop : threading.Event, optional
        Ends the run as interrupted when set.

    Raises
    ------
    ValueError
        For a parameter that the notebook does not take, a missing papermill, or a folder that cannot be written.
    """
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    require_papermill()
    given = check_parameters(notebook, {**(parameters or {}), "out_dir": relative_path(out_dir, notebook.parent)})
    defaults = read_parameters(notebook)
    given = {k: v for k, v in given.items() if (v, type(v)) != (defaults[k].default, defaults[k].type)}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        discard_result(out_dir)
        _write_status(out_dir, RunStatus(notebook.stem, "running", 0.0), given)
    except OSError as error:
        raise ValueError(f"cannot write to {out_dir}: {error.strerror}; choose another results folder") from error
    start = time.monotonic()
    code, ended = _execute(notebook, out_dir, given, timeout_s, stop or threading.Event())
    cell, message = _keep_executed(out_dir, notebook.stem)
    status, message = _judge(out_dir, notebook.stem, code, ended, message)
    run = RunStatus(notebook.stem, status, round(time.monotonic() - start, 3), cell if status != "ok" else 0, message)
    _write_status(out_dir, run, given)
    return run


def require_papermill() -> None:
    """Raise a ValueError if what a run needs is not installed."""
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed; pip install {package}")


def relative_path(path: str | Path, folder: Path) -> str:
    """The path as seen from the folder, with forward slashes."""
    return Path(os.path.relpath(Path(path).resolve(), folder)).as_posix()


def _write_status(out_dir: Path, run: RunStatus, given: dict[str, Any]) -> None:
    """Write status.json, which names by its checksum the result that it speaks of."""
    try:
        result = read_result(out_dir)["sha256"] if run.status != "running" else None
    except ValueError:
        result = None
    status = {**asdict(run), "parameters": given, "result": result, "provenance": provenance()}
    atomic_write(out_dir / "status.json", json.dumps(status, indent=1) + "\n")


def _execute(
    notebook: Path, out_dir: Path, given: dict[str, Any], timeout_s: float, stop: threading.Event
) -> tuple[int, str]:
    """Exit code of papermill, and "timed out" or "interrupted" where it was ended from here."""
    import yaml  # comes with papermill, which reads the parameters as YAML; so 1e-5 and '012' must be written as YAML

    mark = uuid.uuid4().hex
    part = relative_path(_part(out_dir, notebook.stem), notebook.parent)
    command = [sys.executable, "-m", "papermill", notebook.name, part, "--kernel", "python3", "--no-progress-bar"]
    command += ["--parameters_yaml", yaml.safe_dump(given)] if given else []
    with open(out_dir / "run.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=notebook.parent, env=_environment(mark), stdout=log, stderr=log, start_new_session=True
        )
        try:
            ended = _watch(process, timeout_s, stop)
        finally:
            process.kill()
            process.wait()
            _kill_marked(mark)
    return process.returncode, ended


def _part(out_dir: Path, name: str) -> Path:
    return out_dir / f".{name}.part.ipynb"


def _environment(mark: str) -> dict[str, str]:
    """The environment of a run: ours, without a network for models, with figures drawn in the notebook."""
    fixed = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JUPYTER_PREFER_ENV_PATH": "1"}
    fixed |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "MMCHAR_RUN": mark}
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


def _kill_marked(mark: str) -> None:
    """Kill what is left of a run: kernels live in sessions of their own, so their process group is not ours."""
    import psutil  # comes with ipykernel

    def marked(process: psutil.Process) -> bool:
        try:
            return process.environ().get("MMCHAR_RUN") == mark
        except psutil.Error:
            return False

    for _ in range(5):
        left = [process for process in psutil.process_iter() if marked(process)]
        if not left:
            return
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=2)


def _keep_executed(out_dir: Path, name: str) -> tuple[int, str]:
    """Keep the executed notebook without the paths that papermill notes; the cell where it ended, and its error."""
    part = _part(out_dir, name)
    (out_dir / f"{name}.ipynb").unlink(missing_ok=True)
    try:
        executed = load_notebook(part)
    except ValueError:
        return 0, ""
    finally:
        part.unlink(missing_ok=True)
    for key in ("input_path", "output_path", "environment_variables"):
        executed.get("metadata", {}).get("papermill", {}).pop(key, None)
    atomic_write(out_dir / f"{name}.ipynb", json.dumps(executed, indent=1, ensure_ascii=False) + "\n")
    return last_cell(executed)


def _judge(out_dir: Path, name: str, code: int, ended: str, error: str) -> tuple[str, str]:
    """Status and message of a run that is over."""
    if ended:
        return ended, ""
    if code == 0:
        try:
            found = read_result(out_dir)["notebook"]
        except ValueError as problem:
            return "failed", str(problem)
        return ("ok", "") if found == name else ("failed", f"its result is of notebook {found!r}; save it as {name!r}")
    if error:
        return "failed", error
    log = (out_dir / "run.log").read_text(errors="replace").strip()
    if code < 0 or "DeadKernelError" in log or "Kernel died" in log:
        return "died", "the kernel was killed, as happens when memory runs out"
    return "failed", (log or f"papermill exited with {code}").splitlines()[-1]
