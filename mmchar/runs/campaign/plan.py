"""What a campaign would do: which points of a grid are there, which are missing, and what they would cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmchar.runs.campaign.expected import why_skipped
from mmchar.runs.campaign.grids import Point, identity, read_grid
from mmchar.runs.campaign.measured import load_points
from mmchar.runs.campaign.worker import expect_point, start_worker
from mmchar.runs.own_process import OwnProcess, ProcessDied

ATTEMPTS = 2  # a point that failed is tried once more, after all others; then only with retry
NO_WORKER = "nothing can be measured here"
START_S = 120.0  # for a worker to load PyTorch
_COUNT_S = 600.0  # for counting the largest model


def list_campaign(grid: str | Path, *, have: Sequence[str | Path] = ()) -> list[dict[str, Any]]:
    """What a campaign would do here, a row per point in its order: title, state, value, expect_s, need_bytes, reason.

    ``state`` is have, missing or skipped. Every model is counted, which takes seconds the first time.
    """
    points, known = read_grid(grid), known_rows(have)
    worker = start_worker(device_of(points))
    try:
        machine = hear(worker, START_S)
        return [_listed(point, known, machine, worker) for point in points]
    finally:
        worker.close()


def _listed(
    point: Point, known: dict[str, dict[str, Any]], machine: dict[str, Any], worker: OwnProcess
) -> dict[str, Any]:
    name = identity(point, machine["hardware"][point.device], machine["versions"])
    row = {"id": name, "point": point.title(), "value": point.value, "where": point.where}
    row |= {"expect_s": point.expect_s, "need_bytes": None}
    if is_done(known.get(name), retry=False):
        return row | {"state": "have", "reason": known[name]["status"]}
    worker.ask((expect_point, point))
    guess = hear(worker, _COUNT_S)
    reason = why_skipped(point, machine) or guess["reason"]
    row |= {"expect_s": point.expect_s or guess.get("expect_s"), "need_bytes": guess.get("need_bytes")}
    return row | {"state": "skipped" if reason else "missing", "reason": reason}


def device_of(points: list[Point]) -> str:
    """The device that a worker must be able to use for all of them."""
    return "cuda" if any(point.device == "cuda" for point in points) else "cpu"


def known_rows(folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
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


def hear(worker: Any, wait_s: float) -> dict[str, Any]:
    """A worker's next answer; ValueError where it does not come."""
    try:
        answer = worker.answer(wait_s)
    except ProcessDied as died:
        raise ValueError(f"{NO_WORKER}: {died}") from died
    if answer is None:
        raise ValueError(f"{NO_WORKER}: the worker said nothing for {wait_s:g} s")
    return answer
