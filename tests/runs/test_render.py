"""Copies of executed notebooks for readers: finished, and with no path of a machine."""

import json
from pathlib import Path

import pandas as pd
import pytest
from samples import make_notebook, one_line

from mmchar.provenance import SOURCE
from mmchar.runs import notebooks
from mmchar.runs.notebooks import render


def executed_notebook(path, *outputs, **metadata):
    make_notebook(path, "print(1)")
    notebook = json.loads(path.read_text())
    notebook["cells"][-1] |= {"outputs": list(outputs), "execution_count": 2, "metadata": metadata}
    path.write_text(json.dumps(notebook))
    return path


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


@pytest.mark.parametrize(
    "output",
    [
        stream(f"saved to {Path.home()}/x"),
        stream(["a\n", f"File {SOURCE}/mmchar/x.py:3: UserWarning\n"]),
        stream("/tmp/ipykernel_12/34.py:1: UserWarning"),
        {"output_type": "display_data", "data": {"text/html": f"<a href='{SOURCE}'>"}, "metadata": {}},
    ],
)
def test_a_notebook_that_shows_a_path_is_not_rendered(tmp_path, output, monkeypatch):
    monkeypatch.setattr(notebooks.tempfile, "gettempdir", lambda: "/tmp")
    path = executed_notebook(tmp_path / "02_x.ipynb", output)
    with pytest.raises(ValueError, match=r"02_x\.ipynb, cell 3 shows a path of this machine") as caught:
        render(path, tmp_path / "rendered.ipynb")
    one_line(caught)
    assert not (tmp_path / "rendered.ipynb").exists()


def test_relative_paths_and_bitmaps_are_rendered(tmp_path):
    picture = {"output_type": "display_data", "data": {"image/png": f"aa {Path.home()} bb"}, "metadata": {}}
    path = executed_notebook(tmp_path / "02_x.ipynb", stream("../results/02_x/result.json"), picture)
    assert "../results/02_x" in render(path, tmp_path / "rendered.ipynb").read_text()


def test_progress_bars_are_left_out_and_warnings_kept(tmp_path):
    bars = ["\rsweep:   0%|    | 0/2 [00:00<?]", "\rsweep: 100%|####| 2/2 [00:04<00:00]", "\n"]
    outputs = [stream(bar) | {"name": "stderr"} for bar in [*bars, [*bars, "UserWarning: slow\n"]]]
    path = executed_notebook(tmp_path / "02_x.ipynb", *outputs, stream("\rstays\n\n"))
    shown = json.loads(render(path, tmp_path / "rendered.ipynb").read_text())["cells"][-1]["outputs"]
    assert [output["text"] for output in shown] == ["UserWarning: slow", "\rstays\n\n"]


def test_a_styled_table_is_rendered_the_same_in_every_run(tmp_path):
    def rendered(name):
        styled = [pd.DataFrame({"a": [1, 2]}).style.highlight_max().to_html() for _ in range(2)]
        outputs = [{"output_type": "display_data", "data": {"text/html": html}, "metadata": {}} for html in styled]
        return render(executed_notebook(tmp_path / f"{name}.ipynb", *outputs), tmp_path / f"{name}_r.ipynb").read_text()

    first = rendered("02_x")
    assert first == rendered("02_x") and "T_00000_row1_col0" in first and "T_00001_row1_col0" in first


def test_a_notebook_that_did_not_end_is_not_rendered(tmp_path):
    error = {"output_type": "error", "ename": "KeyError", "evalue": "'a'", "traceback": []}
    with pytest.raises(ValueError, match=r"cell 3: KeyError: 'a'"):
        render(executed_notebook(tmp_path / "02_x.ipynb", error), tmp_path / "r.ipynb")
    with pytest.raises(ValueError, match=r"cell 2: not finished"):
        render(executed_notebook(tmp_path / "02_x.ipynb", execution={"iopub.status.busy": "now"}), tmp_path / "r.ipynb")
    with pytest.raises(ValueError, match="not a notebook"):
        (tmp_path / "bad.ipynb").write_text("{")
        render(tmp_path / "bad.ipynb", tmp_path / "r.ipynb")
