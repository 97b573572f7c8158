"""One engine for every batch: runs, so many at a time, until all are done, the time is over, or a signal comes.

What a run is, a notebook or a measurement, and what makes it good, is known to who starts the batch. Here is when it
starts and what ends it.
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from mmchar.runs.own_process import OwnProcess

R = TypeVar("R")  # a run
E = TypeVar("E")  # how it ended
TICK_S = 0.2  # a process is left alone so long before it is seen whether the batch shall end


class Stop:
    """Why and when a batch ends early: ``reason``, "" as long as it does not, and a time of `clock` in seconds."""

    def __init__(self, reason: str = "", *, ends_s: float = math.inf, clock: Callable[[], float] = time.monotonic):
        self.reason, self.ends_s, self.clock = reason, ends_s, clock

    def left_s(self) -> float:
        """Seconds that are left."""
        return self.ends_s - self.clock()

    def heard(self, _waited_s: float = 0.0) -> None:
        """For who waits for something else: an InterruptedError where the batch ends early."""
        if self.reason:
            raise InterruptedError

    def answer(self, process: OwnProcess, limit_s: float = math.inf) -> Any:
        """What a process sends next; None where the batch, or the limit, ends before. `ProcessDied` as it has it."""
        end = self.clock() + limit_s
        while not self.reason and (left_s := min(self.left_s(), end - self.clock())) > 0:
            answer = process.answer(min(TICK_S, max(left_s, 0.01)))
            if answer is not None:
                return answer
        return None

    @contextlib.contextmanager
    def on_signals(self, *numbers: signal.Signals) -> Iterator[None]:
        """Within it, a signal (Ctrl-C or SIGTERM, if none is named) ends the batch instead of what it does else."""

        def hear(number: int, _frame: Any) -> None:
            self.reason = f"interrupted ({signal.Signals(number).name})"

        before = {each: signal.signal(each, hear) for each in numbers or (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def run_all(
    missing: Iterable[R],
    run: Callable[[R], E],
    line: Callable[[E], str],
    *,
    jobs: int = 1,
    of: int,
    name: str,
    unit: str,
) -> list[E]:
    """How each run ended, in order; a bar on stderr counts them among the `of` of the batch, and a line tells of each.

    `run` never raises for what happens in a run, and does not start one where the batch has ended.
    """
    missing = list(missing)
    bar = tqdm(total=of, initial=of - len(missing), desc=name, unit=unit, file=sys.stderr)

    def turn(one: R) -> E:
        ended = run(one)
        tqdm.write(line(ended), file=sys.stderr)
        bar.update()
        return ended

    with bar, ThreadPoolExecutor(jobs) as pool:  # a signal is heard in the main thread, which so sees to a single run
        return list(map(turn, missing) if jobs == 1 else pool.map(turn, missing))
