"""Locks between processes: one process at a time writes a run, one at a time measures on a device, and alone.

All are locks of the operating system on a file, so that a process that is killed lets go of what it held.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WAIT_S = 24 * 3600.0  # a measuring run of others may take the night
_BATCH = "MMCHAR_BATCH"  # names the folder of a batch's locks in the environment of its runs
_DOOR = "door.lock"
_START_S = 60.0  # a process that was started has joined its batch by then

_own: Any = None  # the lock that this process holds while it works beside others of a batch
_alone = 0  # how many measurements are open, one within the other


@contextlib.contextmanager
def batch() -> Iterator[None]:
    """Processes that are started within it belong to one batch: they may `join_batch`."""
    with tempfile.TemporaryDirectory(prefix="mmchar-batch-") as folder:
        before, os.environ[_BATCH] = os.environ.get(_BATCH), folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_BATCH]
            else:
                os.environ[_BATCH] = before


@contextlib.contextmanager
def starting(name: str, *, waits: Callable[[float], None] | None = None) -> Iterator[None]:
    """Within it a process of the batch is started, once nobody is alone; who wants to be waits until it has joined.

    ``waits`` is called meanwhile, as in `held`.
    """
    folder = os.environ.get(_BATCH)
    if folder is None:
        yield
        return
    with held(Path(folder) / _DOOR, waits=waits):
        (mark := Path(folder) / f"{name}.start").touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def join_batch(name: str) -> None:
    """From now on this process works beside the others of its batch, if it has one; `alone` makes all of them wait.

    ``name`` is what it was started as (`starting`).
    """
    global _own
    from filelock import FileLock

    if (folder := os.environ.get(_BATCH)) and _own is None:
        _own = FileLock(Path(folder) / f"{os.getpid()}.lock", mode=0o666, is_singleton=True)
        _own.acquire()
        (Path(folder) / f"{name}.start").unlink(missing_ok=True)
        step_aside()


def step_aside() -> None:
    """Let another process of the batch go first, if one waits to be alone; to be called between pieces of work."""
    if _own is not None and not _alone:
        _own.release()
        with held(Path(_own.lock_file).parent / _DOOR):
            _own.acquire()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it every other process of the batch waits where it last called `step_aside`; without a batch, nothing."""
    global _alone
    with contextlib.ExitStack() as stack:
        if _own is not None and not _alone:
            _own.release()  # two that want to be alone do not wait for each other
            folder = Path(_own.lock_file).parent
            stack.enter_context(held(folder / _DOOR))
            _wait_for_starts(folder)
            for other in sorted(folder.glob("[0-9]*.lock")):
                stack.enter_context(held(other))
            stack.callback(_own.acquire)  # before the others go on
        _alone += 1
        try:
            yield
        finally:
            _alone -= 1


def _wait_for_starts(folder: Path) -> None:
    """Wait until all that were started have joined; for one that never does, e.g. a notebook of another kind, once."""
    end = time.monotonic() + _START_S
    while marks := list(folder.glob("*.start")):
        if time.monotonic() >= end:
            for mark in marks:
                mark.unlink(missing_ok=True)
        time.sleep(0.05)


def run_lock(out_dir: Path) -> Path:
    """The file whose lock a process holds while it works on the run in `out_dir`."""
    return out_dir.parent / ".locks" / f"{out_dir.name}.lock"


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; creates nothing."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0, mode=0o666):
            return False
    except (Timeout, OSError):
        return True


@contextlib.contextmanager
def held(path: Path, *, says: str = "", waits: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hold the lock, whose file is made and stays; a thread may take its own lock again.

    While others hold it, `says` goes to stderr once, and `waits` is called with the seconds waited so far; it may raise
    to give up.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o666, is_singleton=True)
    start, told = time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=0.2, poll_interval=0.05)
            break
        except Timeout:
            if waits:
                waits(time.monotonic() - start)
            if says and not told:
                print(f"mmchar: {says}", file=sys.stderr, flush=True)
            told = True
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def measuring(device: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold a device, ``cpu``, ``cuda`` or ``cuda:N``, for one measuring run; waits, with one line on stderr.

    On a CPU the lock is the host's, on a GPU that of its UUID, so that runs on two GPUs go side by side. A process that
    holds a device may take it again. The other processes of a batch wait meanwhile (`alone`). ValueError if the device
    is still taken after `wait_s`, or there is none.
    """

    def waits(waited_s: float) -> None:
        if waited_s >= wait_s:
            raise ValueError(
                f"{device} is still taken by another measuring run after {wait_s:g} s; wait for it or give more time"
            )

    path = _shared_folder() / f"{'host' if device == 'cpu' else _gpu_uuid(device)}.lock"
    with alone(), held(path, says=f"waiting for another measuring run on {device} to end", waits=waits):
        yield


def _shared_folder() -> Path:
    """A folder that every user of this host can write to.

    It is not sticky: Linux refuses to open another user's file for writing in a sticky one (fs.protected_regular).
    """
    folder = Path(tempfile.gettempdir()) / "mmchar-locks"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # it is another user's, who has done this
        folder.chmod(0o777)
    return folder


def _gpu_uuid(device: str) -> str:
    """UUID of a GPU as the driver gives it, e.g. ``GPU-2b1c…``; of ``cuda``, the current one."""
    import torch

    try:
        index = torch.device(device).index
        found = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    except (RuntimeError, AssertionError) as error:  # no such device; a build of torch without CUDA
        raise ValueError(f"cannot measure on {device!r}: torch sees {torch.cuda.device_count()} GPUs") from error
    return f"GPU-{found.uuid}"
