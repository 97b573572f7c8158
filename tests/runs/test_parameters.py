"""Parameters of notebooks: read without running, and refused when they do not fit."""

from pathlib import Path

import pytest
from samples import SAVE, make_notebook, one_line

from mmchar.runs.parameters import Parameter, check_parameters, read_parameters


@pytest.fixture
def notebook(tmp_path):
    return make_notebook(tmp_path / "notebooks" / "02_x.ipynb", SAVE)


def test_parameters_are_read_with_defaults_types_and_help(notebook):
    found = read_parameters(notebook)
    assert list(found) == ["out_dir", "model", "steps", "guidance", "quick", "sizes", "note"]
    assert found["steps"] == Parameter("steps", 50, int, "denoising steps = how often the U-Net runs")
    assert found["guidance"] == Parameter("guidance", 7.5, float, "guidance scale, > 1 doubles the batch")
    assert found["sizes"] == Parameter("sizes", [256, 512], list, "image sizes, pixels")
    assert found["quick"].help == "" and found["out_dir"].default == "../results/02_x"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("steps = 5 * 10", r"steps = 5 \* 10 is no literal"),
        ("import os", "line 1 is no assignment"),
        ("a = 1\nb: int", "line 2 is no assignment"),
        ("a, b = 1, 2", "line 1 is no assignment"),
        ("a += 1", "line 1 is no assignment"),
        ("a = os.environ['HOME']", "is no literal"),
        ("a = (", "parameters cell: "),
        ("%matplotlib inline", "parameters cell: "),
    ],
)
def test_a_parameters_cell_holds_literals_only(tmp_path, cell, message):
    path = make_notebook(tmp_path / "02_x.ipynb", parameters=cell)
    with pytest.raises(ValueError, match=message) as caught:
        read_parameters(path)
    assert one_line(caught).startswith("02_x.ipynb, parameters cell")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": [1]}', "[" * 10**5, "\x00"])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "02_x.ipynb").write_text(content)
    with pytest.raises(ValueError, match=r"02_x\.ipynb is not a notebook") as caught:
        read_parameters(tmp_path / "02_x.ipynb")
    one_line(caught)


def test_a_missing_notebook_or_cell_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_parameters(tmp_path / "none.ipynb")
    path = make_notebook(tmp_path / "02_x.ipynb")
    path.write_text(path.read_text().replace('["parameters"]', "[]"))
    with pytest.raises(ValueError, match="has 0 cells tagged 'parameters'"):
        read_parameters(path)


def test_good_parameters_pass_and_an_int_becomes_a_float(notebook):
    good = {"model": "x", "steps": 4, "guidance": 1, "quick": True, "sizes": (1, 2), "note": {"a": [None, 1.5]}}
    checked = check_parameters(notebook, good)
    assert checked == good | {"sizes": [1, 2]} and type(checked["guidance"]) is float


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "5"),
        ("steps", 5.0),
        ("steps", True),
        ("steps", None),
        ("guidance", True),
        ("guidance", "7.5"),
        ("quick", 1),
        ("quick", "true"),
        ("model", 5),
        ("model", Path("a")),
        ("sizes", 512),
        ("sizes", [{1, 2}]),
        ("note", object),
        ("note", {1: 2}),
    ],
)
def test_a_value_of_another_type_is_refused(notebook, name, value):
    with pytest.raises(ValueError, match=rf"02_x\.ipynb: {name} = .* is of type .*; give ") as caught:
        check_parameters(notebook, {name: value})
    one_line(caught)


def test_an_unknown_name_is_refused_with_the_nearest(notebook):
    with pytest.raises(ValueError, match="02_x.ipynb has no parameter 'step'; did you mean 'steps'?"):
        check_parameters(notebook, {"step": 5})
    with pytest.raises(ValueError, match="has no parameter 'zzz'; it has out_dir, model"):
        check_parameters(notebook, {"zzz": 5})
