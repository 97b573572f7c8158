"""Studies: what is run, what is refused before anything starts, and what is left when all has ended."""

import json
import os
import signal
import subprocess
import sys

import pytest
from samples import SAVE, SLEEP, files_in, is_gone, make_notebook, make_table, one_line, wait_for

from mmchar.cli.main import main
from mmchar.provenance import SOURCE
from mmchar.runs import batch
from mmchar.runs.batch import RunStatus, run_notebook
from mmchar.runs.identity import code_cells
from mmchar.runs.listing import read_runs
from mmchar.runs.notebooks import render
from mmchar.runs.records import read_result, save_result
from mmchar.runs.study_batch import study, study_exit_code
from mmchar.tables.stored import read_table

# planning


@pytest.fixture
def folder(tmp_path):
    for stem in ("00_start", "02_x", "05_y"):
        make_notebook(tmp_path / "notebooks" / f"{stem}.ipynb", SAVE)
    make_notebook(tmp_path / "notebooks" / "draft.ipynb", parameters="import os")  # has no number: not in the study
    return tmp_path / "notebooks"


@pytest.fixture
def started(monkeypatch):
    """What would have been run, as (name, parameters); nothing is."""
    calls = []

    def pretend(notebook, out_dir, parameters, **_):
        calls.append((notebook.stem, parameters))
        return RunStatus(notebook.stem, "ok" if notebook.stem != "02_x" else "failed", 1.0, 3, "KeyError: 'a'")

    monkeypatch.setattr(batch, "run_notebook", pretend)
    return calls


@pytest.mark.parametrize(
    ("only", "names"),
    [(None, ["00_start", "02_x", "05_y"]), ("02,05", ["02_x", "05_y"]), ("5", ["05_y"]), ([" 0 "], ["00_start"])],
)
def test_a_study_runs_what_was_selected(folder, started, only, names, capsys):
    statuses = study(folder, folder.parent / "results", only=only)
    assert [run.name for run in statuses] == names == [name for name, _ in started]
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(names) + 3 and out[-2].startswith(
        f"{len(names) - ('02_x' in names)} of {len(names)} runs ok"
    )
    assert out[-1] == "no checks, so no scorecard is written"
    if "02_x" in names:
        assert "02_x" in out[names.index("02_x") + 1] and "cell 3: KeyError: 'a'" in out[names.index("02_x") + 1]
    assert study_exit_code(statuses) == (1 if "02_x" in names else 0)


WORKS = """
from mmchar.study.findings import begin
import pathlib, time
found = begin("00_works", out_dir)
work, left = [], 3
while left:
    left -= pathlib.Path("measured").exists()
    start = time.monotonic()
    time.sleep(0.02)
    work.append([start, time.monotonic()])
    found.keep("work", pd.DataFrame(work))
    pathlib.Path("working").touch()
"""
MEASURES = """
from mmchar.study.findings import begin
from mmchar.locks import measuring
import pathlib, time
found = begin("01_measures", out_dir)
while not pathlib.Path("working").exists():
    time.sleep(0.02)
with measuring("cpu"):
    start = time.monotonic()
    time.sleep(0.3)
    found.keep("alone", pd.DataFrame([[start, time.monotonic()]]))
pathlib.Path("measured").write_text("yes")
"""
ENDS = """
found.tables = {name: table.set_axis(["start", "end"], axis=1) for name, table in found.tables.items()}
found.save()
"""


TABLES = ("00_works/tables/work.parquet", "01_measures/tables/alone.parquet")


def test_others_wait_while_one_measures(tmp_path):
    folder = tmp_path / "notebooks"
    for stem, code in (("00_works", WORKS), ("01_measures", MEASURES)):
        make_notebook(folder / f"{stem}.ipynb", "import pandas as pd" + code + ENDS, parameters='out_dir = "a"')
    statuses = study(folder, tmp_path / "results", jobs=2)
    assert [run.status for run in statuses] == ["ok", "ok"]
    works, alone = (read_table(tmp_path / "results" / run) for run in TABLES)
    start, end = alone.loc[0]
    before, after = works["end"] <= start, works["start"] >= end
    assert before.any() and after.any() and (before | after).all()
    assert "MMCHAR_BATCH" not in os.environ


def test_a_study_with_no_runs_is_not_good():
    assert study_exit_code([]) == 1


