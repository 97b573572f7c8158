"""What one token costs: time, idle time, and how far it is from what memory bandwidth allows."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd

from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.tables.totals import executions
from mmchar.tracing.attention import ITEM_BYTES

# Stages that run once per generated token; guidance may decode once more, with a prompt of its own.
_PER_TOKEN = re.compile(r"(?:decode|reorder_cache)(?:_variant_\d+)?")


def is_per_token(stage: str) -> bool:
    """Whether a stage of this name runs once per generated token."""
    return bool(_PER_TOKEN.fullmatch(stage))


def per_token(table: pd.DataFrame) -> pd.Series:
    """Which rows of a table belong to stages that run once per generated token."""
    return table["stage"].astype(str).map(is_per_token)


def token_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a generation that run once per token (all its decoding steps)."""
    rows = table[per_token(table)].copy()
    if not (rows["stage"] == "decode").any():
        name = table.attrs.get("model")
        raise ValueError(f"{name} has no stage 'decode'; choose a model that decodes token by token")
    rows.attrs = table.attrs
    return rows


def token_cost(
    table: pd.DataFrame, *, gpu: str | Gpu, execution: str = "eager", efficiency: Efficiency | None = None
) -> dict[str, Any]:
    """Projected seconds of one decoding step, the mean over all of them, and what they are made of.

    Returns
    -------
    dict
        ``token_s``; ``device_s``, of the kernels; ``idle_share``, of the time in which the device waits for its host;
        ``calls``, the kernels that the host issues; ``limit_s``, the time to read the weights and the cache once at the
        data sheet's bandwidth; ``weights_s``, the same of the weights alone; ``reached``, ``limit_s / token_s``.
    """
    rows, sheet = token_rows(table), get_gpu(gpu)
    steps, rates = int(executions(rows)["decode"]), efficiency or Efficiency()
    timed = project(rows, gpu=sheet, execution=execution, efficiency=rates)
    token_s = (timed["time_s"] * timed["repeats"]).sum() / steps
    device_s = _device_s(rows, sheet, execution, rates).sum() / steps
    weights, cache = must_read_bytes(rows)
    limit_s = (weights + cache) / steps / sheet.bandwidth_bytes_s
    return {
        "token_s": float(token_s),
        "device_s": float(device_s),
        "idle_share": float(1 - device_s / token_s),
        "calls": int((timed["kernels"] * timed["repeats"]).sum() / steps),
        "weights_s": weights / steps / sheet.bandwidth_bytes_s,
        "limit_s": limit_s,
        "reached": limit_s / float(token_s),
    }


def token_breakdown(table: pd.DataFrame, *, gpu: str | Gpu, execution: str = "eager") -> pd.DataFrame:
    """Projected seconds of one decoding step by ``category``: of its kernels, and ``Idle``, waiting for the host."""
    rows, cost = token_rows(table), token_cost(table, gpu=gpu, execution=execution)
    device_s = _device_s(rows, gpu, execution, Efficiency()) / int(executions(rows)["decode"])
    total = device_s.groupby(rows["category"].astype(str)).sum()
    total["Idle"] = cost["token_s"] - cost["device_s"]
    return pd.DataFrame({"category": total.index, "value": total.to_numpy(), "time_kind": "projected"})


def must_read_bytes(rows: pd.DataFrame) -> tuple[int, int]:
    """Bytes of weights, and of keys and values, that all decoding steps together must read."""
    total = rows["read_bytes"] * rows["repeats"]
    weights = (weight_bytes(rows) * rows["repeats"]).sum()
    return int(weights), int(total[rows["attention"].astype(str) != ""].sum())


def weight_bytes(rows: pd.DataFrame) -> pd.Series:
    """Bytes of weights that each row reads: a linear layer's FLOP are 2 x rows of input x numbers in its weight.

    In a decoding step every linear layer gets one row of input per sequence and beam, twice that with guidance: the
    batch as the attention of its stage sees it. Keys and values of a cross attention stand in its cache.
    """
    stage, attends = rows["stage"].astype(str), rows["attention"].astype(str) == "causal"
    inputs = rows["batch"].where(attends, 1).groupby(stage).transform("max")
    linear = (rows["category"] == "Linear") & (rows["flop"] > 0)
    return (rows["flop"] // (2 * inputs) * _item_bytes(rows)).where(linear, 0).astype("int64")


def narrow_weights(table: pd.DataFrame, *, item_bytes: int = 1) -> pd.DataFrame:
    """The table with linear layers whose weights are stored in ``item_bytes`` per number and widened in registers.

    Arithmetic, activations and everything else stay as they are: weight-only quantization by a kernel that reaches
    the same bandwidth as the one that it replaces.
    """
    stored = weight_bytes(table)
    out = table.assign(read_bytes=table["read_bytes"] - (stored - stored // _item_bytes(table) * item_bytes))
    out.attrs = table.attrs
    return out


def _device_s(rows: pd.DataFrame, gpu: str | Gpu, execution: str, rates: Efficiency) -> pd.Series:
    """Seconds of each row's kernels in all steps, as with a host that takes no time."""
    alone = replace(rates, dispatch_s=0.0, dispatch_compiled_s=0.0)
    return project(rows, gpu=gpu, execution=execution, efficiency=alone)["time_s"] * rows["repeats"]


def _item_bytes(rows: pd.DataFrame) -> pd.Series:
    """Bytes per number of each row's inputs; those of no number type, as of a cache that is moved, do not matter."""
    return rows["dtype"].astype(str).map(ITEM_BYTES).fillna(1).astype("int64")
