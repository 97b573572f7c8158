"""Runs found by name or id, shown in full, and compared."""

import json

import pytest
from samples import make_table, one_line

from mmchar.cli.main import main
from mmchar.files import sealed
from mmchar.runs import records
from mmchar.runs.listing import diff_runs, find_run, show_run
from mmchar.runs.run_state import write_status

CHECK = {"claim": "c001", "name": "share", "expected": 1, "got": 1.5, "verdict": "agrees"}


def save(folder, *, steps=50, got=1.5, scale=1.0, torch="2.13.0", id_="0123456789ab"):
    """A good run as a batch leaves it."""
    from matplotlib.figure import Figure

    table = make_table().assign(time_s=[0.5 * scale, 1.5 * scale, 1.0 * scale])
    given = {"tables": {"t": table}, "figures": {"02_share": records.Drawn(Figure(), "Share of time.", "t")}}
    given |= {"checks": [CHECK | {"got": got}], "parameters": {"steps": steps, "gpu": "h100-sxm"}}
    path = records.save_result(folder, notebook="02_x", **given)
    identity = {"cells": ["a", f"b{steps}"], "package": "p", "data": "d", "hardware": {"cpu": "x"}}
    identity |= {"parameters": {"steps": steps}, "versions": {"torch": torch}}
    status = {"name": "02_x", "status": "ok", "seconds": 2.0, "cell": 0, "message": "", "why": "never run", "id": id_}
    sha256 = records.read_result(folder)["sha256"]
    write_status(folder, status | {"identity": identity, "result": sha256})
    return path.parent


@pytest.fixture
def results(tmp_path):
    tmp_path = tmp_path / "results"
    save(tmp_path / "02_a")
    save(tmp_path / "02_b", steps=20, got=2.5, scale=2.0, torch="2.12.0", id_="ba9876543210")
    records.save_measured(tmp_path, make_table())
    return tmp_path


def test_a_run_is_found_by_name_by_id_and_by_path(results):
    assert find_run(results, "02_a").name == "02_a" == find_run(results, "0123").name
    assert find_run("elsewhere", f"{results}/02_b").name == "02_b"
    (measured,) = [path for path in results.iterdir() if path.name.startswith("sd-")]
    assert find_run(results, records.read_result(measured)["sha256"][:12]) == measured


@pytest.mark.parametrize("name", ["02", "012", "", "..", "../..", "zzzz"])
def test_an_unknown_run_is_one_line_with_those_there_are(results, name):
    with pytest.raises(ValueError, match=r"no run .* there are 02_a \(0123456789ab\), 02_b") as caught:
        find_run(results, name)
    one_line(caught)


def test_an_id_of_two_runs_asks_for_the_name(results):
    save(results / "02_c")
    with pytest.raises(ValueError, match="'0123' is the id of 02_a, 02_c; give the name") as caught:
        find_run(results, "0123")
    one_line(caught)


def test_a_run_tells_what_where_when_and_with_what(results):
    shown = show_run(results, "02_a")
    assert (shown["run"], shown["id"], shown["status"], shown["why"]) == ("02_a", "0123456789ab", "ok", "never run")
    assert shown["parameters"] == {"steps": 50, "gpu": "h100-sxm"} and shown["versions"]["python"] and shown["utc"]
    assert shown["hardware"]["cpu"] and shown["figures"] == {"02_share": "Share of time."}
    assert {"tables/t.parquet", "figures/02_share.svg", "result.json", "status.json"} <= set(shown["files"])
    assert show_run(results, "02_b")["checks"][0]["got"] == 2.5


def test_a_diff_says_what_changed_in_settings_code_and_numbers(results):
    rows = {(row["what"], row["name"]): (row["first"], row["second"]) for row in diff_runs(results, "02_a", "ba98")}
    assert rows == {
        ("parameter", "steps"): (50, 20),
        ("code", "code cell 2 changed"): ("", ""),
        ("check", "c001 share"): ("1.5 (agrees)", "2.5 (agrees)"),
        ("table", "t.time_s: mean"): (1.0, 2.0),
    }
    assert diff_runs(results, "02_a", "02_a") == []


def test_the_versions_that_differ_are_those_that_were_recorded(results, monkeypatch):
    path = results / "02_b" / "result.json"
    result = json.loads(path.read_text())
    result["provenance"]["versions"]["torch"] = "2.11.0"
    path.write_text(json.dumps(sealed(result)))
    rows = [row for row in diff_runs(results, "02_a", "02_b") if row["what"] == "version"]
    assert [(row["name"], row["second"]) for row in rows] == [("torch", "2.11.0")]


def test_the_shell_lists_shows_and_compares(results, capsys):
    where = ["--results", str(results)]
    assert main(["runs", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "id", "status", "checks", "utc", "message"] and len(lines) == 4
    assert lines[1].split()[:4] == ["02_a", "0123456789ab", "ok", "1"]
    assert main(["runs", "show", "0123", *where]) == 0
    out = capsys.readouterr().out
    assert "id          0123456789ab\n" in out and "  steps          50\n" in out
    assert "  02_share       Share of time.\n" in out and "checks: 1 agrees" in out
    assert main(["runs", "diff", "02_a", "02_b", *where]) == 0
    assert "parameter  steps: 50 -> 20\n" in capsys.readouterr().out
    for what in ([], ["show", "02_a"], ["diff", "02_a", "02_b"]):
        assert main(["runs", *what, *where, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["show"], "mmchar runs show: give nothing, 'show ID' or 'diff A B'"),
        (["diff", "02_a"], "give nothing, 'show ID' or 'diff A B'"),
        (["drop", "02_a"], "give nothing, 'show ID' or 'diff A B'"),
        (["show", "nothing"], "no run 'nothing'"),
        (["--results", "/nowhere"], "no folder '/nowhere'"),
        (["show", "02_a", "--results", "/nowhere"], "no folder '/nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(results, monkeypatch, capsys, argv, line):
    monkeypatch.chdir(results.parent)
    assert main(["runs", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mmchar: ") and err.count("\n") == 1 and line in err
