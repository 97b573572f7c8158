"""One notebook as a batch job: strict parameters, one papermill process, a status that can be believed.

The notebook of a killed kernel looks completed. So a run is good only if papermill exits with 0 *and* leaves a result
that `records.read_result` accepts. A run works in a folder of its own beside the one of its result, which it
replaces when it is good, under a lock that the system lets go of when the batch is killed; so the next start knows.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmchar.locks import held, run_lock, starting
from mmchar.provenance import provenance
from mmchar.runs.engine import Stop
from mmchar.runs.identity import differences, notebook_identity, run_id
from mmchar.runs.own_process import OwnProcess, ProcessDied, kill_marked
from mmchar.runs.parameters import check_parameters, read_parameters
from mmchar.runs.records import attempt_folder, read_result
from mmchar.runs.run_state import file_run, keep_executed, keep_only_log, part_file, recover, run_state, write_status

KEPT = "kept"


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


def require_papermill() -> None:
    """Raise a ValueError if what a run needs is not installed."""
    for package in ("papermill", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed; pip install {package}")


def relative_path(path: str | Path, folder: Path) -> str:
    """The path as seen from the folder, with forward slashes."""
    return Path(os.path.relpath(Path(path).resolve(), folder)).as_posix()


def run_notebook(
    notebook: str | Path,
    out_dir: str | Path,
    parameters: dict[str, Any] | None = None,
    *,
    timeout_s: float = 1800,
    stop: Stop | None = None,
    force: bool = False,
) -> RunStatus:
    """How one run of a notebook through papermill ended; never raises for what happens inside the notebook.

    `out_dir` then holds the notebook's result, the executed notebook, ``run.log`` and ``status.json``. A good result of
    the same run is kept and nothing is run, unless with `force`. Any other good result stays until a new one is
    complete; where the run did not end well, ``status.json`` and ``run.log`` are of the new run, and its notebook is
    ``<name>.latest.ipynb``. While another process works on `out_dir`, this one waits.

    The notebook is run in its own folder, with `parameters` and ``out_dir``, a path relative to that, for at most
    `timeout_s`; when `stop` has a reason it ends as interrupted. ValueError for a parameter that it does not take, a
    missing papermill, or a folder that cannot be written.
    """
    notebook, out_dir = Path(notebook).resolve(), Path(out_dir).resolve()
    require_papermill()
    given = check_parameters(notebook, {**(parameters or {}), "out_dir": relative_path(out_dir, notebook.parent)})
    defaults = read_parameters(notebook)
    given = {k: v for k, v in given.items() if (v, type(v)) != (defaults[k].default, defaults[k].type)}
    stop = stop or Stop()

    try:
        with held(run_lock(out_dir), says=f"{out_dir.name}: another process is running it; waiting", waits=stop.heard):
            if out_dir.exists() and not os.access(out_dir, os.W_OK):  # seen before the hours of the run, not after
                raise PermissionError(errno.EACCES, "it is read-only")
            recover(out_dir, notebook.stem)
            run = Run(notebook, out_dir, given, force)
            planned = plan_one(run)
            return planned if planned.message == KEPT else _run(run, planned.message, timeout_s, stop)
    except InterruptedError:
        return RunStatus(notebook.stem, "interrupted", 0.0, message="not started")
    except OSError as error:
        raise ValueError(f"cannot write to {out_dir}: {error.strerror}; choose another results folder") from error


def run_one(run: Run, *, timeout_s: float, stop: Stop) -> RunStatus:
    """As `run_notebook`, but a folder that cannot be written is a run that failed: the others of a batch go on."""
    if stop.reason:
        return RunStatus(run.notebook.stem, "interrupted", 0.0, message="not started")
    try:
        return run_notebook(run.notebook, run.out_dir, run.parameters, timeout_s=timeout_s, stop=stop, force=run.force)
    except ValueError as error:
        return RunStatus(run.notebook.stem, "failed", 0.0, message=str(error))


def plan_one(run: Run, *, any_hardware: bool = False) -> RunStatus:
    """The status "ok" with the message "kept", or "to run" with the reason; writes nothing. See `why_run`."""
    identity = notebook_identity(run.notebook, run.parameters)
    why = "forced" if run.force else why_run(run.out_dir.resolve(), identity, run.notebook, any_hardware=any_hardware)
    return RunStatus(run.notebook.stem, "to run" if why else "ok", 0.0, message=why or KEPT, id=run_id(identity))


def why_run(
    out_dir: Path, identity: dict[str, Any], notebook: Path | None = None, *, any_hardware: bool = False
) -> str:
    """Why the run of this identity has to run, or "" if its good result is in `out_dir`; writes nothing.

    With `any_hardware` a result of other hardware is good too: a cluster's nodes are not the machine that asks.
    """
    status, result = run_state(out_dir)
    state, message = status.get("status"), status.get("message")
    match state:
        case None:
            return "never run"
        case "running":
            return "another process is running it"
        case "damaged":
            return f"damaged: {message}"
        case "ok" if not result.get("identity"):
            return "its result was made by hand"
        case "ok":
            before = result["identity"]
            now = identity | ({"hardware": before["hardware"]} if any_hardware else {})
            return "; ".join(differences(before, now, notebook))
    ended = state if state in ("failed", "died", "timed out") else f"was {state}"
    return f"last time it {ended}" + (f": {message}" if message else "")


def _run(wanted: Run, why: str, timeout_s: float, stop: Stop) -> RunStatus:
    """How the run ended, after it was run in a new folder and that was filed."""
    notebook, out_dir, given = wanted.notebook, wanted.out_dir, wanted.parameters
    new, name, identity = attempt_folder(out_dir), notebook.stem, notebook_identity(notebook, given)
    run = RunStatus(name, "running", 0.0, id=run_id(identity))
    known = {"parameters": given, "identity": identity, "why": why, "provenance": provenance()}
    new.mkdir(parents=True)
    write_status(new, asdict(run) | known)
    start, cell = time.monotonic(), 0
    try:
        code, ended = execute(notebook, new, given, run.id, timeout_s, stop)
        cell, message = keep_executed(new, name)
        status, message = _judge(new, name, code, ended, message)
    except OSError as error:
        status, message = "failed", error.strerror or str(error)
    if notebook_identity(notebook, given) != identity:  # what ran is neither that of before nor that of now
        known["identity"] = identity | {"package": "edited while it ran"}
    run = replace(run, status=status, seconds=round(time.monotonic() - start, 3), cell=cell if status != "ok" else 0)
    run = replace(run, message=message.replace(new.name, out_dir.name))
    try:
        file_run(out_dir, new, name, asdict(run) | known)
    except OSError as error:  # the disk is full: give back what the run took, so that its status can be written
        run = replace(run, status="failed", message=error.strerror or str(error))
        keep_only_log(new)
        file_run(out_dir, new, name, asdict(run) | known)
    return run


def _judge(new: Path, name: str, code: int | None, ended: str, error: str) -> tuple[str, str]:
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
    if (code or 0) < 0 or "DeadKernelError" in log or "Kernel died" in log:
        return "died", "the kernel was killed, as happens when memory runs out"
    return "failed", (log or f"papermill exited with {code}").splitlines()[-1]


def execute(
    notebook: Path, new: Path, given: dict[str, Any], id_: str, timeout_s: float, stop: Stop
) -> tuple[int | None, str]:
    """Exit code of papermill, and "timed out" or "interrupted" where it was ended from here.

    The notebook is run in its own folder. The folder `new` gets the log, and the executed notebook as `part_file`.
    Every process of the run has ``MMCHAR_RUN``, that folder, in its environment.
    """
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "MMCHAR_RUN": str(new)}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JUPYTER_PREFER_ENV_PATH": "1"}
    quiet = [os.environ.get("PYTHONWARNINGS", ""), "ignore:IProgress not found"]  # tqdm's advice names its own path
    environment |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": ",".join(filter(None, quiet))}
    part = part_file(new, notebook.stem)

    with contextlib.suppress(InterruptedError), starting(notebook.stem, waits=stop.heard):
        process = OwnProcess(_papermill, notebook, part, given, log=new / "run.log", environment=environment)
        try:
            return _ended(process, timeout_s, stop)
        finally:
            process.close()
            kill_marked(str(new))
    return None, "interrupted"


def _ended(process: OwnProcess, timeout_s: float, stop: Stop) -> tuple[int | None, str]:
    try:
        if stop.answer(process, timeout_s) is not None:
            return 0, ""
        return None, "interrupted" if stop.reason else "timed out"
    except ProcessDied:
        return process.exit_code(), ""


def _papermill(pipe: Connection, notebook: Path, part: Path, given: dict[str, Any]) -> None:
    import logging

    import papermill

    os.chdir(notebook.parent)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    executed = relative_path(part, notebook.parent)
    papermill.execute_notebook(notebook.name, executed, given, kernel_name="python3", progress_bar=False)
    pipe.send("done")
