"""A batch of twelve runs in which everything goes wrong that can: nothing good is lost, nothing runs twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from samples import SAVE, make_notebook

from mmchar.runs.listing import read_checks, read_runs
from mmchar.runs.notebooks import last_cell, load_notebook
from mmchar.runs.records import read_result

BEGIN = (
    "import os, pathlib, signal, time\nopen('../begun_{stem}', 'a').write('x')\nfault = pathlib.Path('../fault_{stem}')"
)
END = "open('../ended_{stem}', 'a').write('x')"
CHECK = SAVE.rstrip()[:-1].replace("{{", "{").replace("}}", "}")
CHECK += ', checks=[{"name": "steps", "expected": 50, "got": steps, "verdict": "agrees"}])'
FAULTS = {  # what the run does as long as its fault is there
    "03_batch": "os.kill(int(os.environ['BATCH']), signal.SIGKILL); time.sleep(600)",
    "04_raises": "{}['missing']",
    "05_kernel": "os.kill(os.getpid(), signal.SIGKILL)",
    "06_hangs": "pathlib.Path('../hangs').touch(); time.sleep(600)",
    "08_disk": "FILL",
    "11_skips": "from mmchar.runs.records import SkipRun; raise SkipRun('needs an NVIDIA GPU')",
}
FILL = """\
import errno
def put(file): return file.write(b"x" * 4096)
file = open(pathlib.Path(os.environ["MMCHAR_RUN"]) / "fill", "wb", buffering=0)
try:
    while put(file): pass
except OSError as error:
    assert error.errno in (errno.ENOSPC, errno.EFBIG)"""
NO_MOUNT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"  # every file is too large then
NAMES = (
    "01_good 02_good 03_batch 04_raises 05_kernel 06_hangs 07_good 08_disk 09_truncated 10_readonly 11_skips 12_good"
)
# The time-out counts from the moment the run hangs, however slow the machine is.
BATCH = """
import os, pathlib
from mmchar.runs import papermill_process
from mmchar.runs.study_batch import study, study_exit_code
os.environ["BATCH"] = str(os.getpid())
watch, hangs = papermill_process._watch, pathlib.Path("hangs")
def patient(process, timeout_s, stop):
    while process.exit_code() is None and not hangs.exists():
        papermill_process.time.sleep(0.02)
    try:
        return watch(process, 0.1 if hangs.exists() else timeout_s, stop)
    finally:
        hangs.unlink(missing_ok=True)
