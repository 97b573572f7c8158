"""The notebooks keep to the rules of the house, and each runs to its end on small parameters."""

import ast
import json
import re
import warnings
from itertools import chain

import matplotlib as mpl
import pandas as pd
import pytest
from IPython.display import display
from matplotlib import pyplot as plt
from samples import save_measured

from mmchar import measure
from mmchar.provenance import SOURCE
from mmchar.runs.batch import run_notebook
from mmchar.runs.notebooks import cell_source, load_notebook
from mmchar.runs.parameters import read_parameters
from mmchar.runs.records import read_result
from mmchar.study import findings

FOLDER = SOURCE / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
RENDERED = sorted((FOLDER / "rendered").glob("*.ipynb"))
WHERE_AND_HOW = {"out_dir", "progress"}  # these say nothing about what a result is
WORK = {"count", "project", "measure", "measure_time", "count_stage", "on_several", "scorecard"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_rendered = pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)


def cells(path, kind):
    """Sources of the cells of one kind, each with its position in the notebook."""
    found = enumerate(load_notebook(path)["cells"])
    return [(number, cell_source(cell)) for number, cell in found if cell["cell_type"] == kind]


def parsed(path):
    return [(number, ast.parse(source)) for number, source in cells(path, "code")]


def calls(tree):
    """Names of the functions that a cell calls by their bare name, or from the package."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bare = {function.id for function in functions if isinstance(function, ast.Name)}
    attributes = [f for f in functions if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)]
    return bare | {function.attr for function in attributes if function.value.id == "mmchar"}


def test_the_study_has_its_notebooks():
    assert len(NOTEBOOKS) >= 6
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(len(NOTEBOOKS))]


@every_notebook
def test_a_notebook_is_short(path):
    code = cells(path, "code")
    assert len(code) + len(cells(path, "markdown")) == len(load_notebook(path)["cells"]) <= 25
    long = {number: len(source.strip().splitlines()) for number, source in code}
    assert {number: lines for number, lines in long.items() if lines > 15} == {}
    functions = [node for _, tree in parsed(path) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno + 1 > 3] == []
    assert sum(1 for _, source in code for line in source.splitlines() if line.strip()) <= 80


@every_notebook
def test_a_notebook_has_no_boilerplate(path):
    source = "\n".join(source for _, source in cells(path, "code"))
    assert cells(path, "code")[-1][1] == "found.save()"
    assert re.findall(r"filterwarnings|set_option|save_result|\bstyle\(\)", source) == []


@every_notebook
def test_a_notebook_holds_what_was_written_and_nothing_of_a_run(path):
    notebook = load_notebook(path)
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert notebook["metadata"].keys() <= {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"].get("language_info", {"name": "python"}) == {"name": "python"}


@every_notebook
def test_the_parameters_are_told_to_the_reader(path):
    tagged = [cell for cell in load_notebook(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    parameters = read_parameters(path)
    assert {"out_dir", "gpu", "quick", "progress"} <= parameters.keys()
    assert parameters["out_dir"].default == f"../results/{path.stem}"
    assert parameters["quick"].default is False
    assert [parameter.name for parameter in parameters.values() if not parameter.help] == []


@every_notebook
def test_the_expectation_stands_before_the_first_run(path):
    texts = cells(path, "markdown")
    assert texts[0][0] == 0 and re.match(r"# \S", texts[0][1])
    runs = [number for number, tree in parsed(path) if calls(tree) & WORK]
    expects = [number for number, text in texts if "expect" in text.lower()]
    assert runs and expects and min(expects) < min(runs)


@pytest.fixture(scope="module")
def measured_dir(tmp_path_factory):
    """What campaigns of scaled-down models would have left: a pair of kernels, a decoder, attention over time."""
    folder = tmp_path_factory.mktemp("measured")
    wanted = [("stable-diffusion-1.5", "denoise", ["flash", "eager"]), ("llama-2-7b", "decode", ["eager"])]
    for model, stage, kernels in [*wanted, ("modelscope-t2v-1.7b", "denoise", ["flash"])]:
        for kernel in kernels:
            options = {"tiny": True, "stages": [stage], "samples": 2, "attention": kernel, "progress": False}
            save_measured(folder / "cpu", f"{model}-{kernel}", measure(model, **options))
    return folder


MEASURED = {  # tables that hold what was measured beside something else
    "02": "measured_published",
    "03": "gain_published",
    "04": "memory_measured",
    "05": "temporal_published",
    "06": "ladder",
}


@pytest.mark.notebook
def test_the_first_notebook_runs_in_a_kernel(tmp_path, kernels):
    run = run_notebook(NOTEBOOKS[0], tmp_path, {"quick": True}, timeout_s=600)
    assert run.status == "ok", run
    assert read_result(tmp_path)["checks"]


@pytest.fixture
def as_found():
    """What a notebook sets for its session is put back."""
    with mpl.rc_context(), warnings.catch_warnings(), pd.option_context(*chain(*_pandas_options())):
        yield
    plt.close("all")


def _pandas_options():
    return [(name, pd.get_option(name)) for name in findings._SHOWN]


@every_notebook
def test_a_notebook_runs_on_small_parameters(path, tmp_path, measured_dir, as_found, monkeypatch, capsys):
    """Its cells run here, as they would in a kernel; what papermill puts in follows the parameters."""
    monkeypatch.chdir(FOLDER)
    out_dir = tmp_path / "results" / path.stem
    given = {"quick": True, "out_dir": str(out_dir), "progress": False}
    if "measured_dir" in read_parameters(path):
        given["measured_dir"] = str(measured_dir)
    names = {"__name__": "__main__", "display": display}
    for cell in load_notebook(path)["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(cell_source(cell), str(path), "exec"), names)
            names |= given if "parameters" in cell["metadata"].get("tags", []) else {}
    result = read_result(out_dir)
    if table := MEASURED.get(path.name[:2]):
        assert "cpu" in set(pd.read_parquet(out_dir / result["tables"][table]["files"][0])["machine"])
    assert result["checks"] and result["parameters"]["quick"] is True
    assert result["parameters"].keys() == read_parameters(path).keys() - WHERE_AND_HOW


def texts(value):
    """Every text in a notebook, except bitmaps, which may spell anything."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() if not key.startswith("image/p") for text in texts(item)]
    return [text for item in value for text in texts(item)] if isinstance(value, list) else []


@every_rendered
def test_a_rendered_notebook_shows_its_outputs_and_no_machine(path):
    notebook = json.loads(path.read_text())
    assert (FOLDER / path.name).is_file()
    assert any(cell.get("outputs") for cell in notebook["cells"])
    shown = [text for text in texts(notebook) for folder in ("/root", "/home/", "/tmp/") if folder in text]
    assert shown == []
