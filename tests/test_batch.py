"""Runs of one notebook that end in every way a run can end."""

import json
import threading

import pytest
from samples import SAVE, SLEEP, files_in, is_gone, make_notebook, one_line, wait_for

from mmchar import batch
from mmchar.batch import run_notebook
from mmchar.records import read_result


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
    watch = batch._watch

    def late(process, timeout_s, stop):  # the time counts from the moment the cell runs, however slow the machine is
        wait_for(tmp_path / "pid")
        return watch(process, timeout_s, stop)

    monkeypatch.setattr(batch, "_watch", late)
    run = run_notebook(path, tmp_path / "out", timeout_s=0.2)
    assert (run.status, run.cell) == ("timed out", 3) and is_gone(tmp_path / "pid")
    assert files_in(tmp_path / "out") == ["02_x.ipynb", "run.log", "status.json"]


@pytest.mark.notebook
def test_a_stopped_run_is_interrupted_whether_or_not_a_kernel_started(tmp_path, kernels):
    stop = threading.Event()
    stop.set()
    run = run_notebook(make_notebook(tmp_path / "02_x.ipynb", SLEEP), tmp_path / "out", stop=stop)
    assert run.status == "interrupted" and not (tmp_path / "pid").exists()


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    notebook = make_notebook(tmp_path / "02_x.ipynb", SAVE)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*choose another results folder") as caught:
        run_notebook(notebook, tmp_path / "file" / "02_x")
    one_line(caught)
