"""Runs of one notebook that end in every way a run can end."""

import json
import subprocess
import sys
import time

import pytest
from samples import SAVE, SLEEP, files_in, is_gone, make_notebook, make_table, one_line, wait_for

from mmchar.runs import batch
from mmchar.runs.batch import run_notebook, why_run
from mmchar.runs.engine import Stop
from mmchar.runs.identity import notebook_identity
from mmchar.runs.records import read_result, save_result
from mmchar.runs.run_state import file_run, recover, run_state, write_status


@pytest.mark.notebook
def test_parameters_arrive_exactly(tmp_path, kernels):
    path = make_notebook(tmp_path / "notebooks" / "02_x.ipynb", SAVE)
    given = {"model": "9e55710", "guidance": 1e-5, "sizes": [1, 2**53 + 1], "note": {"a": "01234567", "b": "yes"}}
    run = run_notebook(path, tmp_path / "results" / "elsewhere", {**given, "steps": 50})
    assert run.status == "ok", run
    result = read_result(tmp_path / "results" / "elsewhere")
    assert {name: result["parameters"][name] for name in given} == given
    status = json.loads((tmp_path / "results" / "elsewhere" / "status.json").read_text())
    assert status["parameters"] == {**given, "out_dir": "../results/elsewhere"}  # steps = 50 is the default: not passed


@pytest.mark.notebook
def test_a_run_that_takes_too_long_is_killed_with_its_kernel(tmp_path, kernels, monkeypatch):
    path = make_notebook(tmp_path / "02_x.ipynb", SLEEP)
    answer = Stop.answer

    def late(stop, process, limit_s):  # the time counts from the moment the cell runs, however slow the machine is
        wait_for(tmp_path / "pid")
        return answer(stop, process, limit_s)

    monkeypatch.setattr(Stop, "answer", late)
    run = run_notebook(path, tmp_path / "out", timeout_s=0.2)
    assert (run.status, run.cell) == ("timed out", 3) and is_gone(tmp_path / "pid")
    assert files_in(tmp_path / "out") == ["02_x.ipynb", "run.log", "status.json"]


@pytest.mark.notebook
def test_a_stopped_run_is_interrupted_whether_or_not_a_kernel_started(tmp_path, kernels):
    stop = Stop("interrupted")
    run = run_notebook(make_notebook(tmp_path / "02_x.ipynb", SLEEP), tmp_path / "out", stop=stop)
    assert run.status == "interrupted" and not (tmp_path / "pid").exists()


@pytest.mark.notebook
def test_a_killed_batch_takes_its_kernel_with_it_and_is_told_at_the_next_start(tmp_path, kernels):
    path = make_notebook(tmp_path / "02_x.ipynb", SLEEP)
    code = "from mmchar.runs.batch import run_notebook; run_notebook('02_x.ipynb', 'results/02_x')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(tmp_path / "pid")
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while not is_gone(tmp_path / "pid"):
        assert time.monotonic() < end, "the kernel of a killed batch goes on"
        time.sleep(0.05)
    before = files_in(tmp_path)
    identity = notebook_identity(path, {})
    assert why_run(tmp_path / "results" / "02_x", identity) == "last time it died: the batch was killed"
    assert files_in(tmp_path) == before  # it only looked
    stop = Stop("interrupted")  # so that the new run ends at once
    assert run_notebook(path, tmp_path / "results" / "02_x", stop=stop).status == "interrupted"


