"""A function in a process of its own, which ends with the process that started it, whatever ends that.

A notebook is run in one, and so are the points of a campaign; what crashes there is one run, and not the batch.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

_END_S = 3.0  # for a process that is told to stop, before it is killed
_START = multiprocessing.get_context("spawn")


class ProcessDied(RuntimeError):
    """The process ended without an answer."""


class OwnProcess:
    """A running ``function(pipe, *arguments)``: its output goes to a log, its answers through the pipe.

    It has a session of its own: Ctrl-C is for the batch, which ends it.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any, log: Path | None = None) -> None:
        self._unnamed = None if log else tempfile.NamedTemporaryFile()  # noqa: SIM115  closed with the process
        self._log = Path(log or self._unnamed.name)  # type: ignore[union-attr]
        self._log.touch()
        self._pipe, theirs = _START.Pipe()
        self._process = _START.Process(target=_begin, args=(function, theirs, self._log, arguments))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid  # type: ignore[return-value]  # it has been started

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._process.exitcode

    def ask(self, order: Any) -> None:
        """Send something; its answer is fetched with `answer`."""
        try:
            self._pipe.send(order)
        except OSError as error:
            raise ProcessDied(self._last_words()) from error

    def answer(self, wait_s: float) -> Any:
        """What the function sent next, None if nothing within so many seconds.

        `ProcessDied` has the signal or exit code that it ended with, and the last line of its log.
        """
        ready = wait([self._pipe, self._process.sentinel], max(wait_s, 0.0))
        if not ready:
            return None
        try:
            if self._pipe in ready:
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise ProcessDied(self._last_words())

    def close(self) -> None:
        """End the process and its session, whatever they do."""
        for number, end in ((signal.SIGTERM, self._process.terminate), (signal.SIGKILL, self._process.kill)):
            end()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)  # a compiler's own processes too
            self._process.join(_END_S)
            if self._process.exitcode is not None:
                break
        self._pipe.close()
        if self._unnamed:
            self._unnamed.close()

    def _last_words(self) -> str:
        self._process.join(_END_S)
        code = self._process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
            how += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the worker ended ({how})" + (f": {' '.join(lines[-1].split())[:200]}" if lines else "")


def _begin(function: Callable[..., None], pipe: Connection, log: Path, arguments: tuple[Any, ...]) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a process that is killed leaves behind
    function(pipe, *arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def on_signals(act: Callable[[str], None], *numbers: signal.Signals) -> Iterator[None]:
    """Within it, a signal calls ``act`` with its name instead of what it does else."""
    before = {each: signal.signal(each, lambda number, _: act(signal.Signals(number).name)) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def kill_marked(mark: str) -> None:
    """Kill every process with ``MMCHAR_RUN=mark`` in its environment: a kernel lives in a session of its own."""
    import psutil

    def marked(process: psutil.Process) -> bool:
        try:
            return process.environ().get("MMCHAR_RUN") == mark
        except psutil.Error:
            return False

    for _ in range(5):
        left = [process for process in psutil.process_iter() if marked(process)]
        for process in left:
            process.kill()
        if not left:
            return
        psutil.wait_procs(left, timeout=2)
