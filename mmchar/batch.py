"""One notebook as a batch job: strict parameters, one papermill process, a status that can be believed.

The notebook of a killed kernel looks completed. So a run is good only if papermill exits with 0 *and* leaves a result
that `mmchar.records.read_result` accepts. A run works in a folder of its own beside the one of its result, which it
replaces when it is good, under a lock that the system lets go of when the batch is killed; so the next start knows.
"""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmchar.files import atomic_write, finish_replace, set_aside
from mmchar.identity import differences, notebook_identity, run_id
from mmchar.locks import held, run_lock
from mmchar.notebooks import last_cell, load_notebook, without_attempt
from mmchar.parameters import check_parameters, read_parameters
from mmchar.provenance import provenance
from mmchar.records import KILLED, attempt_folder, read_result, read_status, replace_result, run_state, write_status

KEPT = "kept"
_ENDED = {"ok": "ended", "failed": "failed", "died": "died", "timed out": "timed out"}  # the others: "was ..."

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


@dataclass(frozen=True)
class Run:
    """One run that is wanted: a notebook, the folder of its result, and what differs from its defaults.

    With `force` it runs even if the folder holds its good result.
    """

    notebook: Path
    out_dir: Path
    parameters: dict[str, Any]
    force: bool = False


@dataclass(frozen=True)
class RunStatus:
    """How a run ended: ok, failed, died, timed out, interrupted or skipped.

    `cell` counts from 1 as a reader does (0: none). A good result that was there already has the message "kept".
    """

    name: str
    status: str
    seconds: float
    cell: int = 0
    message: str = ""
    id: str = ""


def run_notebook(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: dict[str, Any] | None = None,
    *,
    timeout_s: float = 1800,
    stop: threading.Event | None = None,
    force: bool = False,
) -> RunStatus:
    """How one run of a notebook through papermill ended; never raises for what happens inside the notebook.

    `out_dir` then holds the notebook's result, the executed notebook, ``run.log`` and ``status.json``. A good result of
    the same run is kept and nothing is run. Any other good result stays until a new one is complete; where the run did
    not end well, ``status.json`` and ``run.log`` are of the new run, and its notebook is ``<name>.latest.ipynb``.

    Parameters
    ----------
    notebook : str or Path
        Must have a parameter ``out_dir``; it is run in its own folder and given paths relative to that.
    out_dir : str or Path
        While another process works on it, this one waits.
    parameters : dict, optional
        What differs from the defaults, except ``out_dir``.
    timeout_s : float
        Seconds for the whole run; then every process of it is killed.
    stop : threading.Event, optional
        Ends the run as interrupted when set.
    force : bool
        Run even if the good result is there.

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
    stop = stop or threading.Event()
    told = False

    def waits(waited_s: float) -> None:
        nonlocal told
        if stop.is_set():
            raise InterruptedError
        if not told and waited_s > 1:
            _say(f"{out_dir.name}: another process is running it; waiting")
            told = True

    try:
        with held(run_lock(out_dir), waits=waits):
            if out_dir.exists() and not os.access(out_dir, os.W_OK):  # seen before the hours of the run, not after
                raise PermissionError(errno.EACCES, "it is read-only")
            _recover(out_dir, notebook.stem)
            identity = notebook_identity(notebook, given)
            why = "forced" if force else why_run(out_dir, identity, notebook)
            if not why:
                return RunStatus(notebook.stem, "ok", 0.0, message=KEPT, id=run_id(identity))
            return _run(notebook, out_dir, given, identity, why, timeout_s, stop)
    except InterruptedError:
        return RunStatus(notebook.stem, "interrupted", 0.0, message="not started")
    except OSError as error:
        raise ValueError(f"cannot write to {out_dir}: {error.strerror}; choose another results folder") from error


def why_run(
    out_dir: Path, identity: dict[str, Any], notebook: Path | None = None, *, any_hardware: bool = False
) -> str:
    """Why the run of this identity has to run, or "" if its good result is in `out_dir`; writes nothing.

    With `any_hardware` a result of other hardware is good too: a cluster's nodes are not the machine that asks.
    """
    status, result = run_state(out_dir)
    state = status.get("status")
    if state is None:
        return "never run"
    if state == "running":
        return "another process is running it"
    if state == "damaged":
        return f"damaged: {status['message']}"
    if state != "ok":
        message = f": {status['message']}" if status.get("message") else ""
        return f"last time it {_ENDED.get(state, f'was {state}')}{message}"
    if not result.get("identity"):
        return "its result was made by hand"
    before = result["identity"]
    return "; ".join(
        differences(before, identity | ({"hardware": before["hardware"]} if any_hardware else {}), notebook)
    )


def _say(line: str) -> None:
    print(f"mmchar: {line}", file=sys.stderr, flush=True)


def _recover(out_dir: Path, name: str) -> None:
    """Bring a folder into order that a killed batch or a damaged disk left; its lock is held."""
    finish_replace(out_dir)
    if out_dir.is_dir():
        _set_aside_damaged(out_dir)
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
        _kill_marked(status.get("mark", ""))
        cell, _ = _keep_executed(new, out_dir, name)
        status |= {"status": "died", "cell": cell, "message": KILLED}
    _file(out_dir, new, name, status)


def _set_aside_damaged(out_dir: Path) -> None:
    try:
        status = read_status(out_dir)
    except ValueError as error:
        status = {}
        _say(f"{error}; it is kept as {set_aside(out_dir / 'status.json').name}")
    if not (out_dir / "result.json").exists() and status.get("status") != "ok" and not status.get("earlier"):
        return
    try:
        read_result(out_dir)
    except ValueError as error:
        _say(f"{error}; the folder is kept as {set_aside(out_dir).name}")


def _run(
    notebook: Path,
    out_dir: Path,
    given: dict[str, Any],
    identity: dict[str, Any],
    why: str,
    timeout_s: float,
    stop: threading.Event,
) -> RunStatus:
    """How the run ended, after it was run in a new folder and that was filed."""
    new, name, id_, mark = attempt_folder(out_dir), notebook.stem, run_id(identity), uuid.uuid4().hex
    new.mkdir(parents=True)
    known = {"parameters": given, "identity": identity, "why": why, "mark": mark, "provenance": provenance()}
    write_status(new, asdict(RunStatus(name, "running", 0.0, id=id_)) | known)
    start, cell = time.monotonic(), 0
    try:
        code, ended = _execute(notebook, new, given, (mark, id_), timeout_s, stop)
        cell, message = _keep_executed(new, out_dir, name)
        status, message = _judge(new, name, code, ended, message)
    except OSError as error:
        status, message = "failed", error.strerror or str(error)
    message = message.replace(new.name, out_dir.name)
    if notebook_identity(notebook, given) != identity:  # what ran is neither that of before nor that of now
        known["identity"] = identity | {"package": "edited while it ran"}
    run = RunStatus(name, status, round(time.monotonic() - start, 3), cell if status != "ok" else 0, message, id_)
    try:
        _file(out_dir, new, name, asdict(run) | known)
        return run
    except OSError as error:  # the disk is full: give back what the run took, so that its status can be written
        failed = RunStatus(name, "failed", run.seconds, cell, error.strerror or str(error), id_)
        _empty(new)
        _file(out_dir, new, name, asdict(failed) | known)
        return failed


def _empty(folder: Path) -> None:
    """Remove all but the status and the log."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("status.json", "run.log"):
            path.unlink()


