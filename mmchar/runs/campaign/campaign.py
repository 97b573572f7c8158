"""A campaign: what is missing of a grid is measured, the most valuable first, until its budget of seconds is spent.

Every point gets a row. What was measured before is kept whatever happens, and the next start goes on from there, on
this machine or another.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchar.locks import held, run_lock
from mmchar.provenance import provenance
from mmchar.runs.campaign.expected import correction, why_skipped
from mmchar.runs.campaign.grids import Point, identity, read_grid
from mmchar.runs.campaign.measured import MEASURED, load_points, pack, set_aside, write_point
from mmchar.runs.campaign.worker import expect_point, measure_point, start_worker
from mmchar.runs.engine import Stop, run_all
from mmchar.runs.own_process import ProcessDied

NO_WORKER = "nothing can be measured here"
UNWRITTEN = "cannot write results"
PACK_S = 5.0  # kept back for writing the packed files
START_S = 120.0  # for a worker to load PyTorch
ATTEMPTS = 2  # a point that failed is tried once more, after all others; then only with retry
_LONGER = 1.5  # a point that was stopped at the end of a budget is expected to take this much longer than it got


def run_campaign(
    grid: str | Path,
    out: str | Path,
    *,
    budget_s: float,
    have: Sequence[str | Path] = (),
    retry: bool = False,
    clock: Callable[[], float] = time.monotonic,
    start: Callable[[str], Any] = start_worker,
) -> list[dict[str, Any]]:
    """The rows of all points of a grid: ok, partial, failed, died, skipped or not reached, each with its reason.

    What is measured in `out`, or in one of the folders in `have`, is not measured again; what failed twice only with
    `retry`. The seconds of the budget are for everything, loading and packing included: a point that does not fit into
    what is left is not started, one that takes longer than expected is stopped at the end. ValueError for a bad grid,
    budget or folder, before anything is measured. `clock` and `start`, which starts a worker for a device, are for
    tests.
    """
    began, points, out = clock(), read_grid(grid), Path(out).resolve()
    if not budget_s > PACK_S:
        raise ValueError(f"a budget of {budget_s:g} s is too short; give more than {PACK_S:g}")
    try:
        for folder in (out / "points", run_lock(out).parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from error

    def refuse(_waited_s: float) -> None:
        raise ValueError(f"another campaign works on {out}; wait for it, or choose another folder")

    with held(run_lock(out), waits=refuse):
        for line in set_aside(out):
            print(f"{line}; set aside, what is missing is measured again", file=sys.stderr)
        stop = Stop(ends_s=began + budget_s - PACK_S, clock=clock)
        campaign = Campaign(out, stop, start, _device_of(points), _known_rows([*have, out]))
        with stop.on_signals():
            try:
                campaign.start_worker()
                missing = campaign.missing(points, retry=retry)
                run_all(missing, campaign.measure, _line, of=len(points), name="campaign", unit="point")
            finally:
                campaign.end_worker()
                _pack(out)
    return list(campaign.rows.values())


def _pack(out: Path) -> None:
    """Pack what is there; what cannot be packed stays as it is."""
    try:
        left = pack(out)
        said = f"{len(left)} points did not fit the packed files; they stay" if left else ""
    except OSError as error:
        said = f"not packed ({error.strerror or error}); the results stay"
    if said:
        print(f"{said} under {out.name}/points", file=sys.stderr)


def exit_code(rows: list[dict[str, Any]]) -> int:
    """0 where nothing failed (what did not fit the machine or the budget is no failure), 130 if interrupted, else 1."""
    if any(row["reason"].startswith("interrupted") for row in rows):
        return 130
    bad = (UNWRITTEN, NO_WORKER)
    return int(any(row["status"] in ("failed", "died", "partial") or row["reason"].startswith(bad) for row in rows))


def list_campaign(grid: str | Path, *, have: Sequence[str | Path] = ()) -> list[dict[str, Any]]:
    """What a campaign would do here, a row per point in its order: title, state, value, expect_s, need_bytes, reason.

    ``state`` is have, missing or skipped. Every model is counted, which takes seconds the first time.
    """
    points = read_grid(grid)
    campaign = Campaign(Path(), Stop(), start_worker, _device_of(points), _known_rows(have))
    try:
        campaign.start_worker()
        return [campaign.look(point) for point in points]
    except ProcessDied as died:
        raise ValueError(f"{NO_WORKER}: {died}") from died
    finally:
        campaign.end_worker()


def _device_of(points: list[Point]) -> str:
    return "cuda" if any(point.device == "cuda" for point in points) else "cpu"


def _known_rows(folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Rows of the points that are there, by id; those of later folders replace those of earlier ones unless ok."""
    known: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for name, (row, _) in load_points(folder)[0].items():
            if known.get(name, {}).get("status") != "ok":
                known[name] = row
    return known