def damage(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_what_a_killed_batch_left_is_filed_as_died_and_the_good_result_stays(tmp_path, capsys):
    """No kernel: the files that each kind of end leaves."""
    out_dir, new = tmp_path / "02_x", tmp_path / ".02_x.new"
    save_result(out_dir, notebook="02_x", parameters={}, tables={"t": make_table()})
    new.mkdir()
    write_status(new, {"name": "02_x", "status": "running", "mark": "", "id": "new", "identity": {}})
    (new / "run.log").write_text("a log")
    make_notebook(new / ".02_x.part.ipynb", "print(1)")
    recover(out_dir, "02_x")
    status, result = run_state(out_dir)
    assert (status["status"], status["message"]) == ("died", "the batch was killed") and result["tables"]
    good = ["result.json", "run.log", "status.json", "tables/t.csv", "tables/t.parquet"]
    assert files_in(out_dir) == ["02_x.latest.ipynb", *good]
    new.mkdir()  # killed again, while the notebook was written, and the status is damaged
    write_status(new, {"name": "02_x", "status": "running", "mark": "", "id": "new", "identity": {}})
    (new / ".02_x.part.ipynb").write_text('{"cells": [')
    damage(out_dir / "status.json")
    recover(out_dir, "02_x")
    assert "02_x/status.json is damaged" in capsys.readouterr().err and run_state(out_dir)[1]["tables"]
    assert len(list(out_dir.glob("status.json.damaged-*"))) == 1
    damage(out_dir / "result.json")
    recover(out_dir, "02_x")
    assert not out_dir.exists() and len(list(tmp_path.glob("02_x.damaged-*"))) == 1
    assert "02_x/result.json is damaged" in capsys.readouterr().err


def test_files_of_the_user_in_the_folder_of_a_run_stay_through_a_new_result(tmp_path):
    out_dir, new = tmp_path / "02_x", tmp_path / ".02_x.new"
    for folder, table in ((out_dir, "old"), (new, "new")):
        save_result(folder, notebook="02_x", parameters={}, tables={table: make_table()})
    (out_dir / "notes").mkdir()
    (out_dir / "notes" / "mine.txt").write_text("mine")
    (out_dir / "run.log").write_text("old")
    file_run(out_dir, new, "02_x", {"name": "02_x", "status": "ok", "id": "a", "identity": {}})
    kept = ["notes/mine.txt", "result.json", "status.json", "tables/new.csv", "tables/new.parquet"]
    assert files_in(out_dir) == kept and not new.exists()


def test_a_disk_that_is_full_at_the_end_is_named_and_the_good_result_stays(tmp_path, monkeypatch):
    notebook = make_notebook(tmp_path / "02_x.ipynb", SAVE)
    out_dir = tmp_path / "results" / "02_x"
    save_result(out_dir, notebook="02_x", parameters={}, tables={"t": make_table()})

    def execute(notebook, new, *_):
        save_result(new, notebook="02_x", parameters={}, tables={"new": make_table()})
        return 0, ""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch, "execute", execute)
    monkeypatch.setattr("mmchar.runs.run_state.replace_result", full)
    run = run_notebook(notebook, out_dir)
    assert (run.status, run.message) == ("failed", "No space left on device")
    status, result = run_state(out_dir)
    assert status["status"] == "failed" and result["tables"].keys() == {"t"}


def test_a_run_during_which_the_code_was_edited_is_not_kept(tmp_path, monkeypatch):
    notebook, out_dir = make_notebook(tmp_path / "02_x.ipynb", SAVE), tmp_path / "results" / "02_x"

    def execute(_, new, *__):
        save_result(new, notebook="02_x", parameters={}, tables={"t": make_table()})
        if edits:
            make_notebook(tmp_path / "02_x.ipynb", SAVE, "edited = 1")
        return 0, ""

    monkeypatch.setattr(batch, "execute", execute)
    edits = True
    assert run_notebook(notebook, out_dir).status == "ok"
    edits = False
    again = [run_notebook(notebook, out_dir).message for _ in range(2)]
    assert again == ["", "kept"]
    monkeypatch.setattr(batch, "execute", None)  # so that nothing can run
    assert run_notebook(notebook, out_dir).message == "kept"


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    notebook = make_notebook(tmp_path / "02_x.ipynb", SAVE)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*choose another results folder") as caught:
        run_notebook(notebook, tmp_path / "file" / "02_x")
    one_line(caught)