def test_gpu_and_quick_go_to_the_notebooks_that_have_them(folder, started):
    make_notebook(folder / "07_gpu.ipynb", SAVE, parameters='out_dir = "a"\ngpu = "a100-80gb"  # name')
    study(folder, folder.parent / "results", gpu="h200-sxm", quick=True)
    assert dict(started)["02_x"] == {"quick": True}
    assert dict(started)["07_gpu"] == {"gpu": "h200-sxm"}
    started.clear()
    study(folder, folder.parent / "results")
    assert dict(started) == {stem: {} for stem in ("00_start", "02_x", "05_y", "07_gpu")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": "07"}, "no notebook with number 07; there are 00, 02, 05"),
        ({"only": "02,x"}, "no notebook with number 'x'"),
        ({"only": ""}, "no notebook with number ''"),
        ({"only": []}, "no notebook is selected"),
        ({"only": "1,2,3"}, "no notebook with number 01, 03;"),
        ({"gpu": "h200-sxm"}, "fits no selected notebook"),
        ({"gpu": "h200"}, r"unknown gpu 'h200'; did you mean 'h200-sxm'\?"),
        ({"gpu": ""}, "unknown gpu ''"),
        ({"jobs": 0}, "jobs = 0"),
        ({"timeout_s": 0}, "timeout_s = 0"),
    ],
)
def test_a_bad_study_starts_nothing(folder, started, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        study(folder, folder.parent / "results", **given)
    one_line(caught)
    assert started == [] and not (folder.parent / "results").exists()


def test_every_notebook_is_checked_before_the_first_starts(folder, started):
    make_notebook(folder / "09_bad.ipynb", parameters="steps = 5")
    with pytest.raises(ValueError, match="09_bad.ipynb has no parameter 'out_dir'"):
        study(folder, folder.parent / "results")
    make_notebook(folder / "09_bad.ipynb", parameters='out_dir = "a"\nquick = 0')
    with pytest.raises(ValueError, match="09_bad.ipynb: quick = True is of type bool; give int"):
        study(folder, folder.parent / "results", quick=True)
    assert started == []


def test_no_notebooks_or_no_papermill_is_one_line(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match="no notebooks NN_"):
        study(tmp_path, tmp_path / "results")
    monkeypatch.setattr(batch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="papermill is not installed; pip install papermill"):
        study(folder, tmp_path / "results")
    with pytest.raises(ValueError, match="papermill is not installed"):
        run_notebook(folder / "02_x.ipynb", tmp_path / "results" / "02_x")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--only", "77"], "no notebook with number 77; there are 00, 02, 05"),
        (["--notebooks", "nothing"], "no notebooks NN_*.ipynb in"),
        (["--gpu", "h200"], "unknown gpu 'h200'; did you mean 'h200-sxm'?"),
        (["--jobs", "none"], "argument --jobs: invalid int value: 'none'"),
        (["--forced"], "unrecognized arguments: --forced"),
    ],
)
def test_bad_input_at_the_shell_is_one_line_and_exit_2(folder, started, monkeypatch, capsys, argv, line):
    monkeypatch.chdir(folder.parent)
    assert main(["study", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mmchar: ") and err.count("\n") == 1 and line in err and started == []


# the scorecard


CHECKS = [
    {"claim": "c003", "name": "gain | ratio", "expected": "1.1 to 2.5", "got": 1.81234567, "verdict": "agrees"},
    {"name": "lengths", "expected": [64, 4096], "got": float("nan"), "verdict": "differs"},
]


@pytest.fixture
def checked(monkeypatch):
    """Runs that save a result with two checks instead of starting a kernel."""

    def pretend(notebook, out_dir, parameters, **_):
        quick = parameters.get("quick", False)
        save_result(
            out_dir, notebook=notebook.stem, parameters={"quick": quick}, tables={"t": make_table()}, checks=CHECKS
        )
        return RunStatus(notebook.stem, "ok", 1.0)

    monkeypatch.setattr(batch, "run_notebook", pretend)


def test_a_study_writes_the_scorecard_of_all_good_results(folder, checked, capsys):
    root = folder.parent
    study(folder, root / "results", only="0,2")
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"4 checks: 2 agree, 2 differ; see {root}/results/figures/scorecard.md"
    )
    study(folder, root / "results", only="5")
    table = read_table(root / "results" / "figures" / "scorecard.csv")
    assert table["notebook"].tolist() == ["00_start"] * 2 + ["02_x"] * 2 + ["05_y"] * 2
    assert table["verdict"].tolist() == ["agrees", "differs"] * 3
    text = (root / "results" / "figures" / "scorecard.md").read_text()
    assert "6 checks: 3 agree, 3 differ." in text
    assert r"| 02_x | c003 | gain \| ratio | 1.1 to 2.5 | 1.812 | agrees |" in text
    assert "| 05_y |  | lengths | 64, 4096 |  | differs |" in text


def test_quick_results_never_come_into_the_scorecard_of_a_study(folder, checked):
    root = folder.parent
    figures = root / "results" / "figures"
    study(folder, root / "results", quick=True)
    assert len(read_table(figures / "scorecard.csv")) == 6
    (figures / "scorecard.csv").unlink()
    study(folder, root / "results", only="2")
    assert set(read_table(figures / "scorecard.csv")["notebook"]) == {"02_x"}


def test_a_scorecard_that_cannot_be_written_is_named(folder, checked):
    (folder.parent / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*; choose another folder") as caught:
        study(folder, folder.parent / "results", figures_dir=folder.parent / "file" / "figures")
    one_line(caught)


def test_a_fresh_clone_keeps_the_rows_of_notebooks_that_it_does_not_run(folder, checked, tmp_path):
    root = folder.parent
    study(folder, root / "results", figures_dir=root / "figures")
    study(folder, tmp_path / "fresh", only="2", figures_dir=root / "figures")
    table = read_table(root / "figures" / "scorecard.csv")
    assert table["notebook"].tolist() == ["00_start"] * 2 + ["02_x"] * 2 + ["05_y"] * 2
    (folder / "05_y.ipynb").unlink()  # rows of a notebook that is gone go with it
    study(folder, tmp_path / "fresh", only="2", figures_dir=root / "figures")
    assert read_table(root / "figures" / "scorecard.csv")["notebook"].tolist() == ["00_start"] * 2 + ["02_x"] * 2


def test_a_damaged_scorecard_is_set_aside_and_named(folder, checked, capsys):
    figures = folder.parent / "results" / "figures"
    study(folder, folder.parent / "results", only="0")
    (figures / "scorecard.csv").write_text("notebook\n0,0,0\n")
    study(folder, folder.parent / "results", only="2")
    (aside,) = figures.glob("scorecard.csv.damaged-*")
    assert aside.read_text() == "notebook\n0,0,0\n" and aside.name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (["ok", "ok"], 0),
        (["ok", "skipped"], 0),
        (["skipped"], 1),
        (["ok", "died"], 1),
        (["failed", "interrupted"], 130),
        (["ok", "not rendered"], 1),
    ],
)
def test_the_exit_code_says_how_a_study_ended(ended, code):
    assert study_exit_code([RunStatus("01_a", status, 1.0) for status in ended]) == code