def is_done(row: dict[str, Any] | None, *, retry: bool) -> bool:
    """Whether a point with this row is not measured again: it is ok, or measured in part, or it failed often enough."""
    if row is None or row["status"] in ("skipped", "not reached"):
        return False
    gave_up = row["status"] == "partial" or row["attempts"] >= ATTEMPTS
    return row["status"] == "ok" or (gave_up and not retry)


def _line(measured: tuple[Point, dict[str, Any]]) -> str:
    point, row = measured
    parts = [row["reason"]] if row["reason"] else []
    if row["status"] in MEASURED:
        stages = ", ".join(f"{stage} {seconds:.4g} s" for stage, seconds in row["median_s"].items())
        parts.insert(0, stages + (f" ({row['doubts']} doubts)" if row["doubts"] else ""))
    return f"{row['status']:<11}  {point.title()}: {'; '.join(parts)}"


class _LeftOut(Exception):
    """A point is not measured: the status and reason of its row, and what else changes in that."""

    def __init__(self, status: str, reason: str, **more: Any) -> None:
        super().__init__(reason)
        self.status, self.reason, self.more = status, reason, more


@dataclass
class Campaign:
    """What a campaign knows so far; ``have`` are the rows of earlier ones, ``rows`` are what it comes to."""

    out: Path
    stop: Stop
    start: Callable[[str], Any]
    device: str
    have: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"cpu": [], "cuda": []})  # took / expected
    machine: dict[str, Any] = field(default_factory=dict)
    worker: Any = None
    used: bool = False  # whether this worker has measured a point

    def start_worker(self) -> None:
        """Start a worker, and learn from the first one what this machine is."""
        self.worker, self.used = self.start(self.device), False
        try:
            machine = self.stop.answer(self.worker, START_S)
        except ProcessDied as died:
            raise ValueError(f"{NO_WORKER}: {died}") from died
        if machine is None:
            raise KeyboardInterrupt if self.stop.reason else ValueError(f"{NO_WORKER}: the worker said nothing in time")
        self.machine = self.machine or machine

    def end_worker(self) -> None:
        """End the worker; the next point that needs one starts another."""
        if self.worker is not None:
            self.worker.close()
        self.worker = None

    def name(self, point: Point) -> str:
        """The identity of a point on this machine."""
        return identity(point, self.machine["hardware"][point.device], self.machine["versions"])

    def missing(self, points: list[Point], *, retry: bool) -> list[Point]:
        """The points to measure, those that failed before last; the rows of the others are filled in."""
        named = {self.name(point): point for point in points}
        self.rows = {name: self.have[name] for name in named if is_done(self.have.get(name), retry=retry)}
        missing = [name for name in named if name not in self.rows]
        missing.sort(key=lambda name: self._before(name) in ("failed", "died", "partial"))
        return [named[name] for name in missing]

    def measure(self, point: Point) -> tuple[Point, dict[str, Any]]:
        """Measure one point, or say why not; its row, which is on disk then."""
        row = self._new_row(self.name(point), point)
        try:
            if reason := why_skipped(point, self.machine):
                raise _LeftOut("skipped", reason)
            self._expect(point, row)
            self._measure(point, row)
        except _LeftOut as left_out:
            self._keep(row | left_out.more, left_out.status, left_out.reason)
        except ProcessDied as died:
            self._keep(row | {"attempts": row["attempts"] + 1}, "died", str(died))
            self.end_worker()
        return point, self.rows[row["id"]]

    def look(self, point: Point) -> dict[str, Any]:
        """What measuring a point would take; its ``state`` is have, missing or skipped."""
        name = self.name(point)
        row = {"id": name, "point": point.title(), "value": point.value, "where": point.where}
        row |= {"expect_s": point.expect_s, "need_bytes": None}
        if is_done(self.have.get(name), retry=False):
            return row | {"state": "have", "reason": self.have[name]["status"]}
        guess = self._ask(expect_point, point)
        reason = why_skipped(point, self.machine) or guess["reason"]
        row |= {"expect_s": point.expect_s or guess.get("expect_s"), "need_bytes": guess.get("need_bytes")}
        return row | {"state": "skipped" if reason else "missing", "reason": reason}

    @functools.cached_property
    def _made_by(self) -> dict[str, Any]:
        return {key: value for key, value in provenance().items() if key != "utc"}

    def _before(self, name: str) -> str:
        """The status that an earlier start came to, "" without one."""
        return self.have.get(name, {}).get("status", "")

    def _new_row(self, name: str, point: Point) -> dict[str, Any]:
        """The row of a point before anything is known but what it asks for, and what earlier starts came to."""
        before = self.have.get(name, {})
        row = {"id": name, "asked": point.asked(), "value": point.value, "expect_s": point.expect_s, "facts": {}}
        row |= {"hardware": self.machine["hardware"][point.device], "versions": self.machine["versions"]}
        return row | {"took_s": before.get("took_s"), "attempts": before.get("attempts", 0)}

    def _keep(self, row: dict[str, Any], status: str, reason: str) -> None:
        self.rows[row["id"]] = row = {**row, "status": status, "reason": reason}
        try:
            write_point(self.out, row)
        except OSError as error:
            self.stop.reason = f"{UNWRITTEN}: {error.strerror or error}"

    def _expect(self, point: Point, row: dict[str, Any]) -> None:
        """Leave the point out that cannot be measured here, or in the time that is left; sets ``expect_s``."""
        factor = correction(self.ratios[point.device])
        least = _LONGER * (row["took_s"] or 0.0) if self._before(row["id"]) == "not reached" else 0.0
        self._check_time(max(least, (row["expect_s"] or 0.0) * factor))
        guess = self._ask(expect_point, point)
        if guess.get("tight") and self.used:  # by what was measured before, perhaps
            self.end_worker()
            guess = self._ask(expect_point, point)
        if guess["status"]:
            raise _LeftOut(guess["status"], guess["reason"], attempts=row["attempts"] + 1)
        row["expect_s"] = row["expect_s"] or guess["expect_s"]
        self._check_time(max(least, row["expect_s"] * factor))

    def _check_time(self, expect_s: float) -> None:
        left = self.stop.left_s()
        if self.stop.reason or left <= 0 or expect_s > left:
            why = f"expected {expect_s:.0f} s, and {left:.0f} s were left" if left > 0 else "the budget is spent"
            raise _LeftOut("not reached", self.stop.reason or why)

    def _measure(self, point: Point, row: dict[str, Any]) -> None:
        started, self.used = self.stop.clock(), True
        given = {**row, "attempts": row["attempts"] + 1, "made_by": self._made_by}
        answer = self._ask(measure_point, point, str(self.out), given)
        self.rows[row["id"]] = {**given, **answer}
        if answer["status"] == "ok" and row["expect_s"]:
            self.ratios[point.device].append((self.stop.clock() - started) / row["expect_s"])
        if answer.get("unwritten"):
            self.stop.reason = answer["reason"]
        if not answer["again"]:
            self.end_worker()

    def _ask(self, function: Callable[..., Any], *given: Any) -> dict[str, Any]:
        """The worker's answer; leaves the point out when the budget ends, or the campaign is told to stop."""
        try:
            if self.worker is None:
                self.start_worker()
        except (ValueError, KeyboardInterrupt) as error:
            self.stop.reason = self.stop.reason or str(error)
        started = self.stop.clock()
        if not self.stop.reason:
            self.worker.ask((function, *given))
        answer = self.stop.answer(self.worker)
        if answer is not None:
            return answer
        self.end_worker()
        took_s = round(self.stop.clock() - started, 3)
        measured = {"took_s": None if self.stop.reason else took_s} if function is measure_point else {}
        why = f"stopped at the end of the budget after {took_s:.0f} s"
        raise _LeftOut("not reached", self.stop.reason or why, **measured)
