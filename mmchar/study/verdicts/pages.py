"""The scorecard as text: tables for the notebook, and the file that a test holds it to."""

from pathlib import Path
from typing import Any

import pandas as pd

from mmchar.provenance import SOURCE
from mmchar.runs.verdicts import in_words, with_condition
from mmchar.tables.stored import markdown, write_table


def judged(card: pd.DataFrame) -> str:
    """What was read, a row each, as Markdown: the paper's value, ours, what was measured, verdict, reason."""
    rows = card[card["read"] == "read"]
    said = rows["statement"] + " (" + rows["model"] + ")"
    paper = (rows["value"].astype(str) + " " + rows["unit"]).str.strip()
    ours = [in_words(row) if row.ours == row.ours else "" for row in rows.itertuples()]
    shown = pd.DataFrame({"": rows["id"], "statement": said, "paper": paper, "ours (by reading)": ours})
    shown["ours, if the projection is off"] = [_may(row) for row in rows.itertuples()]
    shown["from"] = rows["basis"]
    shown[["measured here", "measured by others"]] = rows[["measured", "measured_by_others"]].fillna("")
    return markdown(shown.assign(verdict=with_condition(rows), reason=rows["reason"], figure=rows["figure"].map(_link)))


def second_hand(card: pd.DataFrame) -> str:
    """What was not read where it stands, as Markdown: shown beside ours, confirmed and refuted by nothing."""
    rows = card[card["read"] != "read"]
    paper = (rows["value"].astype(str) + " " + rows["unit"]).str.strip()
    ours = [in_words(row) if row.ours == row.ours else "" for row in rows.itertuples()]
    return markdown(
        pd.DataFrame(
            {
                "": rows["id"],
                "statement": rows["statement"] + " (" + rows["model"] + ")",
                "as remembered": paper,
                "ours": ours,
                "how known": rows["read"],
            }
        )
    )


def _may(row: Any) -> str:
    return "" if not row.may_low < row.may_high else f"{row.may_low:.3g} to {row.may_high:.3g}"


def _link(figure: str) -> str:
    """A figure's name, linked to the notebook that draws it, which lies beside the one that shows this."""
    found = next((SOURCE / "notebooks").glob(f"{figure[:2]}_*.ipynb"), None) if figure else None
    return f"[{figure}]({found.name})" if found else figure


def write_verdicts(card: pd.DataFrame, path: str | Path) -> None:
    """Write what a test holds the verdicts to, as CSV: numbers to three figures, for other machines."""
    columns = ["id", "short", "ours", "low", "high", "our_unit", "basis", "verdict", "condition", "figure", "reason"]
    numbers = card[["ours", "low", "high"]].map(lambda value: float(f"{value:.3g}"))
    write_table(path, card[columns].assign(**numbers))
