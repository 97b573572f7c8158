"""Measurements of others beside what a projection says of them."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.projection.columns import Columns, columns_of, merge_equal
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.energy_model import BOUNDS, Power, row_energy_j
from mmchar.projection.roofline import EXECUTIONS, Rates, prepare, row_times
from mmchar.provenance import REFERENCE
from mmchar.request import Request


@dataclass(frozen=True)
class Case:
    """One measurement of others: what was asked for and measured, the work it stands for, and where it ran."""

    asked: dict[str, Any]
    columns: Columns
    gpu: Gpu
    execution: str
    memory: dict[str, Any]


def predict(case: Case, rates: Rates, power: Power) -> dict[str, Any]:
    """Seconds and joules of a case, their errors (predicted / measured - 1), and what most of the time is bound by."""
    columns, asked = case.columns, case.asked
    device_s, wait_s, bound = row_times(columns, case.gpu, rates, execution=case.execution)
    time_s = device_s + wait_s
    attention_flop = np.where(columns.fused, columns.flop, 0)
    each_j = row_energy_j(time_s, bound, attention_flop, case.gpu, power)
    total_s = float((time_s * columns.repeats).sum())
    total_j = float((each_j * columns.repeats).sum()) * asked["gpus"]
    by_bound = np.bincount(bound, time_s * columns.repeats, minlength=len(BOUNDS))
    return {
        "predicted_s": total_s,
        "predicted_j": total_j,
        "latency_error": total_s / asked["latency_s"] - 1,
        "energy_error": total_j / asked["energy_j"] - 1 if "energy_j" in asked else math.nan,
        "bound": BOUNDS[int(by_bound.argmax())],
        **{name: case.memory[name] for name in ("peak_bytes", "fits") if name in case.memory},
    }


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


def published_cases() -> list[Case]:
    """The published speeds of single GPUs as cases: other GPUs, U-Nets, compiled models.

    Of a rate in tokens/s, the decode stage. The host-bound row is left out: host times differ from machine to machine.
    """
    cases = []
    for row in published_speeds().to_dict("records"):
        if "host bound" in row["setting"]:
            continue
        table, latency_s = count_published(row), row["value"]
        if row["unit"] == "tokens/s":
            decode = table["stage"] == "decode"
            latency_s = float((table["step"] + table["repeats"])[decode].max() / row["value"])
            table = table.assign(repeats=table["repeats"].where(decode, 0))
        ready = prepare(table, attention=row["attention"] or "flash", execution=row["execution"])
        asked = {"model": row["model"], "gpus": 1, "latency_s": latency_s, "batch": 1, "source": row["source"]}
        cases.append(Case(asked, merge_equal(columns_of(ready)), get_gpu(row["gpu"]), row["execution"], {}))
    return cases
