"""Two campaigns point by point: whether a repetition agrees, or what another machine or version changed."""

from pathlib import Path

import pandas as pd

from mmchar.runs.campaign.measured import read_measured, stage_points

SETTING = ("model", "request", "device", "dtype", "attention", "tiny", "levers", "stage")


def compare_campaigns(first: str | Path, second: str | Path) -> pd.DataFrame:
    """Medians of every stage that both folders measured with the same settings, whatever the machine or the versions.

    Columns: the setting (model, request, device, dtype, attention, tiny, levers, stage), ``first_s`` and ``second_s``
    (medians of one execution), ``ratio`` (second / first), ``spread`` (the larger IQR / median of the two) and
    ``within``: whether the medians differ by no more than that spread. ValueError for a folder that is missing, or no
    stage in common.
    """
    tables = []
    for folder in (first, second):
        found = stage_points(read_measured(folder)[0])
        if found.empty:
            raise ValueError(f"nothing was measured in {str(folder)!r}")
        found["spread"] = found["iqr_s"].astype(float) / found["median_s"]
        found[["request", "levers"]] = found[["request", "levers"]].map(_words)
        tables.append(found[[*SETTING, "median_s", "spread"]])
    both = pd.merge(*tables, on=list(SETTING), suffixes=("_first", "_second"))
    if both.empty:
        raise ValueError(f"{str(first)!r} and {str(second)!r} have no stage with the same settings in common")
    spread = both[["spread_first", "spread_second"]].max(axis=1)
    both = both.rename(columns={"median_s_first": "first_s", "median_s_second": "second_s"})
    both = both[[*SETTING, "first_s", "second_s"]].assign(ratio=both["second_s"] / both["first_s"], spread=spread)
    apart = (both["second_s"] - both["first_s"]).abs() / both[["first_s", "second_s"]].min(axis=1)
    return both.assign(within=apart <= spread)


def _words(given: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
