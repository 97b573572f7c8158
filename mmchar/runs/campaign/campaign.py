"""What a campaign knows while it runs: what is there, what is left of its budget, and the process that measures."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmchar.provenance import provenance
from mmchar.runs.campaign.expected import correction, why_skipped
from mmchar.runs.campaign.grids import Point, identity
from mmchar.runs.campaign.measured import MEASURED, pack, write_point
from mmchar.runs.campaign.worker import expect_point, measure_point
from mmchar.runs.own_process import ProcessDied

NO_WORKER = "nothing can be measured here"
UNWRITTEN = "cannot write results"
START_S = 120.0  # for a worker to load PyTorch
ATTEMPTS = 2  # a point that failed is tried once more, after all others; then only with retry
_TICK_S = 0.2
_LONGER = 1.5  # a point that was stopped at the end of a budget is expected to take this much longer than it got


def is_done(row: dict[str, Any] | None, *, retry: bool) -> bool:
    """Whether a point with this row is not measured again: it is ok, or measured in part, or it failed often enough."""
    if row is None or row["status"] in ("skipped", "not reached"):
        return False
    gave_up = row["status"] == "partial" or row["attempts"] >= ATTEMPTS
    return row["status"] == "ok" or (gave_up and not retry)


def _line(point: Point, row: dict[str, Any]) -> str:
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
    ends_s: float
    clock: Callable[[], float]
    start: Callable[[str], Any]
    device: str
    have: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"cpu": [], "cuda": []})  # took / expected
    machine: dict[str, Any] = field(default_factory=dict)
    worker: Any = None
    used: bool = False  # whether this worker has measured a point
    stopped: str = ""

    def run(self, points: list[Point], *, retry: bool) -> None:
        """Measure what is missing, and pack what is there."""
        bar = tqdm(total=len(points), desc="campaign", unit="point", file=sys.stderr)
        with bar:
            try:
                self.start_worker()
                queue = self.queue(points, retry=retry)
                bar.update(len(points) - len(queue))
                for name, point in queue:
                    self.measure(name, point)
                    self.say(_line(point, self.rows[name]))
                    bar.update()
            finally:
                self.end_worker()
                self.finish(points)

    def say(self, line: str) -> None:
        """Tell the user, beside the bar."""
        tqdm.write(line, file=sys.stderr)

    def stop(self, signal_name: str) -> None:
        """End at the next tick."""
        self.stopped = f"interrupted ({signal_name})"

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.ends_s - self.clock()

    def start_worker(self) -> None:
        """Start a worker, and learn from the first one what this machine is."""
        self.worker, self.used = self.start(self.device), False
        wait_s = min(START_S, max(self.left_s(), 1.0))
        try:
            machine = self.worker.answer(wait_s)
        except ProcessDied as died:
            raise ValueError(f"{NO_WORKER}: {died}") from died
        if machine is None:
            raise ValueError(f"{NO_WORKER}: the worker said nothing for {wait_s:g} s")
        self.machine = self.machine or machine

    def end_worker(self) -> None:
        """End the worker; the next point that needs one starts another."""
        if self.worker is not None:
            self.worker.close()
        self.worker = None

    def name(self, point: Point) -> str:
        """The identity of a point on this machine."""
        return identity(point, self.machine["hardware"][point.device], self.machine["versions"])

    def queue(self, points: list[Point], *, retry: bool) -> list[tuple[str, Point]]:
        """The points to measure, those that failed before last; the rows of the others are filled in."""
        named = {self.name(point): point for point in points}
        self.rows = {name: self.have[name] for name in named if is_done(self.have.get(name), retry=retry)}
        missing = [(name, point) for name, point in named.items() if name not in self.rows]
        return sorted(missing, key=lambda one: self._before(one[0]) in ("failed", "died", "partial"))

    def measure(self, name: str, point: Point) -> None:
        """Measure one point, or say why not; its row is in the rows and on disk afterwards."""
        row = self._new_row(name, point)
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

    def finish(self, points: list[Point]) -> None:
        """Rows for what was not reached, and the packed files; what cannot be packed stays as it is."""
        for point in points if self.machine else ():
            name = self.name(point)
            if name in self.rows:
                continue
            if self._before(name) in ("", "not reached"):
                self._keep(self._new_row(name, point), "not reached", self.stopped or "the campaign ended before")
            else:
                self.rows[name] = self.have[name]  # it failed before, and its second attempt is still to come
        try:
            left = pack(self.out)
        except OSError as error:
            self.say(f"not packed ({error.strerror or error}); the results stay under {self.out.name}/points")
            return
        if left:
            self.say(f"{len(left)} points did not fit the packed files; they stay under {self.out.name}/points")

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
            self.stopped = f"{UNWRITTEN}: {error.strerror or error}"

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
        left = self.left_s()
        if self.stopped or left <= 0 or expect_s > left:
            why = f"expected {expect_s:.0f} s, and {max(left, 0):.0f} s were left"
            raise _LeftOut("not reached", self.stopped or why)

    def _measure(self, point: Point, row: dict[str, Any]) -> None:
        started, self.used = self.clock(), True
        given = {**row, "attempts": row["attempts"] + 1, "made_by": self._made_by}
        answer = self._ask(measure_point, point, str(self.out), given)
        self.rows[row["id"]] = {**given, **answer}
        if answer["status"] == "ok" and row["expect_s"]:
            self.ratios[point.device].append((self.clock() - started) / row["expect_s"])
        if answer.get("unwritten"):
            self.stopped = answer["reason"]
        if not answer["again"]:
            self.end_worker()

    def _ask(self, function: Callable[..., Any], *given: Any) -> dict[str, Any]:
        """The worker's answer; leaves the point out when the budget ends, or the campaign is told to stop."""
        try:
            if self.worker is None:
                self.start_worker()
        except ValueError as error:
            self.stopped = str(error)
        started = self.clock()
        if not self.stopped:
            self.worker.ask((function, *given))
        while not self.stopped and self.left_s() > 0:
            answer = self.worker.answer(min(_TICK_S, max(self.left_s(), 0.01)))
            if answer is not None:
                return answer
        self.end_worker()
        took_s = round(self.clock() - started, 3)
        measured = {"took_s": None if self.stopped else took_s} if function is measure_point else {}
        why = f"stopped at the end of the budget after {took_s:.0f} s"
        raise _LeftOut("not reached", self.stopped or why, **measured)
