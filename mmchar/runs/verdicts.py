"""Verdicts on the papers' statements, a row each as in ``data/reference/verdicts.csv``: their words and their head."""

from typing import Any

import pandas as pd

from mmchar.tables.stored import markdown

HOLDS, IF, NOT = "holds", "holds if …", "does not hold"
NO_GPU, UNKNOWN, UNREAD = "cannot tell without a GPU", "cannot tell", "not judged: second hand"
VERDICTS = (HOLDS, IF, NOT, NO_GPU, UNKNOWN, UNREAD)


def counts(card: pd.DataFrame) -> str:
    """How many statements have which verdict, in one line."""
    number = card["verdict"].value_counts()
    return f"{len(card)} statements: " + ", ".join(f"{number[each]} {each}" for each in VERDICTS if each in number)


def head(card: pd.DataFrame) -> str:
    """The judged claims as a Markdown table: what was said, ours with its range, and the verdict."""
    card = card.fillna({"short": "", "condition": ""})
    rows = card[(card["short"] != "") & card["ours"].notna()]
    ours = [in_words(row) for row in rows.itertuples()]
    shown = pd.DataFrame(
        {"": rows["id"], "what the paper says": rows["short"], "ours": ours, "verdict": with_condition(rows)}
    )
    return markdown(shown)


def with_condition(rows: pd.DataFrame) -> "pd.Series[str]":
    """Verdicts, with what they hang on in the place of three dots."""
    return rows["verdict"].where(rows["condition"] == "", "holds if " + rows["condition"])


def in_words(row: Any) -> str:
    """A row's ``ours`` with its unit and its range: ``53.4 % (41.5 to 72.1)``."""
    unit = " %" if row.our_unit == "%" else ""
    return f"{row.ours:.3g}{unit}" + ("" if row.low == row.high else f" ({row.low:.3g} to {row.high:.3g})")
