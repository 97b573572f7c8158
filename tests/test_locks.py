"""One process at a time: the others wait and say so, give up with one line, or are let in by a kill."""

import json
import os
import signal
import subprocess
import sys

import pytest
from samples import one_line, wait_for

from mmchar import locks
from mmchar.provenance import SOURCE

HOLD = """
import pathlib, sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from mmchar.locks import measuring
with measuring("cpu"):
    pathlib.Path(sys.argv[2]).write_text("held")
    time.sleep(600)
"""


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(shared):
    """Another process that measures."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(shared), str(shared / "held")], env=environment)
    try:
        wait_for(shared / "held")
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_measuring_run_waits_says_so_once_and_gives_up_in_one_line(holder, capsys):
    taken = pytest.raises(ValueError, match=r"cpu is still taken by another measuring run after 0\.5 s")
    with taken as caught, locks.measuring("cpu", wait_s=0.5):
        pytest.fail("two processes measure at once")
    one_line(caught)
    assert capsys.readouterr().err == "mmchar: waiting for another measuring run on cpu to end\n"


def test_a_killed_process_lets_go(holder, shared):
    path = shared / "mmchar-locks" / "host.lock"
    assert locks.is_held(path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.measuring("cpu", wait_s=10):
        pass
    assert not locks.is_held(path)


def test_a_process_may_take_its_own_device_again(shared):
    with locks.measuring("cpu"), locks.measuring("cpu", wait_s=0):
        pass
    with pytest.raises(KeyError), locks.measuring("cpu"):
        raise KeyError
    assert not locks.is_held(shared / "mmchar-locks" / "host.lock")


def test_each_gpu_has_a_lock_of_its_own_that_every_user_can_take(shared, monkeypatch):
    monkeypatch.setattr(locks, "_gpu_uuid", lambda device: f"GPU-{device[-1]}")
    with locks.measuring("cuda:0"), locks.measuring("cuda:1"), locks.measuring("cpu"):
        assert {path.name for path in (shared / "mmchar-locks").iterdir()} >= {"GPU-0.lock", "GPU-1.lock", "host.lock"}
    folder = shared / "mmchar-locks"
    assert folder.stat().st_mode & 0o1777 == 0o777  # not sticky: see _shared_folder


def test_no_gpu_is_one_line(shared):
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    none = pytest.raises(ValueError, match="cannot measure on 'cuda:7': torch sees 0 GPUs")
    with none as caught, locks.measuring("cuda:7"):
        pass
    one_line(caught)


@pytest.mark.gpu
def test_a_gpu_is_known_by_the_uuid_of_its_driver(shared):
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    assert locks._gpu_uuid("cuda") in listed
    with locks.measuring("cuda"):
        assert (shared / "mmchar-locks" / f"{locks._gpu_uuid('cuda')}.lock").exists()


IN_A_BATCH = """
import json, sys, time
from mmchar import locks
name, measures = sys.argv[1], sys.argv[2] == "measures"
locks.join_batch(name)
for _ in range(20):
    locks.step_aside()
    if measures:
        with locks.alone(), locks.alone():
            start = time.monotonic()
            time.sleep(0.01)
            print(json.dumps([start, time.monotonic()]))
    else:
        start = time.monotonic()
        time.sleep(0.01)
        print(json.dumps([start, time.monotonic()]))
"""


def test_in_a_batch_two_take_turns_in_being_alone_and_nobody_waits_for_ever():
    names = ["works", "works", "measures", "measures"]
    with locks.batch():
        command = [sys.executable, "-c", IN_A_BATCH]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        running = []
        for number, what in enumerate(names):
            # whoever wants to be alone waits for those that start, who leave their mark when they have joined
            with open(os.path.join(os.environ["MMCHAR_BATCH"], f"{number}.start"), "w"):
                pass
            each = subprocess.Popen([*command, str(number), what], env=environment, stdout=subprocess.PIPE, text=True)
            running.append(each)
        spans = [
            (start, end, what)
            for each, what in zip(running, names, strict=True)
            for start, end in map(json.loads, each.communicate(timeout=120)[0].splitlines())
        ]
    assert len(spans) == 80
    for start, end, what in spans:
        if what == "measures":
            others = [span for span in spans if span[:2] != (start, end)]
            assert all(other_end <= start or other_start >= end for other_start, other_end, _ in others)


def test_without_a_batch_nobody_waits(monkeypatch):
    monkeypatch.delenv("MMCHAR_BATCH", raising=False)
    locks.join_batch("a")
    locks.step_aside()
    with locks.starting("a"), locks.alone():
        pass
    assert locks._own is None


def test_a_process_that_never_joins_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_START_S", 0.2)
    (tmp_path / "other.start").touch()
    locks._wait_for_starts(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(locks, "_START_S", 3600.0)
    locks._wait_for_starts(tmp_path)
