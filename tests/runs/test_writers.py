"""Eight processes that write into one results folder at once: nothing is lost, and nobody reads half of anything."""

import os
import subprocess
import sys

import pytest
from samples import SAVE, make_notebook

from mmchar.provenance import SOURCE
from mmchar.runs.listing import read_checks, read_runs
from mmchar.runs.records import read_result
from mmchar.tables.stored import read_table

WRITERS, TIMES = 8, 4
WRITE = """
import sys
import pandas as pd
from mmchar.runs.records import read_result, save_measured, save_result
results, writer, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(times):
    table = pd.DataFrame({"writer": [writer] * 100, "number": [number] * 100})
    table.attrs = {"model": "sd", "writer": writer, "number": number}
    save_measured(results, table)
    given = {"tables": {f"t{writer}": table, "same": table}, "parameters": {"writer": writer}}
    save_result(f"{results}/01_shared", notebook="01_shared", **given)
    save_result(f"{results}/02_own_{writer}", notebook="02_own", **given)
print("done")
"""


def run_at_once(command, count):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    started = [
        subprocess.Popen([*command(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for n in range(count)
    ]
    return [(*process.communicate(), process.returncode) for process in started]


def test_eight_writers_lose_nothing(tmp_path):
    ended = run_at_once(lambda n: (sys.executable, "-c", WRITE, str(tmp_path), str(n), str(TIMES)), WRITERS)
    assert [(out, code) for out, _, code in ended] == [("done\n", 0)] * WRITERS, [err for _, err, _ in ended]
    runs = read_runs(tmp_path)
    assert runs["status"].tolist() == ["ok"] * (WRITERS * TIMES + WRITERS + 1)
    measured = [read_result(tmp_path / run)["parameters"] for run in runs["run"] if run.startswith("sd-")]
    assert sorted((one["writer"], one["number"]) for one in measured) == [
        (writer, number) for writer in range(WRITERS) for number in range(TIMES)
    ]
    last = read_result(tmp_path / "01_shared")  # of one writer, whole
    writer = last["parameters"]["writer"]
    assert last["tables"].keys() == {f"t{writer}", "same"}
    assert read_table(tmp_path / "01_shared" / "tables" / "same.parquet")["writer"].unique().tolist() == [writer]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".locks"]


@pytest.mark.notebook
@pytest.mark.slow
def test_two_studies_of_one_results_folder_run_nothing_twice(tmp_path, kernels):
    for stem in ("01_a", "02_b", "03_c"):
        once = f"open('../ran_{stem}', 'a').write('x')"
        make_notebook(tmp_path / "notebooks" / f"{stem}.ipynb", once, SAVE)
    code = "from mmchar.runs.study_batch import *; raise SystemExit(study_exit_code(study('notebooks', 'results')))"
    script = f"import os; os.chdir({str(tmp_path)!r}); {code}"
    ended = run_at_once(lambda n: (sys.executable, "-c", script), 2)
    assert [code for *_, code in ended] == [0, 0], ended
    assert [(tmp_path / f"ran_{stem}").read_text() for stem in ("01_a", "02_b", "03_c")] == ["x"] * 3
    kept = [sum(line.endswith("kept") for line in out.splitlines()) for out, *_ in ended]
    assert sum(kept) == 3 and read_runs(tmp_path / "results")["status"].tolist() == ["ok"] * 3
    assert read_checks(tmp_path / "results").empty
