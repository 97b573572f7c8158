"""The scorecard: one verdict per statement, then what the notebooks expected before they ran, beside what they got."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mmchar.files import atomic_write, set_aside
from mmchar.provenance import REFERENCE
from mmchar.runs.listing import read_checks
from mmchar.runs.run_state import run_state
from mmchar.runs.verdicts import counts, head
from mmchar.tables.stored import markdown, read_table, write_table

VERDICTS = REFERENCE / "verdicts.csv"
_VERDICTS = "Statements of the papers as notebook 10 judges them on the papers' GPU (`data/reference/verdicts.csv`)."


def write_scorecard(results_dir: Path, folder: Path, keep: set[str], *, quick: bool) -> str:
    """A line that counts the verdicts in ``scorecard.md`` and ``scorecard.csv``; quick results only when `quick`.

    Of the notebooks in `keep` that have no result here, as on a fresh clone, the rows of the scorecard there stay.
    """
    checks = read_checks(results_dir) if results_dir.is_dir() else None
    if checks is not None and not quick:
        checks = checks[~checks["quick"].astype(bool)]
    if checks is None or checks.empty:
        return "no checks, so no scorecard is written"
    runs = sorted(set(checks["run"]))
    earlier = [run for run in runs if run_state(results_dir / run)[0].get("status") != "ok"]
    checks = _with_earlier_rows(checks[["notebook", "claim", "name", "expected", "got", "verdict"]], folder, keep)
    counts = checks["verdict"].replace({"agrees": "agree", "differs": "differ"}).value_counts().sort_index()
    counted = f"{len(checks)} checks: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}"
    verdicts = read_table(VERDICTS) if VERDICTS.is_file() else None
    try:
        atomic_write(folder / "scorecard.md", as_markdown(checks, counted, earlier, verdicts))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error
    write_table(folder / "scorecard.csv", checks)
    return f"{counted}; see {folder}/scorecard.md"


def _with_earlier_rows(checks: pd.DataFrame, folder: Path, keep: set[str]) -> pd.DataFrame:
    path = folder / "scorecard.csv"
    if not path.exists():
        return checks
    try:
        before = read_table(path)
        rows = before[before["notebook"].isin(keep - set(checks["notebook"]))][list(checks.columns)]
    except (ValueError, KeyError) as error:
        print(f"mmchar: {error}; it is kept as {set_aside(path).name}", file=sys.stderr)
        return checks
    return pd.concat([checks, rows.astype(object)]).sort_values("notebook", kind="stable") if len(rows) else checks


def as_markdown(
    checks: pd.DataFrame, counted: str, earlier: Iterable[str] = (), verdicts: pd.DataFrame | None = None
) -> str:
    """Verdicts, and checks, as Markdown tables; runs in `earlier` have a good result, but did not end well since."""
    said = "What the notebooks expected before they ran, and what they got; each states the rule of its verdicts."
    note = f"Of an earlier run, as the latest did not end well: {', '.join(earlier)}.\n\n" if earlier else ""
    first = "" if verdicts is None else f"{_VERDICTS}\n\n{counts(verdicts)}.\n\n{head(verdicts)}\n\n## Checks\n\n"
    return f"# Scorecard\n\n{first}{said}\n\n{counted}.\n\n{note}{markdown(checks.map(_cell))}\n"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    if value is None or value != value:  # NaN is the only value that differs from itself
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("<", "&lt;")
