"""A notebook in JupyterLab: its parameters are changed, all of it is run, the figure is there, and nothing is left."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from lab import lab_of_notebooks, processes

from mmchar.provenance import SOURCE
from mmchar.runs.records import read_result

pytestmark = [pytest.mark.slow, pytest.mark.notebook]

NOTEBOOK = "notebooks/00_start_here.ipynb"
HOOKS = yaml.safe_load((SOURCE / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
(HOOK,) = [hook for hook in HOOKS if hook["id"] == "strip"]
CHANGES = {'gpu = "a100-80gb"': 'gpu = "l40s"', "quick = False": "quick = True", "samples = 3": "samples = 2"}
LAST_HAS_RUN = (
    r"""() => /\[\d+\]/.test([...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].at(-1).textContent)"""
)
IDLE_MS = 120_000  # two cores may be busy with other tests


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def replace_line(page, old, new):
    """Write over the start of a line of the notebook, as a user does."""
    line = page.locator(".jp-Notebook .cm-line", has_text=old).first
    rest = line.inner_text().removeprefix(old)
    line.click()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+End")
    page.keyboard.insert_text(new + rest)


def choose(page, menu, entry):
    page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
    page.locator(".lm-Menu-itemLabel", has_text=entry).first.click()


def run_all(page):
    """Run every cell, and wait until the last has its number and the kernel has nothing to do."""
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(LAST_HAS_RUN, timeout=IDLE_MS)
    page.get_by_text("| Idle").wait_for(timeout=IDLE_MS)


def save(page, path):
    before = path.stat().st_mtime_ns
    choose(page, "File", "Save Notebook")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    assert path.stat().st_mtime_ns > before


@pytest.fixture(scope="module")
def used(chromium, kernels, tmp_path_factory):
    """JupyterLab's folder after a user has changed parameters, run all cells and saved; and what went wrong."""
    folder, wrong = tmp_path_factory.mktemp("lab"), []
    with lab_of_notebooks(folder) as lab:
        page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if lab.url in request.url else wrong.append(request.url[:200]))
        page.goto(lab.page(NOTEBOOK))
        page.get_by_text("| Idle").wait_for(timeout=IDLE_MS)
        for old, new in CHANGES.items():
            replace_line(page, old, new)
        run_all(page)
        page.screenshot(path=folder / "lab.png")
        save(page, folder / NOTEBOOK)
        drawn = page.locator(".jp-OutputArea-output img").evaluate_all("all => all.map((img) => img.naturalWidth)")
        page.context.close()
    return folder, drawn, wrong


def test_all_cells_ran_without_an_error(used):
    cells = code_cells(used[0] / NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert used[2] == []


def test_the_figures_are_there(used):
    folder, drawn, _ = used
    figures = [output for cell in code_cells(folder / NOTEBOOK) for output in cell["outputs"] if is_figure(output)]
    assert len(figures) == len(drawn) == 2 and min(drawn) > 300
    assert len(list((folder / "results" / "00_start_here").rglob("*.png"))) == 2


def is_figure(output):
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def test_the_changed_parameters_were_used(used):
    given = read_result(used[0] / "results" / "00_start_here")["parameters"]
    assert (given["gpu"], given["quick"], given["samples"]) == ("l40s", True, 2)


def strip(*arguments):
    """Run the hook that strips notebooks as pre-commit runs it."""
    tool, *options = HOOK["entry"].split()
    assert tool == ".venv/bin/nbstripout"
    command = [sys.executable, "-m", "nbstripout", *options, *HOOK["args"], *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True).returncode


def test_a_notebook_saved_here_is_stripped_to_what_is_committed(used, tmp_path):
    saved = tmp_path / "00_start_here.ipynb"
    text = (used[0] / NOTEBOOK).read_text()
    for old, new in CHANGES.items():
        text = text.replace(json.dumps(new)[1:-1], json.dumps(old)[1:-1], 1)
    saved.write_text(text)
    assert strip("--verify", saved) == 1
    assert strip(saved) == 0
    assert nbformat.read(saved, as_version=4) == nbformat.read(SOURCE / NOTEBOOK, as_version=4)


def test_committed_notebooks_are_stripped_and_rendered_ones_keep_their_outputs():
    names = [path.relative_to(SOURCE).as_posix() for path in (SOURCE / "notebooks").rglob("*.ipynb")]
    checked = [name for name in names if re.search(HOOK["files"], name)]
    assert {Path(name).parent.name for name in set(names) - set(checked)} == {"rendered"}
    assert strip("--verify", *(SOURCE / name for name in checked)) == 0


def test_nothing_is_left_of_a_server_whose_user_failed(kernels, tmp_path):
    with pytest.raises(ZeroDivisionError), lab_of_notebooks(tmp_path / "lab") as lab:
        lab.ask("kernels", {"name": "python3"})
        assert len(processes(lab.mark)) >= 2
        raise ZeroDivisionError
    assert processes(lab.mark) == []
