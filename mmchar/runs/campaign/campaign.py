"""What a campaign knows while it runs: what is there, what is left of its budget, and the process that measures."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchar.provenance import provenance
from mmchar.runs.campaign.expected import correction, why_skipped
from mmchar.runs.campaign.grids import Point, identity
from mmchar.runs.campaign.measured import MEASURED, pack, write_point
from mmchar.runs.campaign.worker import expect_point, measure_point
from mmchar.runs.engine import Stop, run_all
from mmchar.runs.own_process import ProcessDied

NO_WORKER = "nothing can be measured here"
UNWRITTEN = "cannot write results"
START_S = 120.0  # for a worker to load PyTorch
ATTEMPTS = 2  # a point that failed is tried once more, after all others; then only with retry
_LONGER = 1.5  # a point that was stopped at the end of a budget is expected to take this much longer than it got


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

    def run(self, points: list[Point], *, retry: bool) -> None:
        """Measure what is missing, and pack what is there."""
        try:
            self.start_worker()
            missing = self.missing(points, retry=retry)
            run_all(missing, self.measure, _line, of=len(points), name="campaign", unit="point")
        finally:
            self.end_worker()
            self.pack()

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

    def pack(self) -> None:
        """Pack what is there; what cannot be packed stays as it is."""
        try:
            left = pack(self.out)
            said = f"{len(left)} points did not fit the packed files; they stay" if left else ""
        except OSError as error:
            said = f"not packed ({error.strerror or error}); the results stay"
        if said:
            print(f"{said} under {self.out.name}/points", file=sys.stderr)

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
            why = f"expected {expect_s:.0f} s, and {max(left, 0):.0f} s were left"
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
