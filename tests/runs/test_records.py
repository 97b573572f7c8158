"""Figures and results: whole or absent, never trusted when damaged, and listed with what is known of each run."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from samples import files_in, make_table, one_line

from mmchar import files, locks, provenance
from mmchar.runs import figures, records
from mmchar.runs.listing import read_checks, read_runs
from mmchar.runs.run_state import attempt_folder, read_status, write_status
from mmchar.tables import stored


@pytest.fixture
def table():
    return make_table()


@pytest.fixture
def save(tmp_path, table):
    def save(out_dir=tmp_path / "02_x", **given):
        checks = [{"claim": "attention share", "expected": 0.4, "got": np.float64("nan"), "verdict": "differs"}]
        given = {"tables": {"breakdown": table}, "checks": checks, **given}
        return records.save_result(out_dir, notebook="02_x", parameters={"batch": 1, "out_dir": "../x"}, **given)

    return save


# figures


FIGURE = """
import sys
from matplotlib.figure import Figure
import pandas as pd
from mmchar.runs.figures import save_figure
figure = Figure()
axes = figure.subplots()
axes.plot([1, 2], [3, 4], marker="o", label="a")
axes.fill_between([1, 2], [3, 4], hatch="//")
axes.legend()
axes.set_xlabel("time (s)")
table = pd.DataFrame({"model": ["sd", "sd", "llama"], "time_kind": ["projected", "", "measured"]})
save_figure(figure, "02_share", "Share of time.", figures_dir=sys.argv[1], table=table)
"""


def test_a_figure_is_the_same_in_two_processes_and_says_what_it_was_made_from(tmp_path):
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(provenance.SOURCE), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", FIGURE, str(tmp_path / seed)], check=True, env=environment)
    assert files_in(tmp_path / "1") == ["02_share.csv", "02_share.md", "02_share.png", "02_share.svg"]
    for name in files_in(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    caption = (tmp_path / "1" / "02_share.md").read_text()
    assert caption.startswith(
        "Share of time.\n\nMade from models: sd, llama; time: projected, measured; versions: python"
    )
    assert "dc:date" not in (tmp_path / "1" / "02_share.svg").read_text()


def test_a_figure_cannot_leave_its_folder(tmp_path):
    for name in ("../a", "/a", "a/b", "", ".hidden", "a\n", "a..b"):
        with pytest.raises(ValueError, match="cannot be a file name") as caught:
            figures.save_figure(None, name, "", figures_dir=tmp_path, table=make_table())
        one_line(caught)


# results


def test_a_result_is_read_back_with_its_tables_and_checks(tmp_path, table, save):
    from matplotlib.figure import Figure

    path = save(figures={"02_share": records.Drawn(Figure(), "Share.", "breakdown")})
    result = records.read_result(path.parent)
    assert result["notebook"] == "02_x" and result["parameters"] == {"batch": 1}
    assert result["checks"] == [{"claim": "attention share", "expected": 0.4, "got": None, "verdict": "differs"}]
    entry = result["tables"]["breakdown"]
    assert entry == {
        "files": ["tables/breakdown.parquet", "tables/breakdown.csv"], "rows": 3, "columns": list(table.columns)
    }  # fmt: skip
    pd.testing.assert_frame_equal(stored.read_table(path.parent / entry["files"][0]), table)
    assert sorted([*result["files"], "result.json"]) == files_in(path.parent)
    drawn = [f"figures/02_share.{suffix}" for suffix in ("csv", "md", "png", "svg")]
    assert [file for file in files_in(path.parent) if file.startswith("figures/")] == drawn
    assert (path.parent / drawn[0]).read_bytes() == (path.parent / "tables/breakdown.csv").read_bytes()


def test_a_long_table_has_no_csv_and_checks_may_be_a_table(save):
    checks = pd.DataFrame({"name": ["a"], "expected": [np.int64(1)], "got": [2], "verdict": ["differs"]})
    path = save(tables={"long": pd.DataFrame({"a": range(records.SMALL_ROWS + 1)})}, checks=checks)
    result = records.read_result(path.parent)
    assert result["tables"]["long"]["files"] == ["tables/long.parquet"]
    assert result["checks"] == [{"name": "a", "expected": 1, "got": 2, "verdict": "differs"}]


def test_a_new_result_removes_the_files_of_the_old_one_and_no_others(save, table):
    folder = save(tables={"old": table}).parent
    (folder / "notes.txt").write_text("mine")
    (folder / "tables" / "mine.csv").write_text("mine")
    save()
    assert files_in(folder) == [
        "notes.txt", "result.json", "tables/breakdown.csv", "tables/breakdown.parquet", "tables/mine.csv"
    ]  # fmt: skip


def test_a_result_that_fails_half_way_is_no_result_and_leaves_the_earlier_one(tmp_path, save, table):
    bad = {"good": table, "bad": pd.DataFrame({"mixed": [1, {}]})}
    with pytest.raises(ValueError, match="cannot hold"):
        save(tables=bad)
    with pytest.raises(ValueError, match="does not exist"):
        records.read_result(tmp_path / "02_x")
    folder = save().parent
    with pytest.raises(ValueError, match="cannot hold"):
        save(tables=bad)
    assert records.read_result(folder)["tables"].keys() == {"breakdown"}
    assert {path.name for path in tmp_path.iterdir()} == {"02_x", ".locks"}  # nothing half-written stays


def test_a_damaged_result_is_set_aside_and_named_when_a_new_one_is_saved(tmp_path, save):
    folder = save().parent
    (folder / "tables" / "breakdown.csv").write_text("half")
    with pytest.warns(UserWarning, match=r"breakdown.csv has changed.*kept as 02_x\.damaged-\d{8}T\d{6}Z"):
        save()
    assert records.read_result(folder)
    (aside,) = tmp_path.glob("02_x.damaged-*")
    assert (aside / "tables" / "breakdown.csv").read_text() == "half" and (aside / "result.json").exists()
    runs = read_runs(tmp_path)
    assert runs["status"].tolist() == ["ok", "damaged"] and len(read_checks(tmp_path)) == 1


def test_a_replacement_that_was_cut_off_is_completed_or_undone(tmp_path, save):
    folder = save().parent
    folder.rename(tmp_path / ".02_x.earlier")  # killed between the two renames
    files.finish_replace(folder)
    assert records.read_result(folder) and not (tmp_path / ".02_x.earlier").exists()
    (tmp_path / ".02_x.earlier").mkdir()  # killed after them
    files.finish_replace(folder)
    assert records.read_result(folder) and not (tmp_path / ".02_x.earlier").exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"tables": {}},
        {"tables": {"../out": pd.DataFrame({"a": [1]})}},
        {"checks": [{"claim": "a", "expected": 1, "got": 1}]},
        {"checks": [{"expected": 1, "got": 1, "verdict": "agrees"}]},
    ],
)
def test_an_incomplete_result_is_refused_before_the_old_one_is_touched(save, bad):
    folder = save().parent
    with pytest.raises(ValueError) as caught:
        save(**bad)
    one_line(caught)
    assert records.read_result(folder)["tables"].keys() == {"breakdown"}


def damage(path, how):
    text = path.read_text()
    result = json.loads(text)
    if how == "truncated":
        return text[:-40]
    if how == "a number":
        return text.replace('"expected": 0.4', '"expected": 0.5')
    if how == "schema":
        return json.dumps(result | {"schema": 2})
    if how == "no checks":
        return json.dumps({key: value for key, value in result.items() if key != "checks"})
    if how == "outside":
        result["files"] = {"../../secret": "0"}
        return json.dumps(files.sealed(result))
    return how


@pytest.mark.parametrize(
    "how", ["truncated", "a number", "schema", "no checks", "outside", "", "[]", "{}", "[" * 10**5]
)
def test_a_damaged_result_file_is_refused(save, how):
    path = save()
    path.write_text(damage(path, how))
    with pytest.raises(ValueError, match=r"02_x/result\.json is (damaged|not valid)") as caught:
        records.read_result(path.parent)
    one_line(caught)


def test_a_result_with_a_changed_or_missing_table_is_refused(save):
    folder = save().parent
    file = folder / "tables" / "breakdown.csv"
    file.write_bytes(file.read_bytes().replace(b"self", b"cell"))
    with pytest.raises(ValueError, match=r"tables/breakdown\.csv has changed"):
        records.read_result(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"tables/breakdown\.csv is missing"):
        records.read_result(folder)


def test_saving_over_a_tampered_result_touches_nothing_outside(tmp_path, save):
    path = save()
    (tmp_path / "secret").write_text("kept")
    path.write_text(json.dumps({"files": {"../secret": "", str(tmp_path / "secret"): "", "tables/breakdown.csv": ""}}))
    with pytest.warns(UserWarning, match="kept as"):
        save()
    assert (tmp_path / "secret").read_text() == "kept"


def test_runs_are_listed_with_what_is_known_of_each(tmp_path, save):
    save(tmp_path / "01_good")
    save(tmp_path / "02_damaged").write_text("{")
    (tmp_path / "04_empty").mkdir()
    status = {"status": "failed", "seconds": 2.5, "cell": 3, "message": "KeyError: 'a'", "parameters": {"batch": 2}}
    write_status(tmp_path / "03_failed", status)
    runs = read_runs(tmp_path).set_index("run")
    assert runs["status"].to_dict() == {"01_good": "ok", "02_damaged": "damaged", "03_failed": "failed"}
    assert runs.loc["03_failed", "cell"] == 3 and runs.loc["03_failed", "parameters"] == {"batch": 2}
    assert runs.loc["01_good", "checks"] == 1 and runs.loc["01_good", "notebook"] == "02_x"
    assert runs.loc["01_good", "utc"] and "result.json is damaged" in runs.loc["02_damaged", "message"]


def test_a_result_made_by_hand_after_a_failed_batch_counts(tmp_path, save):
    folder = save().parent
    old = {"status": "failed", "message": "boom", "result": None}
    write_status(folder, old)
    assert read_runs(tmp_path)["status"].tolist() == ["ok"]
    failed_after_saving = old | {"result": records.read_result(folder)["sha256"]}
    write_status(folder, failed_after_saving)
    assert read_runs(tmp_path)["status"].tolist() == ["failed"]


def test_a_run_that_began_is_running_while_its_lock_is_held_and_else_died(tmp_path, save):
    new = attempt_folder(tmp_path / "02_x")
    new.mkdir()
    write_status(new, {"status": "running", "message": "", "id": "abc"})
    with locks.held(locks.run_lock(tmp_path / "02_x")):
        code = "import sys; from mmchar.runs.run_state import run_state; print(run_state(sys.argv[1])[0]['status'])"
        environment = {**os.environ, "PYTHONPATH": str(provenance.SOURCE)}
        command = [sys.executable, "-c", code, str(tmp_path / "02_x")]
        assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout == "running\n"
    runs = read_runs(tmp_path)
    assert runs[["run", "status", "message"]].values.tolist() == [["02_x", "died", "the batch was killed"]]
    save()  # by hand, while a batch is not done
    assert read_runs(tmp_path)["checks"].tolist() == [1]


def test_a_good_result_counts_although_a_later_run_failed(tmp_path, save):
    folder = save().parent
    sha256 = records.read_result(folder)["sha256"]
    earlier = {"result": sha256, "id": "0123456789ab", "identity": {"cells": []}}
    write_status(folder, {"status": "failed", "message": "boom", "result": None, "earlier": earlier})
    runs = read_runs(tmp_path)
    assert runs[["status", "message", "id", "checks"]].values.tolist() == [["failed", "boom", "0123456789ab", 1]]
    assert len(read_checks(tmp_path)) == 1


@pytest.mark.parametrize("content", ['{"status": "ok"', "[]", "{}", '{"status": "ok", "sha256": "0"}'])
def test_a_damaged_status_is_no_status(tmp_path, save, content):
    folder = save().parent
    (folder / "status.json").write_text(content)
    with pytest.raises(ValueError, match=r"02_x/status\.json is damaged") as caught:
        read_status(folder)
    one_line(caught)
    assert read_runs(tmp_path)["status"].tolist() == ["ok"]  # its result speaks for itself
    (folder / "result.json").unlink()
    assert read_runs(tmp_path)["status"].tolist() == ["damaged"]


def test_no_runs_give_an_empty_table_and_no_folder_a_clear_line(tmp_path):
    assert list(read_runs(tmp_path).columns[:3]) == ["run", "notebook", "status"]
    with pytest.raises(ValueError, match="no folder") as caught:
        read_runs(tmp_path / "none")
    one_line(caught)


def test_checks_are_those_of_the_good_results(tmp_path, save):
    good = {"name": "lengths", "claim": "c002", "expected": [64, 4096], "got": "64 to 4096", "verdict": "agrees"}
    save(tmp_path / "01_good", checks=[{"claim": "c001", "expected": 0.4, "got": 0.5, "verdict": "differs"}, good])
    save(tmp_path / "02_damaged").write_text("{")
    failed = save(tmp_path / "03_failed").parent
    status = {"status": "failed", "message": "boom", "result": records.read_result(failed)["sha256"]}
    write_status(failed, status)
    save(tmp_path / "04_none", checks=[])
    checks = read_checks(tmp_path)
    assert list(checks.columns) == ["run", "notebook", "claim", "name", "expected", "got", "verdict", "quick"]
    assert checks.values.tolist() == [
        ["01_good", "02_x", "c001", "", 0.4, 0.5, "differs", False],
        ["01_good", "02_x", "c002", "lengths", [64, 4096], "64 to 4096", "agrees", False],
    ]


def test_measurements_in_one_folder_do_not_replace_each_other(tmp_path, table):
    first, second = (records.save_measured(tmp_path, table) for _ in range(2))
    assert first != second
    assert records.read_result(first.parent)["parameters"]["request"] == {"steps": [50], "guidance": 7.5}
    assert len(read_runs(tmp_path)) == 2


def test_importing_records_loads_neither_torch_nor_pandas_nor_matplotlib():
    code = "import sys, mmchar.runs.records; print({'torch', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(provenance.SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()"
