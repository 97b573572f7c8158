"""What a campaign would do: which points of a grid are there, which are missing, and what they would cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmchar.runs.campaign import expected
from mmchar.runs.campaign.grids import Point, identity, read_grid
from mmchar.runs.campaign.measured import load_points
from mmchar.runs.campaign.worker import Worker, WorkerDied, order

ATTEMPTS = 2  # a point that failed is tried once more, after all others; then only with retry
NO_WORKER = "nothing can be measured here"
START_S = 120.0  # for a worker to load PyTorch
_COUNT_S = 600.0  # for counting the largest model


def list_campaign(
    grid: str | Path, *, have: Sequence[str | Path] = (), start: Callable[[str], Any] = Worker
) -> list[dict[str, Any]]:
    """What a campaign would do here, a row per point in its order: title, state, value, expect_s, need_bytes, reason.

    ``state`` is have, missing or skipped. Every model is counted, which takes seconds the first time.
    """
    points = read_grid(grid)
    known = known_rows(None, have)
    worker = start(device_of(points))
    rows = []
    try:
        machine = hear(worker, START_S)
        for point in points:
            name = identity(point, machine["hardware"][point.device], machine["versions"])
            row = {"id": name, "point": point.title(), "value": point.value, "where": point.where, "reason": ""}
            row |= {"expect_s": point.expect_s, "need_bytes": None, "state": "missing"}
            if is_done(known.get(name), retry=False):
                rows.append({**row, "state": "have", "reason": known[name]["status"]})
                continue
            worker.ask(order("expect", point))
            guess = hear(worker, _COUNT_S)
            row |= {"need_bytes": guess.get("need_bytes")}
            row["expect_s"] = point.expect_s or guess.get("expect_s")
            reason = expected.why_skipped(point, machine) or guess["skip"] or guess.get("failed", "")
            rows.append({**row, "state": "skipped", "reason": reason} if reason else row)
    finally:
        worker.close()
    return rows


def device_of(points: list[Point]) -> str:
    """The device that a worker must be able to use for all of them."""
    return "cuda" if any(point.device == "cuda" for point in points) else "cpu"


def known_rows(out: str | Path | None, have: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Rows of the points that are there, by id; those of `out` replace those of other folders that are not ok."""
    known: dict[str, dict[str, Any]] = {}
    for folder in (*have, *([out] if out else [])):
        for name, (row, _) in load_points(folder, tables=False)[0].items():
            if known.get(name, {}).get("status") != "ok":
                known[name] = row
    return known


def is_done(row: dict[str, Any] | None, *, retry: bool) -> bool:
    """Whether a point with this row is not measured again: it is ok, or measured in part, or it failed often enough."""
    if row is None or row["status"] in ("skipped", "not reached"):
        return False
    if row["status"] == "partial":
        return not retry
    return row["status"] == "ok" or (row["attempts"] >= ATTEMPTS and not retry)


def split_missing(
    points: list[Point], machine: dict[str, Any], have: dict[str, dict[str, Any]], *, retry: bool
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, Point]]]:
    """The rows of points that are done, and the others with their names, those that failed before last."""
    done, queue, again = {}, [], []
    for point in points:
        name = identity(point, machine["hardware"][point.device], machine["versions"])
        row = have.get(name)
        if row is not None and is_done(row, retry=retry):
            done[name] = row
        elif row is not None and row["status"] in ("failed", "died", "partial"):
            again.append((name, point))
        else:
            queue.append((name, point))
    return done, queue + again


def hear(worker: Any, wait_s: float) -> dict[str, Any]:
    """A worker's next answer; ValueError where it does not come."""
    try:
        answer = worker.answer(wait_s)
    except WorkerDied as died:
        raise ValueError(f"{NO_WORKER}: {died}") from died
    if answer is None:
        raise ValueError(f"{NO_WORKER}: the worker said nothing for {wait_s:g} s")
    return answer