# real runs


@pytest.fixture(scope="module")
def ran(tmp_path_factory, kernels):
    """A project folder after a study of notebooks that end in different ways, and the statuses."""
    root = tmp_path_factory.mktemp("project")
    draw = "from matplotlib import pyplot as plt\n_ = plt.figure().subplots().plot([1, 2])"
    make_notebook(root / "notebooks" / "01_good.ipynb", SAVE, draw)
    make_notebook(root / "notebooks" / "02_raises.ipynb", "print(1)", SAVE, "{}['missing']", "print(2)")
    make_notebook(root / "notebooks" / "03_dies.ipynb", SAVE, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    make_notebook(root / "notebooks" / "04_silent.ipynb", "print('no result')")
    make_notebook(root / "notebooks" / "05_copied.ipynb", SAVE.format(stem="01_good"))
    make_notebook(root / "notebooks" / "06_tells.ipynb", SAVE, "import os; print(os.getcwd())")
    stale = root / "results" / "04_silent" / "result.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    render_dir = root / "rendered"
    return root, study(root / "notebooks", root / "results", quick=True, jobs=2, render_dir=render_dir)


@pytest.mark.notebook
def test_each_run_ends_as_it_did(ran):
    assert [(run.name, run.status, run.cell) for run in ran[1]] == [
        ("01_good", "ok", 0),
        ("02_raises", "failed", 5),  # title, parameters, print, save, the cell that raises
        ("03_dies", "died", 4),
        ("04_silent", "failed", 0),
        ("05_copied", "failed", 0),
        ("06_tells", "not rendered", 0),
    ]
    messages = {run.name: run.message for run in ran[1]}
    assert messages["02_raises"] == "KeyError: 'missing'" and "killed" in messages["03_dies"]
    assert "04_silent/result.json does not exist" in messages["04_silent"]
    assert "its result is of notebook '01_good'" in messages["05_copied"]
    assert "cell 4 shows a path of this machine" in messages["06_tells"]
    assert all("\n" not in message for message in messages.values()) and study_exit_code(ran[1]) == 1


@pytest.mark.notebook
def test_a_good_run_leaves_its_result_and_notebook_and_nothing_half_written(ran):
    folder = ran[0] / "results" / "01_good"
    assert files_in(folder) == sorted(
        ["01_good.ipynb", "result.json", "run.log", "status.json", "tables/t.csv", "tables/t.parquet"]
    )
    assert read_result(folder)["parameters"]["quick"] is True and read_result(folder)["parameters"]["steps"] == 50
    assert not [name for name in files_in(ran[0]) if "part" in name]
    executed = json.loads((folder / "01_good.ipynb").read_text())
    assert not {"input_path", "output_path"} & executed["metadata"]["papermill"].keys()
    assert [o["data"].keys() for o in executed["cells"][-1]["outputs"]] == [
        {"image/png", "text/plain"}
    ]  # seen by readers


@pytest.mark.notebook
def test_no_path_of_the_machine_is_in_what_good_runs_write(ran):
    for path in (ran[0] / "results" / "01_good").rglob("*.*"):
        if path.suffix in (".ipynb", ".json"):
            text = path.read_text()
            assert str(ran[0]) not in text and str(SOURCE) not in text and sys.prefix not in text


@pytest.mark.notebook
def test_the_runs_can_be_listed_with_the_status_of_the_batch(ran):
    runs = read_runs(ran[0] / "results").set_index("run")
    ended = {run.name: run.status for run in ran[1]}
    (aside,) = [name for name in runs.index if ".damaged-" in name]  # what stood where 04 ran
    assert runs["status"].to_dict() == ended | {"06_tells": "ok", aside: "damaged"}  # 06: only its copy was refused
    assert runs.loc["03_dies", "utc"] and runs.loc["02_raises", "cell"] == 5


@pytest.mark.notebook
def test_ctrl_c_ends_the_study_and_every_process_of_it(tmp_path, kernels):
    for stem in ("01_a", "02_b"):
        make_notebook(tmp_path / "notebooks" / f"{stem}.ipynb", SLEEP)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's background job is deaf
        "from mmchar.runs.study_batch import *; "
        "raise SystemExit(study_exit_code(study('notebooks', 'results', jobs=1)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "notebooks" / "pid")
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=30)[0].splitlines()
    finally:
        process.kill()
    assert process.returncode == 130 and is_gone(tmp_path / "notebooks" / "pid")
    assert out[1].startswith("01_a  interrupted") and out[2].startswith("02_b  interrupted")
    assert "not started" in out[2] and not (tmp_path / "results" / "02_b").exists()
    assert read_runs(tmp_path / "results")["status"].tolist() == ["interrupted"]


