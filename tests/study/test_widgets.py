"""The widgets of ``notebooks/explore.ipynb``: they answer, refuse in one line, and say what to install."""

import pytest

from mmchar import Request, count, project
from mmchar.provenance import SOURCE
from mmchar.runs.notebooks import load_notebook
from mmchar.runs.parameters import read_parameters
from mmchar.runs.study_batch import study
from mmchar.study.site import widgets
from mmchar.study.site.widgets import answer, explorer

MODEL, GPU = "llama-2-7b", "a100-80gb"
NOTEBOOK = SOURCE / "notebooks" / "explore.ipynb"


def parts(shown):
    """The boxes by name, what is said, and what is drawn."""
    choices, said, drawn = shown.children
    return {box.description: box for box in choices.children}, said, drawn


def test_the_answer_is_that_of_project():
    line, figure = answer(MODEL, GPU, {"batch": 2})
    timed = project(count(MODEL, Request(batch=2)), gpu=GPU)
    seconds = (timed["time_s"] * timed["repeats"]).sum()
    assert float(line.split(" s ")[0].replace(",", "")) == pytest.approx(seconds, rel=0.005)
    assert "fits 80 GB" in line and figure.axes


def test_a_change_is_drawn_and_what_is_impossible_is_one_line_under_the_last_figure():
    boxes, said, drawn = parts(explorer(MODEL, GPU))
    first = drawn.value
    assert boxes["height"].disabled and not boxes["batch"].disabled
    boxes["batch"].value = 2
    second = drawn.value
    assert second != first and "projected" in said.value and bytes(second).startswith(b"\x89PNG")
    boxes["batch"].value = 0
    assert "batch" in said.value and "\n" not in said.value and drawn.value == second
    boxes["batch"].value = 1
    assert drawn.value == first
    boxes["gpu"].value = "t4"  # which has no bfloat16
    assert "t4" in said.value and drawn.value == first


def test_another_model_brings_its_own_defaults():
    boxes, said, _ = parts(explorer(MODEL, GPU))
    boxes["model"].value = "ddpm-cifar10-32"
    assert (boxes["height"].value, boxes["steps"].value) == (32, 1000)
    boxes["height"].value = 33
    assert "height=33 does not fit ddpm-cifar10-32" in said.value


def test_without_ipywidgets_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(widgets, "find_spec", lambda name: None)
    assert "pip install ipywidgets" in explorer(MODEL, GPU).data


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model"):
        explorer("llama-7b", GPU)


def test_the_notebook_holds_what_was_written_and_nothing_of_a_run():
    cells = load_notebook(NOTEBOOK)["cells"]
    assert all(set(cell["metadata"]) <= {"tags"} for cell in cells)
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_notebook_is_left_out_of_batches(tmp_path, capsys):
    study(SOURCE / "notebooks", tmp_path, dry_run=True)
    assert "explore" not in capsys.readouterr().out
    assert read_parameters(NOTEBOOK)["model"].default == "sdxl-base-1.0"
