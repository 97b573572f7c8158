"""A campaign: what is missing of a grid is measured, the most valuable first, until its budget of seconds is spent.

Every point gets a row. What was measured before is kept whatever happens, and the next start goes on from there, on
this machine or another.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmchar.locks import held, run_lock
from mmchar.runs.campaign.campaign import NO_WORKER, UNWRITTEN, Campaign
from mmchar.runs.campaign.grids import Point, read_grid
from mmchar.runs.campaign.measured import load_points, set_aside
from mmchar.runs.campaign.worker import start_worker
from mmchar.runs.engine import Stop
from mmchar.runs.own_process import ProcessDied

PACK_S = 5.0  # kept back for writing the packed files


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
            campaign.run(points, retry=retry)
    return list(campaign.rows.values())


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
