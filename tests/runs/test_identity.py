"""What makes a run another run, and what does not."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st
from samples import SAVE, make_notebook

from mmchar.provenance import SOURCE
from mmchar.runs import identity
from mmchar.runs.identity import code_cells, code_hash, differences, notebook_identity, run_id


@pytest.fixture
def notebook(tmp_path):
    return make_notebook(tmp_path / "02_x.ipynb", "x = 1  # one", SAVE)


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content["cells"])
    path.write_text(json.dumps(content))


def changed(path, change, **given):
    before = notebook_identity(path, {})
    rewrite(path, change)
    after = notebook_identity(path, given)
    found = differences(before, after, path)
    assert (run_id(before) == run_id(after)) == (found == [])
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells[0].update(source="# Another question?"),
        lambda cells: cells[2].update(source="# what one is\n\nx  =  1"),
        lambda cells: cells.insert(0, {"cell_type": "markdown", "metadata": {}, "source": "More words."}),
        lambda cells: cells.append({"cell_type": "code", "metadata": {}, "source": "\n", "outputs": []}),
        lambda cells: cells[2].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "1"}]),
        lambda cells: cells[1].update(source=cells[1]["source"].replace("# what to run", "# words")),
        lambda cells: cells[1].update(source=cells[1]["source"].replace("../figures", "../pictures")),
    ],
    ids=["title", "comment", "new-text", "empty-cell", "outputs", "parameter-help", "where"],
)
def test_words_layout_and_places_do_not_change_a_run(notebook, change):
    assert changed(notebook, change) == []


def test_each_change_that_matters_is_named(notebook):
    assert changed(notebook, lambda cells: cells[2].update(source="x = 2")) == ["code cell 3 changed"]
    magic = {"cell_type": "code", "metadata": {}, "source": "%time y = 1", "outputs": []}
    assert changed(notebook, lambda cells: cells.append(magic)) == ["code cells changed: 2 before, 3 now"]
    assert changed(notebook, lambda cells: cells[-1].update(source="%time y = 2")) == ["code cell 5 changed"]
    nothing = list.copy
    assert changed(notebook, nothing, steps=20) == ["steps 50 -> 20"]
    other = "50                      # den", "25                      # den"
    assert changed(notebook, lambda cells: cells[1].update(source=cells[1]["source"].replace(*other))) == [
        "steps 50 -> 25"
    ]


def test_versions_hardware_package_and_data_are_named(notebook):
    now = notebook_identity(notebook, {})
    before = now | {"versions": now["versions"] | {"torch": "2.11"}, "package": "other", "data": "other"}
    before |= {"hardware": now["hardware"] | {"cpu": "another"}}
    found = differences(before, now, notebook)
    assert found[0] == f"torch 2.11 -> {now['versions']['torch']}" and found[1].startswith("cpu another -> ")
    assert found[2:] == ["package changed", "data changed"]
    assert "hostname" not in json.dumps(now) and str(SOURCE) not in json.dumps(now)


def test_numbers_of_cells_are_those_of_a_reader(notebook):
    assert [number for number, _ in code_cells(notebook)] == [3, 4]  # after the title and the parameters


SAMPLE = '"""Doc."""\n\n\ndef f(x):\n    """Return x."""\n    return x in {"a", "b", "c"} or {x}\n'


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (SAMPLE.replace("Return x.", "Give x back."), True),
        ("# note\n" + SAMPLE.replace("    return", "\n    # why\n    return"), True),
        (SAMPLE.replace("def f(x)", "def g(x)"), False),
        (SAMPLE.replace("{x}", "{x, 1}"), False),
        (SAMPLE.replace('"c"', '"d"'), False),
        (SAMPLE.replace("f(x)", "f(x=1)"), False),
        (SAMPLE + "\n\ny = 2\n", False),
    ],
)
def test_the_package_is_its_code_without_words(text, same):
    assert (code_hash(SAMPLE) == code_hash(text)) == same


def test_what_only_starts_runs_is_no_part_of_one(tmp_path):
    rooms = {"cli": True, "runs": True, "runs/campaign": False, "tracing": False}
    assert all(list((identity.PACKAGE / room).glob("*.py")) for room in rooms)
    for room in rooms:
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("x = 1\n")
    before = identity.package_code(tmp_path)
    for room, same in rooms.items():
        (tmp_path / room / "a.py").write_text("x = 1\nEDITED = 1\n")
        assert (identity.package_code(tmp_path) == before) == same, room
        (tmp_path / room / "a.py").write_text("x = 1\n")


def test_the_package_and_its_data_have_the_same_hash_in_every_process():
    code = "from mmchar.runs.identity import *; print(package_code(), package_data())"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE, check=True).stdout
        for _ in range(2)
    }
    assert runs == {f"{identity.package_code()} {identity.package_data()}\n"}


def test_a_change_in_a_model_file_or_a_measurement_changes_the_data(tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "data" / "measured" / "h100").mkdir(parents=True)
    seen = set()
    for path, text in (("zoo/a.json", "1"), ("zoo/a.json", "2"), ("data/measured/h100/run.json", "1")):
        (tmp_path / path).write_text(text)
        os.utime(tmp_path / path, ns=(0, len(seen)))  # also where the clock is coarse
        seen.add(identity.package_data(tmp_path, tmp_path / "data"))
    assert len(seen) == 3


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_an_id_does_not_depend_on_the_order_of_keys(parts):
    assert run_id(parts) == run_id(dict(reversed(parts.items()))) and len(run_id(parts)) == 12
    assert run_id(parts) != run_id({**parts, "\0": 1})