@pytest.mark.notebook
def test_a_rendered_notebook_has_outputs_but_no_times_and_is_stable(ran, tmp_path):
    executed = ran[0] / "results" / "01_good" / "01_good.ipynb"
    assert files_in(ran[0] / "rendered") == ["01_good.ipynb"]
    text = (ran[0] / "rendered" / "01_good.ipynb").read_text()
    assert "image/png" in text and '"parameters"' in text
    for word in ("duration", "start_time", "iopub", "input_path", str(ran[0])):
        assert word not in text
    import nbformat

    nbformat.validate(nbformat.reads(text, as_version=4))
    again = json.loads(executed.read_text())
    for cell in again["cells"]:
        cell["metadata"]["papermill"] = {"duration": 99.0}
        cell["id"] = os.urandom(4).hex()
    (tmp_path / "01_good.ipynb").write_text(json.dumps(again))
    assert render(tmp_path / "01_good.ipynb", tmp_path / "again.ipynb").read_text() == text


FIGURE = """\
from matplotlib.figure import Figure
figures = {"%s_f": Drawn(Figure(), "A caption.", "t")}
result = dict(parameters={"steps": steps}, tables={"t": pd.DataFrame({"a": [steps]})}, figures=figures)
checks = [{"name": "steps", "expected": 50, "got": steps, "verdict": "agrees"}]
save_result(out_dir, notebook="%s", checks=checks, **result)"""


