"""The runs of a batch as one Slurm job array, sent through submitit.

Each job ends its run as a batch on one machine does and leaves its status as JSON, which is all that is read back.
submitit itself pickles what a job is to do (a run: paths and plain values), and loads that in the job; those files lie
in the folder ``.slurm`` beside the runs, which nobody else may write to. mmchar opens no pickle that lies in a file.

Ctrl-C cancels the array; the next start does what is missing. A batch process that is killed leaves its array to
Slurm; the next start on the same folder then refuses, naming the array, so that nothing runs twice.
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mmchar.files import atomic_write, checksum
from mmchar.runs.batch import Run, RunStatus, run_one
from mmchar.runs.engine import Stop

REQUEUES = 3  # times that a run is started again after a preemption
_RESERVE_S = 30  # a run ends itself so long before Slurm would, to leave a status and no process behind
_POLL_S = 5.0
_ENDED = {
    "CANCELLED": ("interrupted", "cancelled in Slurm's queue"),
    "TIMEOUT": ("timed out", "Slurm's time limit; give a larger one"),
    "DEADLINE": ("timed out", "Slurm's deadline"),
    "OUT_OF_MEMORY": ("died", "out of the memory that Slurm gave it"),
}
_OVER = {*_ENDED, "COMPLETED", "FAILED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED"}


@dataclass(frozen=True)
class SlurmOptions:
    """What each run asks of Slurm; ``None`` leaves it to the cluster. ValueError for what Slurm could not take.

    - ``partition``: where to run.
    - ``time_limit_min``: minutes per run, by default what the batch's own time-out needs.
    - ``gres``: GPUs that Slurm hands to one run at a time, ``gpu:1`` or ``gpu:h100:1``.
    - ``parallel``: runs at a time.

    Other settings of a site, such as the account, go through sbatch's own variables (``SBATCH_ACCOUNT``).
    """

    partition: str | None = None
    time_limit_min: int | None = None
    gres: str | None = None
    parallel: int | None = None

    def __post_init__(self) -> None:
        if self.partition is not None and not re.fullmatch(r"\w[\w.,-]*", str(self.partition)):
            raise ValueError(f"partition = {self.partition!r} is no name of a partition; 'sinfo' lists them")
        for name in ("time_limit_min", "parallel"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} = {value!r} is not a whole number of 1 or more")
        if self.gres is not None and not re.fullmatch(r"gpu(:[A-Za-z][\w.-]*)?(:[1-9]\d*)?", str(self.gres)):
            raise ValueError(f"gres = {self.gres!r} names no whole GPUs; give gpu:1, or gpu:h100:1 for one kind")

    def limits(self, timeout_s: float) -> tuple[int, float]:
        """Slurm's limit in minutes, and the run's own in seconds, which ends first."""
        if self.time_limit_min is None:
            return math.ceil((timeout_s + _RESERVE_S) / 60), timeout_s
        return self.time_limit_min, min(timeout_s, self.time_limit_min * 60 - _RESERVE_S)


def run_all(runs: list[Run], *, timeout_s: float, options: SlurmOptions, stop: Stop | None = None) -> list[RunStatus]:
    """How each run ended, in the order of the runs, after Slurm ran them as one job array.

    A run that was preempted starts again, at most 3 times; one that had ended well does not. Its time in the queue does
    not count. The folders of the runs must be reachable under the same path from every node. `stop`, or Ctrl-C, cancels
    the array. ValueError for no Slurm or no submitit here, an array of the same folder in the queue, or what Slurm
    refuses.
    """
    check_slurm()
    if not runs:
        return []
    stop = stop or Stop()
    parent = Path(os.path.commonpath([Path(run.out_dir).resolve().parent for run in runs]))
    name = f"mmchar-{checksum(str(parent).encode())[:8]}"
    _refuse_second(name, parent)
    folder = _private_folder(parent)
    wanted = [(run, folder / f"{number}.json") for number, run in enumerate(runs)]
    waiting, states = wanted, dict[Path, str]()
    with stop.on_signals():
        for _ in range(1 + REQUEUES):  # where Slurm itself starts a preempted run again, once is enough
            jobs = _submit(waiting, name, folder, timeout_s, options)
            seen = _wait(jobs, stop)
            states |= {ended: seen[job] for (_, ended), job in zip(waiting, jobs, strict=True)}
            waiting = [one for one in waiting if states[one[1]] == "PREEMPTED" and not _is_good(one[1])]
            if not waiting or stop.reason:
                break
    return [_status(run, ended, states[ended]) for run, ended in wanted]


def check_slurm() -> None:
    """Raise a ValueError if this machine cannot send jobs to Slurm."""
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise ValueError("no Slurm here (sbatch is not found); use a cluster's login node, or leave --slurm out")
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("submitit is not installed; pip install submitit")


def _refuse_second(name: str, parent: Path) -> None:
    code, out, error = _ask("squeue", "--me", "--noheader", "--name", name, "--format", "%A")
    if code:
        raise ValueError(f"Slurm does not answer: {error}")
    if out:
        job = out.split()[0]
        raise ValueError(f"Slurm still works on {parent.name!r} (job {job}): wait for it, or end it by 'scancel {job}'")


def _private_folder(parent: Path) -> Path:
    """A new folder for one batch, which nobody else can write to, as jobs execute what lies in it."""
    home = parent / ".slurm"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = home.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ValueError(f"others can write to {home}, from which jobs run; remove it or choose another folder")
        return Path(tempfile.mkdtemp(dir=home, prefix=time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime())))
    except OSError as error:
        raise ValueError(f"cannot write to {home}: {error.strerror}; choose another results folder") from error


def _submit(
    runs: list[tuple[Run, Path]], name: str, folder: Path, timeout_s: float, options: SlurmOptions
) -> list[str]:
    import submitit

    minutes, seconds = options.limits(timeout_s)
    given = {"partition": options.partition, "gres": options.gres, "array_parallelism": options.parallel}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            executor = submitit.SlurmExecutor(folder=folder)
            executor.update_parameters(
                **{key: value for key, value in given.items() if value is not None},
                job_name=name,
                time=minutes,
                signal_delay_s=10,
                additional_parameters={"requeue": True},
            )
            with executor.batch():
                jobs = [executor.submit(_job, run, seconds, ended) for run, ended in runs]
    except (RuntimeError, OSError, submitit.core.utils.UncompletedJobError) as error:
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"Slurm refuses the batch: {'; '.join(lines) or type(error).__name__}") from error
    return [job.job_id for job in jobs]


def _job(run: Run, timeout_s: float, ended: Path) -> None:
    """One run, as a job of Slurm: leaves its status in the file `ended`."""
    if _is_good(ended):  # a job that was sent back to the queue just when it had ended
        return
    ended.unlink(missing_ok=True)
    stop, starts = Stop(), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if starts > REQUEUES:
        status = RunStatus(run.notebook.stem, "died", 0.0, message=f"started again {starts} times, never to its end")
    else:
        with stop.on_signals(signal.SIGTERM, signal.SIGUSR2):  # to end, preempt or requeue a job
            status = run_one(run, timeout_s=timeout_s, stop=stop)
    if stop.reason and status.status in ("failed", "died"):  # the kernel may hear the signal before us
        status = replace(status, status="interrupted", message="")
    atomic_write(ended, json.dumps(asdict(status)) + "\n")


def _wait(jobs: list[str], stop: Stop) -> dict[str, str]:
    """The last state of each job, when all are over; shows progress on stderr."""
    states = dict.fromkeys(jobs, "PENDING")
    array, cancelled = jobs[0].split("_")[0], False
    with tqdm(total=len(jobs), unit="run", desc=f"slurm job {array}", file=sys.stderr) as bar:
        while True:
            known = _states(array)
            if known is not None:  # Slurm forgets a job some minutes after its end
                gone = {job: state if state in _OVER else "COMPLETED" for job, state in states.items()}
                states = {job: known.get(job, gone[job]) for job in jobs}
            running = [state for state in states.values() if state not in _OVER]
            bar.set_postfix_str(", ".join(f"{n} {state.lower()}" for state, n in Counter(running).items()))
            bar.update(len(jobs) - len(running) - bar.n)
            if not running:
                return states
            if stop.reason and not cancelled:
                _ask("scancel", array)
                cancelled = True
            time.sleep(_POLL_S)


def _states(array: str) -> dict[str, str] | None:
    """The state of every job of an array that Slurm remembers, None where it gives no answer."""
    code, out, error = _ask("squeue", "--noheader", "--array", "--states=all", "--jobs", array, "--format", "%i %T")
    if code and "Invalid job id" not in error:
        return None
    return dict(line.split(maxsplit=1) for line in out.splitlines())  # [[id, state], ...]


def _ask(*command: str) -> tuple[int, str, str]:
    """Exit code, output and errors (in one line) of a command of Slurm."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip(), " ".join(done.stderr.split())


def _read_ended(path: Path) -> RunStatus | None:
    try:
        return RunStatus(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_good(path: Path) -> bool:
    status = _read_ended(path)
    return status is not None and status.status == "ok"


def _status(run: Run, path: Path, state: str) -> RunStatus:
    """What the job said of its run, or what Slurm says of a job that could not."""
    for _ in range(20 if state == "COMPLETED" else 1):
        status = _read_ended(path)
        if status:
            late = status.status == "interrupted" and state in ("TIMEOUT", "DEADLINE")
            return replace(status, status="timed out", message=_ENDED[state][1]) if late else status
        time.sleep(0.5)  # a network file system may show a file late
    how, message = _ENDED.get(state, ("died", f"Slurm ended its job as {state}"))
    return RunStatus(run.notebook.stem, how, 0.0, message=message)
