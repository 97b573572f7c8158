"""Speeds of single GPUs that others published, each as the count of its configuration."""

from collections.abc import Collection

import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.projection.roofline import EXECUTIONS
from mmchar.provenance import REFERENCE
from mmchar.request import Request


def published_speeds(models: Collection[str] | None = None) -> pd.DataFrame:
    """Rows of ``data/reference/published_speeds.csv`` that a projection can express, of some models or of all."""
    rows = pd.read_csv(REFERENCE / "published_speeds.csv", dtype=str, keep_default_na=False)
    able = rows["execution"].isin(EXECUTIONS) & (rows["gpus"] == "1") & rows["unit"].isin(("s/image", "tokens/s"))
    able &= ~rows["setting"].str.contains(r"int\d|fp8|TF32")
    if models is not None:
        able &= rows["model"].isin(list(models))
    return rows[able].astype({"value": float}).reset_index(drop=True)


def count_published(row: dict[str, str]) -> pd.DataFrame:
    """The count of the configuration that a row of ``published_speeds.csv`` states."""
    sizes = {name: int(row[name]) for name in ("batch", "steps", "height", "width", "frames") if row[name]}
    return count(row["model"], Request(**sizes), dtype=row["dtype"] or "bfloat16")