papermill_process._watch = patient
raise SystemExit(study_exit_code(study("notebooks", "results")))
"""


def start(root):
    """Start the batch as a process; its exit code, what it printed, and what it said on stderr."""
    done = subprocess.run([sys.executable, "-c", BATCH], cwd=root, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def mount(path, options):
    path.mkdir(parents=True, exist_ok=True)
    return (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True
        ).returncode
    )


def unmount(path):
    subprocess.run(["umount", "-l", str(path)], capture_output=True)


@pytest.fixture
def root(tmp_path):
    """A project with twelve notebooks; where the user may mount, its results lie on a disk of 8 MB."""
    yield tmp_path
    unmount(tmp_path / "results" / "10_readonly")
    unmount(tmp_path / "results")


def count(root, what, stem):
    path = root / f"{what}_{stem}"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.notebook
@pytest.mark.slow
def test_a_batch_of_twelve_with_every_fault_loses_nothing(root, kernels, capsys):
    names, results = NAMES.split(), root / "results"
    small_disk = mount(results, "size=8m")
    for stem in names:
        does = FAULTS.get(stem, "pass").replace("FILL", FILL if small_disk else NO_MOUNT).replace("\n", "\n    ")
        cells = [text.replace("{stem}", stem) for text in (BEGIN, f"if fault.exists():\n    {does}", CHECK, END)]
        make_notebook(root / "notebooks" / f"{stem}.ipynb", *cells)
    for stem in FAULTS:
        (root / f"fault_{stem}").touch()
    readonly = results / "10_readonly"
    if not mount(readonly, "ro"):
        readonly.chmod(0o555) if os.geteuid() else (readonly.rmdir(), readonly.touch())
    table: dict[str, list[str]] = {stem: [] for stem in names}

    def note():
        runs = read_runs(results).set_index("run")
        for stem in names:
            row = runs.loc[stem] if stem in runs.index else {"status": "not started", "message": ""}
            cell = f"cell {row['cell']:.0f}: " if row.get("cell") else ""
            table[stem].append(f"{row['status']} {cell}{row['message'] or ''}".strip())

    code, _, _ = start(root)
    assert code == -signal.SIGKILL
    note()
    assert [table[stem][-1] for stem in names[:4]] == ["ok", "ok", "died the batch was killed", "not started"]

    (root / "fault_03_batch").unlink()
    code, out, err = start(root)
    assert code == 1, out + err
    note()
    now = {stem: table[stem][-1] for stem in names}
    assert now["03_batch"] == now["07_good"] == now["09_truncated"] == now["12_good"] == "ok"
    assert now["04_raises"] == "failed cell 4: KeyError: 'missing'"
    assert now["05_kernel"].startswith("died cell 4: the kernel was killed")
    assert now["06_hangs"] == "timed out cell 4:"
    full = "No space left on device" if small_disk else "File too large"
    assert now["08_disk"].startswith("failed ") and full in now["08_disk"]
    assert "10_readonly" in out and "cannot write to" in out and now["10_readonly"] == "not started"
    assert now["11_skips"] == "skipped cell 4: needs an NVIDIA GPU"
    table["10_readonly"][-1] = next(line.split(None, 1)[1] for line in out.splitlines() if "10_readonly" in line)
    for stem in ("04_raises", "05_kernel", "06_hangs"):  # kept as the log
        assert last_cell(load_notebook(results / stem / f"{stem}.ipynb"))[0] == 4
    assert [count(root, "ended", stem) for stem in ("01_good", "02_good", "03_batch")] == [1, 1, 1]

    for stem in set(FAULTS) - {"11_skips"}:
        (root / f"fault_{stem}").unlink(missing_ok=True)
    path = results / "09_truncated" / "result.json"
    path.write_bytes(path.read_bytes()[:-100])
    unmount(readonly)
    readonly.chmod(0o755) if readonly.is_dir() else readonly.unlink()
    code, out, err = start(root)
    note()
    assert code == 0, out + err
    assert {stem: line[-1] for stem, line in table.items()} == {
        stem: "ok" if stem != "11_skips" else "skipped cell 4: needs an NVIDIA GPU" for stem in names
    }
    assert "09_truncated/result.json is damaged" in err and "kept as 09_truncated.damaged-" in err
    (aside,) = results.glob("09_truncated.damaged-*")
    assert (aside / "tables" / "t.parquet").exists()

    ended = {stem: count(root, "ended", stem) for stem in names}  # only a result that was damaged was made twice
    assert ended == {stem: {"09_truncated": 2, "11_skips": 0}.get(stem, 1) for stem in names}
    begun = {stem: count(root, "begun", stem) for stem in names}
    assert [begun[stem] for stem in ("01_good", "02_good", "07_good", "12_good")] == [1, 1, 1, 1]
    assert all(read_result(results / stem)["notebook"] == stem for stem in names if stem != "11_skips")
    assert len(read_checks(results)) == 11
    lines = ["| run | 1st start | 2nd start | 3rd start | begun | ended |", "|---|---|---|---|---|---|"]
    table["10_readonly"] = [" ".join(cell.split()) for cell in table["10_readonly"]]
    lines += [f"| {' | '.join([stem, *table[stem], str(begun[stem]), str(ended[stem])])} |" for stem in names]
    text = "\n".join(lines).replace(str(root), "…")
    (Path(os.environ.get("MMCHAR_FAULT_TABLE") or root / "faults.md")).write_text(text + "\n")
    with capsys.disabled():
        print(f"\n{text}")
