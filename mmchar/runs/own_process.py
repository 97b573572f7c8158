"""A function in a process of its own, which ends with the process that started it, whatever ends that.

A notebook is run in one, and so are the points of a campaign; what crashes there is one run, and not the batch.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

_END_S = 3.0  # for a process that is told to stop, before it is killed
_TICK_S = 0.5
# Its standard input is a pipe that only its parent holds. Unlike `multiprocessing` this imports no script of the user.
_CHILD = """
import os, sys, threading
from multiprocessing.connection import Connection

def end_with_the_parent():
    os.read(0, 1)
    os._exit(1)

threading.Thread(target=end_with_the_parent, daemon=True).start()
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
function, *arguments = pipe.recv()
function(pipe, *arguments)
"""


class ProcessDied(RuntimeError):
    """The process ended without an answer."""


class OwnProcess:
    """A running ``function(pipe, *arguments)``: its output goes to a log, its answers through the pipe.

    `environment` is added to ours. It has a session of its own: Ctrl-C is for the batch, which ends it.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._log = open(log, "w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(theirs.fileno())],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=(theirs.fileno(),),
            start_new_session=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        theirs.close()
        with contextlib.suppress(ProcessDied):  # the next answer, or the exit code, tells
            self.ask(sys.path)
            self.ask((function, *arguments))

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self._process.poll()

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
        end = time.monotonic() + wait_s
        while True:
            ended = self._process.poll() is not None  # asked before the pipe, which may hold its last answer
            if self._pipe.poll(0 if ended else max(0.0, min(_TICK_S, end - time.monotonic()))):
                try:
                    return self._pipe.recv()
                except (EOFError, OSError) as error:
                    raise ProcessDied(self._last_words()) from error
            if ended:  # its children may still hold the pipe open
                raise ProcessDied(self._last_words())
            if time.monotonic() >= end:
                return None

    def close(self) -> None:
        """End the process and its session, whatever they do."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)  # a compiler's own processes too
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
                break
        self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        self._pipe.close()
        self._log.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        code = self._process.returncode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
            how += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the worker ended ({how})" + (f": {' '.join(lines[-1].split())[:200]}" if lines else "")


def kill_marked(mark: str) -> None:
    """Kill every process with ``MMCHAR_RUN=mark`` in its environment: a kernel lives in a session of its own."""
    import psutil

    def marked(process: psutil.Process) -> bool:
        try:
            return process.environ().get("MMCHAR_RUN") == mark
        except psutil.Error:
            return False

    for _ in range(50):
        left = [process for process in psutil.process_iter() if marked(process)]
        for process in left:
            process.kill()
        if not left:
            return
        psutil.wait_procs(left, timeout=0.2)  # what is killed and not yet waited for by its parent stays on the list
