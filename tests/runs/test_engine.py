"""The engine: what ends a batch, in which order its runs are given back, and that no last answer is lost."""

import os
import signal
import threading
import time

import pytest

from mmchar.runs.engine import Stop, run_all
from mmchar.runs.own_process import OwnProcess, ProcessDied


class Silent:
    """A process that says nothing, and notes how long it was waited for; the clock runs only meanwhile."""

    now, waits = 0.0, ()

    def answer(self, wait_s):
        self.now, self.waits = self.now + wait_s, (*self.waits, wait_s)


@pytest.mark.parametrize(("ends_s", "limit_s", "waited_s"), [(1.0, 9.0, 1.0), (9.0, 0.5, 0.5), (0.0, 9.0, 0.0)])
def test_a_process_is_waited_for_until_the_batch_or_its_own_limit_ends(ends_s, limit_s, waited_s):
    process = Silent()
    stop = Stop(ends_s=ends_s, clock=lambda: process.now)
    assert stop.answer(process, limit_s) is None and stop.reason == ""
    assert sum(process.waits) == pytest.approx(waited_s, abs=0.02) and max(process.waits, default=0) <= 0.2


def test_a_batch_that_has_ended_waits_for_nothing():
    process = Silent()
    assert Stop("interrupted").answer(process) is None and process.waits == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_batch_and_means_what_it_did_before_afterwards(number):
    before, stop = signal.getsignal(number), Stop()
    with stop.on_signals():
        os.kill(os.getpid(), number)
    assert stop.reason == f"interrupted ({number.name})" and signal.getsignal(number) is before


@pytest.mark.parametrize("jobs", [1, 3])
def test_runs_go_so_many_at_a_time_and_are_given_back_in_order(jobs, capsys):
    going, most, lock = [], [], threading.Lock()

    def run(name):
        with lock:
            going.append(name)
            most.append(len(going))
        time.sleep(0.05 if name == "a" else 0.0)
        with lock:
            going.remove(name)
        return name.upper()

    ended = run_all("abcdef", run, lambda name: f"said {name}", jobs=jobs, of=8, name="batch", unit="run")
    assert ended == list("ABCDEF") and max(most) <= jobs and (jobs > 1 or set(most) == {1})
    err = capsys.readouterr().err
    assert all(f"said {name}" in err for name in "ABCDEF") and "2/8" in err and "8/8" in err  # two of them were there


def say_and_end(pipe):
    pipe.send("last")


def test_the_last_answer_of_a_process_that_has_ended_is_heard():
    process = OwnProcess(say_and_end)
    while process.exit_code() is None:
        time.sleep(0.01)
    assert Stop().answer(process) == "last"
    with pytest.raises(ProcessDied, match="exit code 0"):
        process.answer(1)
    process.close()
