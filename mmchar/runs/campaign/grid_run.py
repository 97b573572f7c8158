"""A campaign: what is missing of a grid is measured, the most valuable first, until its budget of seconds is spent.

Every point gets a row. What was measured before is kept whatever happens, and the next start goes on from there, on
this machine or another.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchar.provenance import provenance
from mmchar.runs.campaign import expected
from mmchar.runs.campaign.grids import Point, identity, read_grid
from mmchar.runs.campaign.measured import MEASURED, pack, set_aside, write_point
from mmchar.runs.campaign.plan import NO_WORKER, START_S, device_of, hear, known_rows, split_missing
from mmchar.runs.campaign.worker import Worker, WorkerDied, order

PACK_S = 5.0  # kept back for writing the packed files
_TICK_S = 0.2
_UNWRITTEN = "cannot write results"
_LONGER = 1.5  # a point that was stopped at the end of a budget is expected to take this much longer than it got


@dataclass
class _State:
    """What a campaign knows so far."""

    out: Path
    ends_s: float
    clock: Callable[[], float]
    start: Callable[[str], Any]
    device: str
    say: Callable[[str], None]
    have: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    guessed_s: dict[str, list[float]] = field(default_factory=lambda: {"cpu": [], "cuda": []})
    took_s: dict[str, list[float]] = field(default_factory=lambda: {"cpu": [], "cuda": []})
    machine: dict[str, Any] = field(default_factory=dict)
    worker: Any = None
    used: bool = False  # whether this worker has measured a point
    stopped: str = ""

    def left_s(self) -> float:
        return self.ends_s - self.clock()


def run_campaign(
    grid: str | Path,
    out: str | Path,
    *,
    budget_s: float,
    have: Sequence[str | Path] = (),
    retry: bool = False,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
    start: Callable[[str], Any] = Worker,
) -> list[dict[str, Any]]:
    """The rows of all points of a grid: ok, partial, failed, died, skipped or not reached, each with its reason.

    Parameters
    ----------
    grid : str or Path
        A grid file, see `grids.read_grid`.
    out : str or Path
        Folder of results; what is measured there already is not measured again. At the end it is packed.
    budget_s : float
        Seconds for everything, loading and packing included. A point that does not fit into what is left is not
        started; one that takes longer than expected is stopped at the end.
    have : sequence of str or Path
        More folders of results whose points are not measured again.
    retry : bool
        Measure points again that failed twice.
    clock, start
        For tests: the clock, in seconds, and what starts a worker for a device.

    Raises
    ------
    ValueError
        A bad grid, budget or folder, before anything is measured.
    """
    began = clock()
    points = _readied(grid, out, budget_s)
    say = _sayer(progress)
    for line in set_aside(out):
        say(f"{line}; set aside, what is missing is measured again")
    state = _State(Path(out), began + budget_s - PACK_S, clock, start, device_of(points), say, known_rows(out, have))
    with _stops(state), _bar(len(points), progress) as bar:
        try:
            _start_worker(state)
            state.rows, queue = split_missing(points, state.machine, state.have, retry=retry)
            bar.update(len(points) - len(queue))
            for name, point in queue:
                _one(name, point, state)
                _tell(name, point, state)
                bar.update()
        finally:
            _end_worker(state)
            _finish(points, state)
    return [state.rows[name] for name in state.rows]


def exit_code(rows: list[dict[str, Any]]) -> int:
    """0 where nothing failed (what did not fit the machine or the budget is no failure), 130 if interrupted, else 1."""
    if any(row["reason"].startswith("interrupted") for row in rows):
        return 130
    bad = (_UNWRITTEN, NO_WORKER)
    return int(any(row["status"] in ("failed", "died", "partial") or row["reason"].startswith(bad) for row in rows))


def _readied(grid: str | Path, out: str | Path, budget_s: float) -> list[Point]:
    points = read_grid(grid)
    if not budget_s > PACK_S:
        raise ValueError(f"a budget of {budget_s:g} s is too short; give more than {PACK_S:g}")
    try:
        (Path(out) / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    return points


def _one(name: str, point: Point, state: _State) -> None:
    """Measure one point, or say why not; its row is in the state and on disk afterwards."""
    before = state.have.get(name, {})
    row = _new_row(name, point, state)
    reason = expected.why_skipped(point, state.machine)
    if reason:
        _keep(state, {**row, "status": "skipped", "reason": reason})
        return
    try:
        if _fits(name, point, state, row):
            _measured(point, state, row)
    except WorkerDied as died:
        tried = before.get("attempts", 0) + 1
        _keep(state, {**row, "status": "died", "reason": str(died), "attempts": tried})
        _end_worker(state)


def _new_row(name: str, point: Point, state: _State) -> dict[str, Any]:
    """The row of a point before anything is known but what it asks for, and what earlier starts came to."""
    before = state.have.get(name, {})
    return {
        "id": name,
        "reason": "",
        "asked": point.asked(),
        "hardware": state.machine["hardware"][point.device],
        "versions": state.machine["versions"],
        "value": point.value,
        "expect_s": point.expect_s,
        "took_s": before.get("took_s"),
        "attempts": before.get("attempts", 0),
        "facts": {},
    }


def _fits(name: str, point: Point, state: _State, row: dict[str, Any]) -> bool:
    """Whether a point can be measured in the time that is left; if not, its row says why. Sets ``expect_s``."""
    factor = expected.correction(state.guessed_s[point.device], state.took_s[point.device])
    least = _LONGER * (row["took_s"] or 0.0) if state.have.get(name, {}).get("status") == "not reached" else 0.0
    if _too_long(state, row, max(least, (row["expect_s"] or 0.0) * factor)):
        return False
    guess = _guess(point, state)
    if guess is not None and guess.get("tight") and state.used:  # by what was measured before, perhaps
        _end_worker(state)
        guess = _guess(point, state)
    if guess is None:
        _not_reached(state, row, state.stopped or "the budget ended while it was counted")
        _end_worker(state)
        return False
    if guess.get("failed") or guess["skip"]:
        status = "skipped" if guess["skip"] else "failed"
        _keep(
            state,
            {**row, "status": status, "reason": guess["skip"] or guess["failed"], "attempts": row["attempts"] + 1},
        )
        return False
    row["expect_s"] = row["expect_s"] or guess["expect_s"]
    return not _too_long(state, row, max(least, row["expect_s"] * factor))


def _guess(point: Point, state: _State) -> dict[str, Any] | None:
    if state.worker is None:
        try:
            _start_worker(state)
        except ValueError as error:
            state.stopped = str(error)
            return None
    state.worker.ask(order("expect", point))
    return _wait(state)


def _too_long(state: _State, row: dict[str, Any], expect_s: float) -> bool:
    left = state.left_s()
    if not state.stopped and left > 0 and expect_s <= left:
        return False
    _not_reached(state, row, state.stopped or f"expected {expect_s:.0f} s, and {max(left, 0):.0f} s were left")
    return True


def _measured(point: Point, state: _State, row: dict[str, Any]) -> None:
    started = state.clock()
    row["attempts"] += 1
    state.used = True
    state.worker.ask(order("measure", point, out=str(state.out), row={**row, "made_by": _made_by(state)}))
    answer = _wait(state)
    took = round(state.clock() - started, 3)
    if answer is None:
        why = state.stopped or f"stopped at the end of the budget after {took:.0f} s"
        _not_reached(
            state, {**row, "took_s": took if not state.stopped else None, "attempts": row["attempts"] - 1}, why
        )
        _end_worker(state)
        return
    state.rows[row["id"]] = {**row, **answer}
    if answer["status"] == "ok":
        state.guessed_s[point.device].append(row["expect_s"])
        state.took_s[point.device].append(took)
    if answer.get("unwritten"):
        state.stopped = answer["reason"]
    if not answer["again"]:
        _end_worker(state)


def _wait(state: _State) -> dict[str, Any] | None:
    """The worker's answer; None when the budget has ended, or the campaign was told to stop."""
    while not state.stopped and state.left_s() > 0:
        answer = state.worker.answer(min(_TICK_S, max(state.left_s(), 0.01)))
        if answer is not None:
            return answer
    return None