def _file(out_dir: Path, new: Path, name: str, status: dict[str, Any]) -> None:
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


def require_papermill() -> None:
    """Raise a ValueError if what a run needs is not installed."""
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed; pip install {package}")


def relative_path(path: str | Path, folder: Path) -> str:
    """The path as seen from the folder, with forward slashes."""
    return Path(os.path.relpath(Path(path).resolve(), folder)).as_posix()


def _execute(
    notebook: Path, new: Path, given: dict[str, Any], marks: tuple[str, str], timeout_s: float, stop: threading.Event
) -> tuple[int, str]:
    """Exit code of papermill, and "timed out" or "interrupted" where it was ended from here."""
    import yaml  # comes with papermill, which reads the parameters as YAML; so 1e-5 and '012' must be written as YAML

    given = given | {"out_dir": relative_path(new, notebook.parent)}
    part = relative_path(_part(new, notebook.stem), notebook.parent)
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
            _kill_marked(marks[0])
    return process.returncode, ended


def _part(out_dir: Path, name: str) -> Path:
    return out_dir / f".{name}.part.ipynb"


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


def _kill_marked(mark: str) -> None:
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


def _keep_executed(new: Path, out_dir: Path, name: str) -> tuple[int, str]:
    """Keep the executed notebook, as if it had run in `out_dir`; the cell where it ended, and its error."""
    part = _part(new, name)
    if not part.exists():
        return 0, ""
    try:
        executed = load_notebook(part)
    except ValueError:  # killed while it was written
        part.rename(new / f"{name}.ipynb.damaged")
        return 0, ""
    executed = without_attempt(executed, new.name, out_dir.name)
    atomic_write(new / f"{name}.ipynb", json.dumps(executed, indent=1, ensure_ascii=False) + "\n")
    part.unlink()
    return last_cell(executed)


def _judge(new: Path, name: str, code: int, ended: str, error: str) -> tuple[str, str]:
    """Status and message of a run that is over."""
    if ended:
        return ended, ""
    if code == 0:
        try:
            found = read_result(new)["notebook"]
        except ValueError as problem:
            return "failed", str(problem)
        return ("ok", "") if found == name else ("failed", f"its result is of notebook {found!r}; save it as {name!r}")
    if error.startswith("SkipRun: "):
        return "skipped", error.removeprefix("SkipRun: ")
    if error:
        return "failed", error
    log = (new / "run.log").read_text(errors="replace").strip()
    if "No space left on device" in log or shutil.disk_usage(new).free < 4096:
        return "failed", "no space left on device"
    if code < 0 or "DeadKernelError" in log or "Kernel died" in log:
        return "died", "the kernel was killed, as happens when memory runs out"
    return "failed", (log or f"papermill exited with {code}").splitlines()[-1]
