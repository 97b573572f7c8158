"""The numbers of one generation that the page and the widget show: by stage and category, memory, and lengths."""

from typing import Any

import pandas as pd

from mmchar.counting.seqlen import seen
from mmchar.projection.summary import weights_of
from mmchar.tables.totals import executions, totals


def breakdown(timed: pd.DataFrame) -> pd.DataFrame:
    """FLOP, bytes and seconds of a whole generation, by stage and category, of a projected table.

    Columns ``stage, category, flop, moved_bytes, time_s``; what is 0 in all three is left out.
    """
    found = totals(timed, ["stage", "category"]).drop(columns="calls").rename(columns={"bytes": "moved_bytes"})
    return found[(found[["flop", "moved_bytes", "time_s"]] > 0).any(axis=1)].reset_index(drop=True)


def facts(table: pd.DataFrame) -> dict[str, Any]:
    """``weight_bytes`` and ``live_bytes`` (the most activations alive) of a table, and ``calls`` of each stage."""
    calls = {str(stage): int(many) for stage, many in executions(table).items()}
    return {
        "weight_bytes": sum(weights_of(table).values()),
        "live_bytes": int(table["live_bytes"].max()),
        "calls": calls,
    }


def lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Tokens that attention sees: ``stage, attention``, shortest and longest ``q_min, q_max`` and ``kv_max``."""
    groups = seen(table).groupby(["stage", "attention"], sort=False)
    return groups.agg(q_min=("q_len", "min"), q_max=("q_len", "max"), kv_max=("kv_len", "max")).reset_index()
