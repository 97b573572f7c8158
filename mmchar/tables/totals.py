"""What the rows of an operator table come to: how often each stage runs, and totals over all of its executions."""

from collections.abc import Sequence

import pandas as pd


def executions(table: pd.DataFrame) -> pd.Series:
    """How often each stage of one model runs in a generation; a decode's rows stand for one step or for all of them."""
    return (table["step"] + table["repeats"]).groupby(table["stage"], observed=True, sort=False).max()


def totals(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Totals over repeats: ``by``, then ``calls``, ``flop``, ``bytes`` (read and written) and ``time_s`` (seconds)."""
    sums = table[[*by, "calls", "flop", "time_s"]].assign(bytes=table["read_bytes"] + table["write_bytes"])
    columns = ["calls", "flop", "bytes", "time_s"]
    sums[columns] = sums[columns].mul(table["repeats"], axis=0)
    out = sums.groupby(list(by), observed=True, sort=False)[columns].sum().reset_index()
    return out.astype({name: str for name in by if out[name].dtype == "category"})
