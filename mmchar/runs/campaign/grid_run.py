"""A campaign: what is missing of a grid is measured, the most valuable first, until its budget of seconds is spent.

Every point gets a row. What was measured before is kept whatever happens, and the next start goes on from there, on
this machine or another.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmchar.provenance import provenance
from mmchar.runs.campaign.expected import correction, why_skipped
from mmchar.runs.campaign.grids import Point, identity, read_grid
from mmchar.runs.campaign.measured import MEASURED, pack, set_aside, write_point
from mmchar.runs.campaign.plan import NO_WORKER, START_S, device_of, hear, is_done, known_rows
from mmchar.runs.campaign.worker import expect_point, measure_point, start_worker
from mmchar.runs.own_process import ProcessDied, on_signals

PACK_S = 5.0  # kept back for writing the packed files
_TICK_S = 0.2
_UNWRITTEN = "cannot write results"
_LONGER = 1.5  # a point that was stopped at the end of a budget is expected to take this much longer than it got


def run_campaign(
    grid: str | Path,
    out: str | Path,
    *,
    budget_s: float,
    have: Sequence[str | Path] = (),
    retry: bool = False,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
    start: Callable[[str], Any] = start_worker,
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
    from tqdm import tqdm

    began, points = clock(), read_grid(grid)
    if not budget_s > PACK_S:
        raise ValueError(f"a budget of {budget_s:g} s is too short; give more than {PACK_S:g}")
    try:
        (Path(out) / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from error

    def say(line: str) -> None:
        if progress:
            tqdm.write(line, file=sys.stderr)

    for line in set_aside(out):
        say(f"{line}; set aside, what is missing is measured again")
    ends_s = began + budget_s - PACK_S
    campaign = _Campaign(Path(out), ends_s, clock, start, device_of(points), known_rows([*have, out]))
    bar = tqdm(total=len(points), desc="campaign", unit="point", file=sys.stderr, disable=not progress)
    with on_signals(campaign.stop, signal.SIGINT, signal.SIGTERM), bar:
        try:
            campaign.start_worker()
            queue = campaign.queue(points, retry=retry)
            bar.update(len(points) - len(queue))
            for name, point in queue:
                campaign.measure(name, point)
                say(_line(point, campaign.rows[name]))
                bar.update()
        finally:
            campaign.end_worker()
            campaign.finish(points, say)
    return list(campaign.rows.values())


def exit_code(rows: list[dict[str, Any]]) -> int:
    """0 where nothing failed (what did not fit the machine or the budget is no failure), 130 if interrupted, else 1."""
    if any(row["reason"].startswith("interrupted") for row in rows):
        return 130
    bad = (_UNWRITTEN, NO_WORKER)
    return int(any(row["status"] in ("failed", "died", "partial") or row["reason"].startswith(bad) for row in rows))


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many points have each status."""
    return dict(Counter(row["status"] for row in rows))


def _line(point: Point, row: dict[str, Any]) -> str:
    parts = [row["reason"]] if row["reason"] else []
    if row["status"] in MEASURED:
        stages = ", ".join(f"{stage} {seconds:.4g} s" for stage, seconds in row["median_s"].items())
        parts.insert(0, stages + (f" ({row['doubts']} doubts)" if row["doubts"] else ""))
    return f"{row['status']:<11}  {point.title()}: {'; '.join(parts)}"


def _made_by() -> dict[str, Any]:
    return {key: value for key, value in provenance().items() if key != "utc"}


