"""A campaign: the most valuable first, never past its budget, every point a row, and what is measured is kept."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from samples import break_stage, files_in, one_line

from mmchar import locks
from mmchar.cli.main import main
from mmchar.runs.campaign import campaign
from mmchar.runs.campaign.campaign import exit_code, list_campaign, run_campaign
from mmchar.runs.campaign.grids import read_grid
from mmchar.runs.campaign.measured import read_measured, stage_points, write_point
from mmchar.runs.campaign.worker import expect_point, measure_point, start_worker
from mmchar.runs.own_process import OwnProcess, ProcessDied

TINY = "about: t\ndefaults: {tiny: true, samples: 1}\npoints:\n"
CLIP = "  - {model: clip-vit-l-14, value: 9}\n"
MACHINE = {
    "hardware": {"cpu": "cpu A", "cuda": "no GPU"},
    "capability": None,
    "memory_bytes": {"cpu": 10**9, "cuda": None},
    "versions": {"torch": "1"},
}


def grid(tmp_path, points):
    path = tmp_path / "grid.yaml"
    path.write_text(TINY + points)
    return path


class Clock:
    """Seconds that pass only while a worker works."""

    now = 0.0

    def __call__(self):
        return self.now


class Scripted:
    """A worker whose points take as long as told and fail as told; starting takes 10 s."""

    def __init__(self, clock, costs, fail=None):
        self.clock, self.costs, self.fail = clock, costs, fail or {}
        self.measured, self.started, self.left, self.since, self.tight = [], 0, 10.0, 0, None

    def start(self, _device):
        self.started, self.since = self.started + 1, 0
        self.order, self.left = None, 10.0
        return self

    def ask(self, order):
        batch = order[1].request.get("batch", 1)
        self.order, self.left = order, self.costs.get(batch, 1.0) if order[0] is measure_point else 0.0
        if order[0] is measure_point:
            self.measured.append(batch)
            self.since += 1

    def answer(self, wait_s):
        spent = min(wait_s, self.left)
        self.clock.now, self.left = self.clock.now + spent, self.left - spent
        if self.left > 0:
            return None
        if self.order is None:
            return dict(MACHINE)
        if self.order[0] is expect_point:
            tight = self.order[1].request.get("batch", 1) == self.tight and self.since > 0
            skipped = {"status": "skipped", "reason": "1 GB free"} if tight else {"status": "", "reason": ""}
            return {"expect_s": 1.0, **skipped, "tight": tight}
        return self.result()

    def result(self):
        _, point, out, row = self.order
        what = self.fail.get(point.request.get("batch", 1), "ok")
        if callable(what):
            what = what()
        if what == "died":
            raise ProcessDied("the worker ended (signal SIGKILL)")
        row = {**row, "status": what, "reason": "" if what == "ok" else "broken", "facts": {}}
        write_point(out, {**row, "took_s": 1.0})
        keep = {"id": row["id"], "status": what, "reason": row["reason"], "took_s": 1.0}
        return {**keep, "median_s": {}, "doubts": 0, "again": what == "ok"}

    def close(self):
        pass


def batches(*values, expect=None):
    more = f", expect_s: {expect}" if expect else ""
    return "".join(f"  - {{model: llama-2-7b, request: {{batch: {n}}}, value: {100 - n}{more}}}\n" for n in values)


def scripted(tmp_path, points, *, costs=None, fail=None, tight=None, budget_s=100.0, out="out", **options):
    clock = Clock()
    worker = Scripted(clock, costs or {}, fail)
    worker.tight = tight
    rows = run_campaign(
        grid(tmp_path, points),
        tmp_path / out,
        budget_s=budget_s,
        clock=clock,
        start=worker.start,
        **options,
    )
    return rows, worker, clock


def statuses(rows):
    return {row["asked"]["request"].get("batch", 1): row["status"] for row in rows}


def test_the_most_valuable_first_and_none_that_does_not_fit_the_budget(tmp_path):
    costs = {1: 20.0, 2: 20.0, 3: 20.0, 4: 20.0}
    rows, worker, clock = scripted(tmp_path, batches(4, 3, 2, 1, expect=20), costs=costs, budget_s=70)
    # 10 s to start, 5 s kept for packing: two points of 20 s fit into 70 s, a third would end at 75
    assert worker.measured == [1, 2]
    assert statuses(rows) == {1: "ok", 2: "ok", 3: "not reached", 4: "not reached"}
    assert "expected 20 s, and 15 s were left" in rows[2]["reason"]
    assert clock.now <= 70 and exit_code(rows) == 0


def test_a_small_point_is_measured_where_a_valuable_one_does_not_fit(tmp_path):
    points = batches(1, expect=500) + batches(2, expect=5)
    rows, worker, _ = scripted(tmp_path, points, costs={2: 5.0})
    assert worker.measured == [2] and statuses(rows) == {1: "not reached", 2: "ok"}


def test_expectations_follow_what_points_took(tmp_path):
    # expected 10 s, took 30: the factor of 3 makes the next expected 30 s, which is more than the 25 s left
    rows, worker, _ = scripted(tmp_path, batches(1, 2, expect=10), costs={1: 30.0, 2: 30.0}, budget_s=70)
    assert worker.measured == [1]
    assert "expected 30 s" in rows[1]["reason"]


def test_a_point_that_takes_longer_than_expected_is_stopped_in_time_and_started_only_where_it_fits(tmp_path):
    rows, worker, clock = scripted(tmp_path, batches(1, 2, expect=10), costs={1: 900.0}, budget_s=60)
    assert clock.now <= 60 and worker.measured == [1]
    assert statuses(rows) == {1: "not reached", 2: "not reached"}
    assert "stopped at the end of the budget after 45 s" in rows[0]["reason"]
    rows, worker, _ = scripted(tmp_path, batches(1, 2, expect=10), costs={1: 900.0}, budget_s=60)
    assert worker.measured == [2] and "expected 68 s" in rows[0]["reason"]  # 1.5 * 45


def test_what_is_there_is_not_measured_again_here_or_elsewhere(tmp_path):
    scripted(tmp_path, batches(1, 2))
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3))
    assert worker.measured == [3] and set(statuses(rows).values()) == {"ok"}
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3), out="other", have=[tmp_path / "out"])
    assert worker.measured == [] and set(statuses(rows).values()) == {"ok"}


def test_a_worker_that_dies_is_a_row_and_the_campaign_goes_on(tmp_path):
    rows, worker, _ = scripted(tmp_path, batches(1, 2), fail={1: "died"})
    assert statuses(rows) == {1: "died", 2: "ok"} and worker.started == 2
    assert "SIGKILL" in rows[0]["reason"] and exit_code(rows) == 1
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3), fail={1: "died"})
    assert worker.measured == [3, 1]  # its second attempt comes after what was never tried
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3))
    assert worker.measured == [] and statuses(rows)[1] == "died"
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3), retry=True)
    assert worker.measured == [1] and statuses(rows)[1] == "ok"


def test_a_failed_kernel_gets_a_new_worker(tmp_path):
    rows, worker, _ = scripted(tmp_path, batches(1, 2), fail={1: "failed"})
    assert statuses(rows) == {1: "failed", 2: "ok"} and worker.started == 2


def test_a_worker_is_started_only_where_a_point_needs_one(tmp_path):
    rows, worker, _ = scripted(tmp_path, batches(1, 2), fail={1: "failed", 2: "failed"})
    assert worker.started == 2, "none after the last point"


def test_a_worker_that_cannot_be_started_again_ends_the_campaign_with_its_rows(tmp_path):
    clock, once = Clock(), []

    def start(device):
        if once:
            raise ValueError("nothing can be measured here: the worker said nothing for 120 s")
        once.append(device)
        return Scripted(clock, {}, {1: "failed"}).start(device)

    rows = run_campaign(grid(tmp_path, batches(1, 2)), tmp_path / "out", budget_s=99, clock=clock, start=start)
    assert statuses(rows) == {1: "failed", 2: "not reached"} and exit_code(rows) == 1
    assert "nothing can be measured" in rows[1]["reason"]


def test_a_point_measured_in_part_is_kept_and_made_again_only_with_retry(tmp_path):
    rows, worker, _ = scripted(tmp_path, batches(1), fail={1: "partial"})
    assert statuses(rows) == {1: "partial"} and exit_code(rows) == 1
    assert scripted(tmp_path, batches(1))[1].measured == []
    assert scripted(tmp_path, batches(1), retry=True)[1].measured == [1]


def test_a_stage_that_fails_costs_no_other_stage(tmp_path, monkeypatch):
    break_stage(monkeypatch, "encode_text", RuntimeError("no graph\nof it"))
    (point,) = read_grid(grid(tmp_path, CLIP))
    row = {"id": "one", "reason": "", "asked": point.asked(), "attempts": 1, "facts": {}, "expect_s": 1.0}
    answer = measure_point(point, str(tmp_path), row)
    assert (answer["status"], answer["reason"]) == ("partial", "encode_text: RuntimeError: no graph of it")
    points, rows = read_measured(tmp_path)
    assert points["status"].tolist() == ["partial"] and points["time_s"].isna().all()
    assert set(stage_points(points)["stage"]) == set(rows["stage"]) == {"encode_image"}
    assert points["facts"][0]["generation"]["rest_s"] is None, "of a whole without all its stages"


def test_memory_that_a_worker_still_holds_is_had_by_a_new_one(tmp_path):
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3), tight=2)
    assert set(statuses(rows).values()) == {"ok"} and worker.started == 2
    rows, worker, _ = scripted(tmp_path, batches(2), tight=2, out="other")
    assert worker.started == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_campaign_keeps_its_rows_and_goes_on_later(tmp_path, number):
    def interrupt():
        os.kill(os.getpid(), number)
        return "ok"

    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3), fail={2: interrupt})
    assert worker.measured == [1, 2] and exit_code(rows) == 130
    assert statuses(rows) == {1: "ok", 2: "ok", 3: "not reached"}
    assert number.name in rows[2]["reason"]
    assert "run.json" in files_in(tmp_path / "out")
    rows, worker, _ = scripted(tmp_path, batches(1, 2, 3))
    assert worker.measured == [3]


def test_a_full_disk_stops_the_campaign_and_keeps_what_is_there(tmp_path, monkeypatch):
    real, full = campaign.pack, OSError(errno.ENOSPC, "No space left on device")

    def no_space(*_args):
        raise full

    monkeypatch.setattr(campaign, "pack", no_space)
    rows, _, _ = scripted(tmp_path, batches(1, 2))
    assert set(statuses(rows).values()) == {"ok"}
    assert len(files_in(tmp_path / "out" / "points")) == 2
    monkeypatch.setattr(campaign, "pack", real)
    monkeypatch.setattr(campaign, "write_point", no_space)
    points = batches(1, 2) + batches(7, expect=900) + batches(8)
    rows, worker, _ = scripted(tmp_path, points)
    assert worker.measured == [] and statuses(rows)[8] == "not reached"
    assert "No space left" in rows[-1]["reason"] and exit_code(rows) == 1
    monkeypatch.undo()
    rows, worker, _ = scripted(tmp_path, points)
    assert worker.measured == [8]


def test_a_damaged_result_is_set_aside_and_measured_again(tmp_path):
    scripted(tmp_path, batches(1, 2))
    run = tmp_path / "out" / "run.json"
    run.write_text(run.read_text()[:-40])
    rows, worker, _ = scripted(tmp_path, batches(1, 2))
    assert worker.measured == [1, 2] and set(statuses(rows).values()) == {"ok"}
    assert list((tmp_path / "out").glob("run.json.damaged-*"))


def test_what_cannot_be_measured_here_is_skipped_with_its_reason(tmp_path):
    points = "  - {model: llama-2-7b, tiny: false, value: 2}\n  - {model: llama-2-7b, device: cuda, value: 1}\n"
    rows, worker, _ = scripted(tmp_path, points)
    assert [row["status"] for row in rows] == ["skipped", "skipped"] and worker.measured == []
    assert "27 GB in float32, and cpu has 1 GB" in rows[0]["reason"]  # 6.74 B parameters * 4 bytes
    assert "no CUDA GPU" in rows[1]["reason"] and exit_code(rows) == 0


@pytest.mark.parametrize(("budget", "says"), [(3, "too short"), (-1, "too short")])
def test_a_budget_that_is_no_budget_is_refused(tmp_path, budget, says):
    with pytest.raises(ValueError, match=says):
        scripted(tmp_path, batches(1), budget_s=budget)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError) as caught:
        scripted(tmp_path, batches(1))
    assert "cannot write" in one_line(caught)


def test_two_campaigns_of_one_folder_do_not_run_at_once(tmp_path):
    with locks.held(locks.run_lock(tmp_path / "out")):
        code = f"from mmchar.runs.campaign.campaign import *; run_campaign({str(grid(tmp_path, CLIP))!r}, "
        code += f"{str(tmp_path / 'out')!r}, budget_s=99)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "another campaign works on" in done.stderr.splitlines()[-1]


def limited(limit, size):
    """What starts a worker and then limits a resource of it to what it has and so many bytes."""

    def start(device):
        worker = start_worker(device)
        answer = worker.answer(120)
        used = 0
        if limit == resource.RLIMIT_AS:
            with open(f"/proc/{worker.pid}/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
        resource.prlimit(worker.pid, limit, (used + size, used + size))
        kept = [answer]
        real = worker.answer
        worker.answer = lambda wait_s: kept.pop() if kept else real(wait_s)
        return worker

    return start


def test_out_of_memory_is_a_row_and_the_next_point_runs_in_the_same_process(tmp_path):
    points = "  - {model: stable-diffusion-1.5, request: {batch: 384}, stages: decode_image, value: 9}\n"
    points += "  - {model: clip-vit-l-14, value: 8}\n"
    start = limited(resource.RLIMIT_AS, 2000 << 20)  # libraries and threads that come later take up to 1 GB of it
    rows = run_campaign(grid(tmp_path, points), tmp_path / "out", budget_s=200, start=start)
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert "memory" in rows[0]["reason"]


def test_a_result_that_cannot_be_written_stops_the_campaign(tmp_path):
    start = limited(resource.RLIMIT_FSIZE, 2000)
    two = CLIP + "  - {model: llama-2-7b, value: 8}\n"
    rows = run_campaign(grid(tmp_path, two), tmp_path / "out", budget_s=200, start=start)
    assert [row["status"] for row in rows] == ["failed", "not reached"]
    assert "could not be written" in rows[0]["reason"] and exit_code(rows) == 1


def test_a_killed_worker_says_how_it_ended():
    worker = start_worker("cpu")
    assert worker.answer(120)["hardware"]["cuda"] == "no GPU"
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ProcessDied, match="signal SIGKILL"):
        worker.ask((measure_point, None, "", {}))
        worker.answer(60)
    worker.close()


def leave_a_child(pipe):
    subprocess.Popen(["sleep", "60"], pass_fds=(pipe.fileno(),))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_is_dead_also_where_its_children_hold_the_pipe_open():
    process = OwnProcess(leave_a_child)
    with pytest.raises(ProcessDied, match="signal SIGKILL"):
        process.answer(60)
    process.close()


def test_the_shell_measures_resumes_and_lists(tmp_path, capsys):
    path, out = str(grid(tmp_path, CLIP)), str(tmp_path / "out")
    assert main(["measure", "--grid", path, "--out", out, "--budget", "100", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["statuses"] == {"ok": 1}
    points, rows = read_measured(out)
    assert points["model"].tolist() == ["clip-vit-l-14"]
    assert set(stage_points(points)["stage"]) == {"encode_image", "encode_text"}
    rest_s = points["facts"][0]["generation"]["rest_s"]  # of scores and of what the host does between the networks
    assert set(rows["stage"]) == {"encode_image", "encode_text", *(["pipeline"] if rest_s > 0 else [])}
    assert (rows["time_kind"] == "measured").all()
    assert len(files_in(tmp_path / "out")) == 2
    assert main(["measure", "--grid", path, "--out", out, "--list"]) == 0
    assert "0 of 1 points are missing" in capsys.readouterr().out
    assert main(["measure", "--grid", path, "--out", out, "--budget", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == first["points"]


def test_a_list_says_what_is_missing_what_it_costs_and_what_is_skipped(tmp_path):
    points = "  - {model: llama-2-7b, value: 2}\n  - {model: llama-2-7b, device: cuda, value: 1}\n"
    missing, skipped = list_campaign(grid(tmp_path, points))
    assert missing["state"] == "missing" and missing["expect_s"] > 0 and missing["need_bytes"] > 0
    assert skipped["state"] == "skipped" and "GPU" in skipped["reason"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["measure"], "needs a MODEL"),
        (["measure", "llama-2-7b", "--budget", "9"], "--budget goes with --grid"),
        (["measure", "--grid", "{grid}"], "needs --out"),
        (["measure", "--grid", "{grid}", "--dtype", "float32"], "--dtype does not go with --grid"),
        (["measure", "llama-2-7b", "--grid", "{grid}"], "a model does not go with --grid"),
        (["measure", "--grid", "{grid}", "--budget", "soon"], "'soon' is not a number of seconds"),
        (["measure", "--grid", "{grid}", "--budget", "0"], "seconds above 0"),
        (["measure", "--grid", "none.yaml", "--out", "x"], "cannot read the grid none.yaml"),
        (["measure", "--pack"], "needs --out"),
        (["measure", "--ceilings", "--pack"], "--pack does not go with --ceilings"),
    ],
)
def test_the_shell_refuses_in_one_line(tmp_path, capsys, argv, says):
    path = str(grid(tmp_path, CLIP))
    assert main([path if arg == "{grid}" else arg for arg in argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_worker_ends_with_its_campaign(tmp_path):
    code = "import time; from mmchar.runs.campaign.worker import start_worker\n"
    code += "w = start_worker('cpu'); w.answer(120); print(w.pid, flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code + "; time.sleep(600)"], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    import psutil

    assert psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)[1] == []