def _start_worker(state: _State) -> None:
    state.worker, state.used = state.start(state.device), False
    machine = hear(state.worker, min(START_S, max(state.left_s(), 1.0)))
    state.machine = state.machine or machine


def _end_worker(state: _State) -> None:
    """End the worker; the next point that needs one starts another."""
    if state.worker is not None:
        state.worker.close()
    state.worker = None


def _made_by(state: _State) -> dict[str, Any]:
    if "made_by" not in state.machine:
        state.machine["made_by"] = {key: value for key, value in provenance().items() if key != "utc"}
    return state.machine["made_by"]


def _not_reached(state: _State, row: dict[str, Any], reason: str) -> None:
    _keep(state, {**row, "status": "not reached", "reason": reason})


def _keep(state: _State, row: dict[str, Any]) -> None:
    state.rows[row["id"]] = row
    try:
        write_point(state.out, row)
    except OSError as error:
        state.stopped = f"{_UNWRITTEN}: {error.strerror or error}"


def _finish(points: list[Point], state: _State) -> None:
    """Rows for what was not reached, and the packed files; what cannot be packed stays as it is."""
    if state.machine:
        for point in points:
            name = identity(point, state.machine["hardware"][point.device], state.machine["versions"])
            if name not in state.rows:
                _one_left(name, point, state)
    try:
        left = pack(state.out)
    except OSError as error:
        state.say(f"not packed ({error.strerror or error}); the results stay under {state.out.name}/points")
        return
    if left:
        state.say(f"{len(left)} points did not fit the packed files; they stay under {state.out.name}/points")


def _one_left(name: str, point: Point, state: _State) -> None:
    before = state.have.get(name)
    if before is not None and before["status"] != "not reached":
        state.rows[name] = before  # it failed before, and its second attempt is still to come
    else:
        _not_reached(state, _new_row(name, point, state), state.stopped or "the campaign ended before")


def _tell(name: str, point: Point, state: _State) -> None:
    row = state.rows[name]
    what = row["reason"]
    if row["status"] in MEASURED:
        stages = ", ".join(f"{stage} {seconds:.4g} s" for stage, seconds in row["median_s"].items())
        what = stages + (f" ({row['doubts']} doubts)" if row["doubts"] else "") + (f"; {what}" if what else "")
    state.say(f"{row['status']:<11}  {point.title()}: {what}")


def _sayer(progress: bool) -> Callable[[str], None]:
    from tqdm import tqdm

    return lambda line: tqdm.write(line, file=sys.stderr) if progress else None


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="campaign", unit="point", file=sys.stderr, disable=not progress)


@contextmanager
def _stops(state: _State) -> Iterator[None]:
    """Ctrl-C, or an end that the system asks for, stops the campaign at its next tick; its rows are kept."""

    def stop(number: int, _frame: Any) -> None:
        state.stopped = f"interrupted ({signal.Signals(number).name})"

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many points have each status."""
    return dict(Counter(row["status"] for row in rows))
