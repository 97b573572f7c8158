"""A batch as a job array: on a real Slurm of one host, and what is refused without one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from samples import SAVE, SLEEP, is_gone, make_notebook, one_line, wait_for

from mmchar.cli.main import main
from mmchar.provenance import SOURCE
from mmchar.runs import batch, slurm
from mmchar.runs.batch import Run, RunStatus
from mmchar.runs.engine import Stop
from mmchar.runs.records import read_result
from mmchar.runs.slurm import SlurmOptions, run_all

START = SOURCE / "tests" / "slurm" / "start.sh"
LACKING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]
real = pytest.mark.skipif(
    bool(LACKING) or os.getuid() != 0,
    reason=f"needs a Slurm on this host: {', '.join(LACKING) + ' absent' if LACKING else 'not root'}; see {START.name}",
)
# What each notebook does first: note that it was started, and on which GPU.
NOTE = "import os; open('starts', 'a').write(f\"{stem} {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n\")"
FIRST = (
    "import os, pathlib, time\nif 'SLURM_RESTART_COUNT' not in os.environ:\n    pathlib.Path('on').write_text('1')\n"
)
FIRST += "    time.sleep(99)"  # sent back to the queue meanwhile


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, kernels):
    """A Slurm with two made-up GPUs, stopped at the end of the file (also where the tests are killed)."""
    folder = tmp_path_factory.mktemp("slurm")
    command = [str(START), str(folder), str(_free_ports())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n", "Slurm did not start; its complaint is above"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setattr(slurm, "_POLL_S", 0.3)
            yield folder
    finally:
        process.stdin.close()
        assert process.wait(30) == 0


def _free_ports():
    """A port that is free, and so is the next one."""
    for port in range(20000 + os.getpid() % 10000, 32000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port)), two.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue
    raise AssertionError("no free ports")


def make_runs(folder, **cells):
    """One run per name, whose notebook has these code cells."""
    for stem, sources in cells.items():
        make_notebook(folder / "notebooks" / f"{stem}.ipynb", NOTE.format(stem=stem), *sources)
    return [Run(folder / "notebooks" / f"{stem}.ipynb", folder / "results" / stem, {}) for stem in cells]


def starts(folder):
    """(notebook, GPU) of every start of a kernel."""
    return sorted(tuple(line.split()) for line in (folder / "notebooks" / "starts").read_text().splitlines())


def requeue_when_there(path, job):
    """Take the job's node away once the file holds something; the job is then let in without Slurm's two minutes."""
    wait_for(path)
    subprocess.run(["scontrol", "requeue", job], check=True)
    while (
        "PENDING" not in subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout
    ):
        time.sleep(0.2)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def queue():
    return subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()


def next_job():
    """The number that Slurm gives the next job."""
    out = subprocess.run(
        ["sbatch", "--parsable", "--hold", "--wrap", "true"], capture_output=True, text=True, check=True
    )
    subprocess.run(["scancel", out.stdout.strip()], check=True)
    return int(out.stdout) + 1


@real
@pytest.mark.notebook
def test_an_array_of_runs_each_ends_as_it_did(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_RESERVE_S", 50)  # so that a limit of one minute leaves a run ten seconds
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    runs = make_runs(
        tmp_path,
        a_good=[SAVE],
        b_raises=[SAVE, "{}['missing']"],
        c_sleeps=["import time; time.sleep(600)"],
        d_again=[FIRST, SAVE],
        e_dies=[kill],
        f_good=[SAVE],
    )
    requeue = threading.Thread(target=requeue_when_there, args=(tmp_path / "notebooks" / "on", f"{next_job()}_3"))
    requeue.start()
    ended = run_all(runs, timeout_s=600, options=SlurmOptions("short", 1, "gpu:1", 2))
    requeue.join()
    assert [(run.name, run.status, run.cell) for run in ended] == [
        ("a_good", "ok", 0),
        ("b_raises", "failed", 5),  # title, parameters, note, save, the cell that raises
        ("c_sleeps", "timed out", 4),
        ("d_again", "ok", 0),
        ("e_dies", "died", 4),
        ("f_good", "ok", 0),
    ]
    assert ended[1].message == "KeyError: 'missing'"
    for stem in ("a_good", "d_again", "f_good"):
        assert read_result(tmp_path / "results" / stem)["notebook"] == stem
    counted = [name for name, _ in starts(tmp_path)]
    assert counted == ["a_good", "b_raises", "c_sleeps", "d_again", "d_again", "e_dies", "f_good"]
    assert {gpu for _, gpu in starts(tmp_path)} == {"0", "1"}  # each run saw exactly one GPU
    assert queue() == []


@real
@pytest.mark.notebook
def test_stop_cancels_the_array_and_leaves_no_process(cluster, tmp_path):
    runs = make_runs(tmp_path, a_sleeps=[SLEEP], b_waits=[SAVE], c_waits=[SAVE])
    stop = Stop()
    pid = tmp_path / "notebooks" / "pid"
    setter = threading.Thread(target=lambda: (wait_for(pid), setattr(stop, "reason", "enough")))
    setter.start()
    ended = run_all(runs, timeout_s=600, options=SlurmOptions(parallel=1), stop=stop)
    setter.join()
    assert [(run.status, run.message) for run in ended] == [
        ("interrupted", ""),
        ("interrupted", "cancelled in Slurm's queue"),
        ("interrupted", "cancelled in Slurm's queue"),
    ]
    end = time.monotonic() + 10
    while not is_gone(pid) and time.monotonic() < end:  # ended, but perhaps not yet buried by its parent
        time.sleep(0.1)
    assert is_gone(pid) and queue() == [] and [name for name, _ in starts(tmp_path)] == ["a_sleeps"]


@real
@pytest.mark.notebook
def test_a_job_killed_from_outside_died_and_nothing_else_did(cluster, tmp_path):
    find = "import psutil; jobs = [p.pid for p in psutil.Process().parents() if 'submitit' in ' '.join(p.cmdline())]\n"
    kill = find + "import os, signal; os.kill(jobs[0], signal.SIGKILL); import time; time.sleep(5)"
    runs = make_runs(tmp_path, a_killed=[kill], b_good=[SAVE])
    ended = run_all(runs, timeout_s=600, options=SlurmOptions())
    assert [(run.status, run.message) for run in ended] == [("died", "Slurm ended its job as FAILED"), ("ok", "")]


@real
def test_a_folder_that_slurm_still_works_on_is_not_given_to_it_twice(cluster, tmp_path):
    (run,) = make_runs(tmp_path, a=[SAVE])
    name = f"mmchar-{slurm.checksum(str(tmp_path / 'results').encode())[:8]}"
    out = subprocess.run(
        ["sbatch", "--parsable", "--hold", "-J", name, "--wrap", "true"], capture_output=True, text=True
    )
    with pytest.raises(ValueError, match=f"still works on 'results' .job {out.stdout.strip()}.: wait for it") as caught:
        run_all([run], timeout_s=60, options=SlurmOptions())
    one_line(caught)
    subprocess.run(["scancel", out.stdout.strip()], check=True)
    assert not (tmp_path / "results").exists()


@real
@pytest.mark.parametrize(
    "options", [SlurmOptions("nowhere"), SlurmOptions(gres="gpu:9"), SlurmOptions(gres="gpu:h100:1")]
)
def test_what_slurm_refuses_is_one_line(cluster, tmp_path, options, capsys):
    with pytest.raises(ValueError, match="Slurm refuses the batch: .*(artition|node|gres)") as caught:
        run_all(make_runs(tmp_path, a=[SAVE], b=[SAVE]), timeout_s=60, options=options)
    assert capsys.readouterr().err == "" and "error:" not in one_line(caught) and queue() == []


@real
def test_nothing_of_it_listens_beyond_this_machine(cluster):
    import psutil

    daemons = [p for p in psutil.process_iter(["name"]) if p.info["name"] in ("munged", "slurmctld", "slurmd")]
    listening = [c.laddr.ip for p in daemons for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 2 and set(listening) == {"127.0.0.1"}


@real
def test_slurm_stops_when_its_input_ends(tmp_path):
    process = subprocess.Popen(
        [str(START), str(tmp_path), str(_free_ports())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.close()
    assert process.wait(30) == 0
    assert not [path.name for path in tmp_path.glob("*.pid") if path.read_text().strip()]


# without a Slurm


@pytest.fixture
def pretended(monkeypatch):
    """A Slurm whose answers are given; returns the batches that it was sent and the states to end them with."""
    sent, states = [], []

    def submit(runs, name, folder, timeout_s, options):
        sent.append([run.notebook.stem for run, _ in runs])
        return [f"7_{n}" for n in range(len(runs))]

    monkeypatch.setattr(slurm, "check_slurm", lambda: None)
    monkeypatch.setattr(slurm, "_ask", lambda *command: (0, "", ""))
    monkeypatch.setattr(slurm, "_submit", submit)
    monkeypatch.setattr(slurm, "_wait", lambda jobs, stop: dict(zip(jobs, states.pop(0), strict=True)))
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    return sent, states


def test_what_was_preempted_is_sent_again_a_bounded_number_of_times(pretended, tmp_path):
    sent, states = pretended
    runs = [Run(Path(f"{name}.ipynb"), tmp_path / name, {}) for name in ("a", "b", "c")]
    states += [["NODE_FAIL", "PREEMPTED", "PREEMPTED"], ["CANCELLED", "PREEMPTED"], ["PREEMPTED"], ["PREEMPTED"]]
    ended = run_all(runs, timeout_s=60, options=SlurmOptions())
    assert sent == [["a", "b", "c"], ["b", "c"], ["c"], ["c"]] and not states
    assert [(run.status, run.message) for run in ended] == [
        ("died", "Slurm ended its job as NODE_FAIL"),
        ("interrupted", "cancelled in Slurm's queue"),
        ("died", "Slurm ended its job as PREEMPTED"),
    ]


def test_a_job_sent_back_to_the_queue_does_not_repeat_a_good_run_nor_start_for_ever(tmp_path, monkeypatch):
    run, ended, calls = Run(Path("a.ipynb"), tmp_path / "a", {}), tmp_path / "0.json", []

    def pretend(notebook, *_, stop, **__):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # Slurm takes the node away
            return RunStatus("a", "died", 1.0, 3, "the kernel was killed")
        return RunStatus("a", "ok", 1.0)

    monkeypatch.setattr(batch, "run_notebook", pretend)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        slurm._job(run, 60, ended)
        assert slurm._read_ended(ended) == RunStatus("a", "interrupted", 1.0, 3, "")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
        slurm._job(run, 60, ended)
        assert slurm._read_ended(ended).message == "started again 4 times, never to its end" and len(calls) == 1
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        slurm._job(run, 60, ended)
        slurm._job(run, 60, ended)
        assert slurm._read_ended(ended).status == "ok" and len(calls) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partition": ""}, "partition = '' is no name"),
        ({"partition": "a b"}, "partition = 'a b' is no name"),
        ({"partition": "--wrap=x"}, "is no name of a partition"),
        ({"time_limit_min": 0}, "time_limit_min = 0 is not a whole number"),
        ({"time_limit_min": 1.5}, "time_limit_min = 1.5 is not a whole number"),
        ({"parallel": -1}, "parallel = -1 is not"),
        ({"parallel": True}, "parallel = True is not"),
        ({"gres": "gpu:0"}, "gres = 'gpu:0' names no whole GPUs; give gpu:1"),
        ({"gres": "shard:1"}, "names no whole GPUs"),
        ({"gres": "gpu:1\n#SBATCH --uid=0"}, "names no whole GPUs"),
        ({"gres": ""}, "names no whole GPUs"),
    ],
)
def test_bad_options_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        SlurmOptions(**given)
    one_line(caught)


def test_a_run_ends_itself_before_slurm_would():
    assert SlurmOptions().limits(1800) == (31, 1800)
    assert SlurmOptions(time_limit_min=10).limits(1800) == (10, 570)
    assert SlurmOptions(time_limit_min=60).limits(1800) == (60, 1800)


def test_no_slurm_or_no_submitit_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="submitit is not installed; pip install submitit"):
        run_all([], timeout_s=1, options=SlurmOptions())
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no Slurm here .sbatch is not found.; use a cluster's login node") as caught:
        run_all([], timeout_s=1, options=SlurmOptions())
    one_line(caught)


def test_jobs_run_from_no_folder_that_others_can_write_to(pretended, tmp_path):
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm").chmod(0o777)
    with pytest.raises(ValueError, match="others can write to .*from which jobs run") as caught:
        run_all([Run(Path("a.ipynb"), tmp_path / "a", {})], timeout_s=60, options=SlurmOptions())
    one_line(caught)
    assert pretended[0] == []


def test_loading_it_does_not_load_submitit():
    code = "import sys, mmchar.runs.slurm; raise SystemExit('submitit' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@real
@pytest.mark.notebook
def test_a_study_on_the_cluster_from_the_shell(cluster, tmp_path, monkeypatch, capsys):
    make_runs(tmp_path, **{"01_good": [SAVE], "02_raises": ["{}['missing']"]})
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--slurm", "--partition", "short", "--time-limit", "5", "--gres", "gpu:1"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:2] == ["01_good", "ok"] and out[2].split()[:2] == ["02_raises", "failed"]
    assert "cell 4: KeyError: 'missing'" in out[2] and "1 of 2 runs ok" in out[3]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--slurm", "--gres", "gpu:none:0"], "gres = 'gpu:none:0' names no whole GPUs"),
        (["--slurm", "--time-limit", "1h"], "argument --time-limit: '1h' is not a whole number"),
        (["--gres", "gpu:1"], "--gres says what to ask of Slurm; add --slurm, or leave it out"),
        (["--time-limit", "5"], "--time-limit says what to ask of Slurm"),
        (["--slurm"], "no Slurm here (sbatch is not found)"),
    ],
)
def test_bad_slurm_options_at_the_shell_are_one_line(argv, line, monkeypatch, capsys):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert main(["study", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mmchar: ") and err.count("\n") == 1 and line in err