def snapshot(root):
    files = (path for path in root.rglob("*") if path.is_file() and "ran_" not in path.name)
    return {path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.notebook
@pytest.mark.slow
def test_a_second_start_does_what_is_missing_and_nothing_else(tmp_path, kernels, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imports = "import pandas as pd\nfrom mmchar.runs.records import Drawn, save_result"
    for stem in ("01_a", "02_b"):
        once = f"open('../ran_{stem}', 'a').write('x')"
        make_notebook(tmp_path / "notebooks" / f"{stem}.ipynb", once, imports, FIGURE % (stem, stem))

    def ran():
        return [len((tmp_path / f"ran_{stem}").read_text()) for stem in ("01_a", "02_b")]

    def plan(*more):
        return main(["study", "--dry-run", *more]), capsys.readouterr().out.splitlines()

    assert plan() == (
        0,
        ["01_a  to run  never run", "02_b  to run  never run", "2 of 2 would run, 0 kept; nothing was done"],
    )
    assert not (tmp_path / "results").exists()
    assert main(["study"]) == 0 and ran() == [1, 1]
    id_ = read_runs("results")["id"][0]
    assert main(["runs", "show", id_]) == 0 and "A caption." in capsys.readouterr().out

    before = snapshot(tmp_path)
    assert plan()[1] == ["01_a  kept", "02_b  kept", "0 of 2 would run, 2 kept; nothing was done"]
    assert plan("--force")[1][0] == "01_a  to run  forced"
    assert snapshot(tmp_path) == before
    (tmp_path / "results/figures/01_a_f.svg").unlink()
    (tmp_path / "results/figures/02_b_f.md").write_text("of another run")
    path = tmp_path / "notebooks" / "02_b.ipynb"
    text = path.read_text()
    path.write_text(text.replace("# A question?", "# Another question?"))
    assert main(["study"]) == 0 and ran() == [1, 1]
    assert capsys.readouterr().out.splitlines()[1].split() == ["01_a", "ok", "0.0", "kept"]
    now = snapshot(tmp_path / "results/figures")
    assert {name: data for name, (data, _) in now.items()} == {
        name.removeprefix("results/figures/"): data for name, (data, _) in before.items() if "results/figures/" in name
    }

    path.write_text(text.replace('"source": "import pandas', '"source": "1 / 0\\nimport pandas'))
    assert plan()[1][1] == "02_b  to run  code cell 4 changed"
    assert main(["study"]) == 1 and ran() == [1, 2]
    assert plan()[1][-2] == "02_b  to run  last time it failed: ZeroDivisionError: division by zero"
    runs = read_runs("results").set_index("run")
    assert runs.loc["02_b", ["status", "cell", "checks"]].tolist() == ["failed", 4, 1]  # the earlier result is good
    assert set(read_table("results/figures/scorecard.csv")["notebook"]) == {"01_a", "02_b"}
    assert (
        "Of an earlier run, as the latest did not end well: 02_b.\n"
        in (tmp_path / "results/figures/scorecard.md").read_text()
    )
    assert read_result("results/02_b") and "1 / 0" in (tmp_path / "results/02_b/02_b.latest.ipynb").read_text()
    assert "1 / 0" not in (tmp_path / "results/02_b/02_b.ipynb").read_text()

    path.write_text(text)
    assert main(["study", "--force", "--only", "1"]) == 0 and main(["study"]) == 0 and ran() == [2, 3]
    assert not (tmp_path / "results" / "02_b" / "02_b.latest.ipynb").exists()
    assert plan()[1][-1].startswith("0 of 2 would run")
    executed = tmp_path / "results" / "02_b" / "02_b.ipynb"
    assert code_cells(executed) == code_cells(path)  # a run can be compared by what lies in its folder