@dataclass
class _Campaign:
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
    made_by: dict[str, Any] = field(default_factory=_made_by)
    worker: Any = None
    used: bool = False  # whether this worker has measured a point
    stopped: str = ""

    def stop(self, signal_name: str) -> None:
        """End at the next tick."""
        self.stopped = f"interrupted ({signal_name})"

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.ends_s - self.clock()

    def start_worker(self) -> None:
        """Start a worker, and learn from the first one what this machine is."""
        self.worker, self.used = self.start(self.device), False
        machine = hear(self.worker, min(START_S, max(self.left_s(), 1.0)))
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
        missing = [(self.name(point), point) for point in points]
        done = {name for name, _ in missing if is_done(self.have.get(name), retry=retry)}
        self.rows |= {name: self.have[name] for name, _ in missing if name in done}
        failed = ("failed", "died", "partial")
        return sorted(
            (one for one in missing if one[0] not in done),
            key=lambda one: self.have.get(one[0], {}).get("status") in failed,
        )

    def measure(self, name: str, point: Point) -> None:
        """Measure one point, or say why not; its row is in the rows and on disk afterwards."""
        row = self._new_row(name, point)
        reason = why_skipped(point, self.machine)
        if reason:
            self._keep(row, "skipped", reason)
            return
        try:
            if self._fits(point, row):
                self._measure(point, row)
        except ProcessDied as died:
            self._keep(row, "died", str(died), attempts=row["attempts"] + 1)
            self.end_worker()

    def finish(self, points: list[Point], say: Callable[[str], None]) -> None:
        """Rows for what was not reached, and the packed files; what cannot be packed stays as it is."""
        for point in points if self.machine else ():
            name = self.name(point)
            before = self.have.get(name, {"status": "not reached"})
            if name in self.rows:
                continue
            if before["status"] != "not reached":
                self.rows[name] = before  # it failed before, and its second attempt is still to come
            else:
                self._keep(self._new_row(name, point), "not reached", self.stopped or "the campaign ended before")
        try:
            left = pack(self.out)
        except OSError as error:
            say(f"not packed ({error.strerror or error}); the results stay under {self.out.name}/points")
            return
        if left:
            say(f"{len(left)} points did not fit the packed files; they stay under {self.out.name}/points")

    def _new_row(self, name: str, point: Point) -> dict[str, Any]:
        """The row of a point before anything is known but what it asks for, and what earlier starts came to."""
        before = self.have.get(name, {})
        row = {"id": name, "asked": point.asked(), "value": point.value, "expect_s": point.expect_s, "facts": {}}
        row |= {"hardware": self.machine["hardware"][point.device], "versions": self.machine["versions"]}
        return row | {"took_s": before.get("took_s"), "attempts": before.get("attempts", 0)}

    def _keep(self, row: dict[str, Any], status: str, reason: str, **more: Any) -> None:
        self.rows[row["id"]] = row = {**row, "status": status, "reason": reason, **more}
        try:
            write_point(self.out, row)
        except OSError as error:
            self.stopped = f"{_UNWRITTEN}: {error.strerror or error}"

    def _fits(self, point: Point, row: dict[str, Any]) -> bool:
        """Whether a point can be measured in the time that is left; if not, its row says why. Sets ``expect_s``."""
        factor = correction(self.ratios[point.device])
        was_cut_off = self.have.get(row["id"], {}).get("status") == "not reached"
        least = _LONGER * (row["took_s"] or 0.0) if was_cut_off else 0.0
        if self._too_long(row, max(least, (row["expect_s"] or 0.0) * factor)):
            return False
        guess = self._guess(point)
        if guess and guess.get("tight") and self.used:  # by what was measured before, perhaps
            self.end_worker()
            guess = self._guess(point)
        if guess is None:
            self._keep(row, "not reached", self.stopped or "the budget ended while it was counted")
            self.end_worker()
            return False
        if guess["status"]:
            self._keep(row, guess["status"], guess["reason"], attempts=row["attempts"] + 1)
            return False
        row["expect_s"] = row["expect_s"] or guess["expect_s"]
        return not self._too_long(row, max(least, row["expect_s"] * factor))

    def _guess(self, point: Point) -> dict[str, Any] | None:
        try:
            if self.worker is None:
                self.start_worker()
        except ValueError as error:
            self.stopped = str(error)
            return None
        self.worker.ask((expect_point, point))
        return self._answer()

    def _too_long(self, row: dict[str, Any], expect_s: float) -> bool:
        left = self.left_s()
        if not self.stopped and left > 0 and expect_s <= left:
            return False
        why = self.stopped or f"expected {expect_s:.0f} s, and {max(left, 0):.0f} s were left"
        self._keep(row, "not reached", why)
        return True

    def _measure(self, point: Point, row: dict[str, Any]) -> None:
        started, self.used = self.clock(), True
        given = {**row, "attempts": row["attempts"] + 1, "made_by": self.made_by}
        self.worker.ask((measure_point, point, str(self.out), given))
        answer = self._answer()
        took = round(self.clock() - started, 3)
        if answer is None:
            cut_off = f"stopped at the end of the budget after {took:.0f} s"
            self._keep(row, "not reached", self.stopped or cut_off, took_s=None if self.stopped else took)
            self.end_worker()
            return
        self.rows[row["id"]] = {**given, **answer}
        if answer["status"] == "ok" and row["expect_s"]:
            self.ratios[point.device].append(took / row["expect_s"])
        if answer.get("unwritten"):
            self.stopped = answer["reason"]
        if not answer["again"]:
            self.end_worker()

    def _answer(self) -> dict[str, Any] | None:
        """The worker's answer; None when the budget has ended, or the campaign was told to stop."""
        while not self.stopped and self.left_s() > 0:
            answer = self.worker.answer(min(_TICK_S, max(self.left_s(), 0.01)))
            if answer is not None:
                return answer
        return None
