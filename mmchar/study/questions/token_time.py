"""Where the time of one decoded token goes: the limit of memory, the host, idle time over batch and size.

Tables are ``mmchar.count`` of models that decode token by token, by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from mmchar.locks import alone
from mmchar.measuring.profiling import measure
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.decode_costs import must_read_bytes, token_breakdown, token_cost, token_rows
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.scaling import count_batch
from mmchar.request import Request
from mmchar.study.drawing.length_plots import curves
from mmchar.tables.totals import executions

EXECUTIONS = ("eager", "compiled")


def memory_and_host(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """What bandwidth and host alone say of the mean decoding step of each model, and how idle a GPU is at most.

    Columns: ``model, weights (GB), cache (GB), limit (ms), operators, host (ms), idle, 0 to (%)``. Raises a ValueError
    for a model that does not decode token by token.
    """
    rows, dispatch_s, bandwidth = [], Efficiency().dispatch_s, get_gpu(gpu).bandwidth_bytes_s
    for name, table in tables.items():
        part = token_rows(table)
        steps = executions(part)["decode"]
        weights, cache = (each / steps for each in must_read_bytes(part))
        calls = (part["calls"] * part["repeats"])[part["read_bytes"] + part["write_bytes"] > 0].sum() / steps
        limit_s, host_s = (weights + cache) / bandwidth, calls * dispatch_s
        idle = 100 * (1 - limit_s / host_s)
        rows.append((name, weights / 1e9, cache / 1e9, 1e3 * limit_s, calls, 1e3 * host_s, idle))
    columns = ["model", "weights (GB)", "cache (GB)", "limit (ms)", "operators", "host (ms)", "idle, 0 to (%)"]
    return pd.DataFrame(rows, columns=columns)


def by_operator(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """`decode_costs.token_breakdown` in ms, eager and compiled, with ``model, execution, run`` (the two), ``gpu``."""
    parts = []
    for name, table in tables.items():
        for execution in EXECUTIONS:
            part = token_breakdown(table, gpu=gpu, execution=execution)
            which = {"model": name, "execution": execution, "run": f"{name}, {execution}"}
            parts.append(part.assign(value=1e3 * part["value"], gpu=gpu, **which))
    return pd.concat(parts, ignore_index=True)


def token_costs(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """`decode_costs.token_cost` of each model, eager and compiled, and in ms ``token_ms, device_ms, limit_ms``."""
    found = []
    for name, table in tables.items():
        for how in EXECUTIONS:
            found.append({"model": name, "execution": how, **token_cost(table, gpu=gpu, execution=how)})
    out = pd.DataFrame(found)
    in_ms = {f"{part}_ms": 1e3 * out[f"{part}_s"] for part in ("token", "device", "limit")}
    return out.assign(**in_ms, gpu=gpu, time_kind="projected")


def operator_shares(breakdown: pd.DataFrame) -> pd.DataFrame:
    """Share (%) of each category in a token of a table of `by_operator`: a row per model and execution."""
    wide = breakdown.pivot_table(index=["model", "execution"], columns="category", values="value", sort=False)
    return 100 * wide.fillna(0).div(wide.sum(axis=1), axis=0)


def matrix_share(breakdown: pd.DataFrame) -> "pd.Series[float]":
    """Percent of the kernels' time that linear layers and attention take, per model, eager."""
    rows = breakdown[(breakdown["execution"] == "eager") & (breakdown["category"] != "Idle")]
    both = rows[rows["category"].isin(["Linear", "Attention"])]
    whole, part = (each.groupby("model", sort=False)["value"].sum() for each in (rows, both))
    return 100 * part / whole


def over_batches(
    models: Iterable[str], batches: Sequence[int], *, gpu: str, dtype: str, tiny: bool = False, progress: bool = True
) -> pd.DataFrame:
    """`decode_costs.token_cost` of each model at each batch (sequences), eager, from two counts (`count_batch`).

    Besides ``model, batch`` and ``weights_gb`` (read in a step), in percent ``idle`` of a step, and ``limit``: how near
    a step is to the bandwidth's limit.
    """
    rows, sheet = [], get_gpu(gpu)
    for name in tqdm(list(models), desc="batches", disable=not progress):
        for batch in batches:
            table = count_batch(name, Request(batch=batch), dtype=dtype, tiny=tiny)
            rows.append({"model": name, "batch": batch, **token_cost(table, gpu=gpu)})
    out = pd.DataFrame(rows).assign(gpu=gpu, time_kind="projected")
    weights_gb = out["weights_s"] * sheet.bandwidth_bytes_s / 1e9
    return out.assign(idle=100 * out["idle_share"], limit=100 * out["reached"], weights_gb=weights_gb)


def idle_panels(sweep: pd.DataFrame, *, own: Sequence[str], title: str) -> Figure:
    """Idle share of a table of `over_batches`: over the batch, of models `own`; over the weights, of all."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.8, 6.6), layout="constrained")
    look: dict[str, Any] = {"y": "idle", "base": None, "ylabel": "GPU idle (% of a step)"}
    few, batches = sweep[sweep["model"].isin(own)], sweep["batch"].unique().tolist()
    curves(few, x="batch", hue="model", xlabel="batch (sequences)", ax=above, **look).set_xscale("log", base=2)
    above.set_xticks(batches, [f"{batch}" for batch in batches])
    by_size = sweep.sort_values(["batch", "weights_gb"])
    by_size = by_size.assign(batch="batch " + by_size["batch"].astype(str))
    curves(by_size, x="weights_gb", hue="batch", xlabel="weights read per step (GB)", ax=below, **look)
    below.set_xscale("log")
    below.xaxis.set_major_formatter("{x:g}")
    figure.suptitle(title, fontsize=10)
    return figure


@alone()
def measured_steps(models: Iterable[str], *, samples: int, progress: bool = True) -> pd.DataFrame:
    """A decoding step of scaled-down models on this CPU in float32, and what it takes besides its operators.

    Columns: ``model, operators, step (ms), IQR / median, operators (ms), outside operators (%), us per operator``.
    """
    rows = []
    for name in tqdm(list(models), desc="measure", disable=not progress):
        table = measure(name, tiny=True, samples=samples, stages=["decode"], progress=False)
        calls = int(table.loc[table["read_bytes"] + table["write_bytes"] > 0, "calls"].sum())
        step_s, iqr_s = (table.attrs[key]["decode"] for key in ("median_s", "iqr_s"))
        rows.append((name, calls, step_s, iqr_s, float(table["time_s"].sum())))
    out = pd.DataFrame(rows, columns=["model", "operators", "step_s", "iqr_s", "busy_s"])
    found = {
        "model": out["model"],
        "operators": out["operators"],
        "step (ms)": 1e3 * out["step_s"],
        "IQR / median": out["iqr_s"] / out["step_s"],
        "operators (ms)": 1e3 * out["busy_s"],
        "outside operators (%)": 100 * (1 - out["busy_s"] / out["step_s"]).clip(lower=0),
        "us per operator": 1e6 * out["step_s"] / out["operators"],
    }
    return pd.DataFrame(found).assign(time_kind="measured", scale="scaled down", machine="this CPU")


def learned(token: pd.DataFrame, sweep: pd.DataFrame, gains: "pd.Series[float]") -> str:
    """What tables of `token_costs` and `over_batches` say, and the gain of all levers by model, as a list."""
    lines, by_way = [], token.set_index(["model", "execution"])
    for name in token["model"].unique():
        eager, free = by_way.loc[(name, "eager")], by_way.loc[(name, "compiled")]
        text = f"- **{name}**: {eager['token_ms']:.3g} ms a token, {100 * eager['idle_share']:.0f} % idle; compiled"
        text += f" {free['token_ms']:.3g} ms, {100 * free['reached']:.0f} % of the bandwidth limit"
        lines.append(f"{text}; all levers {gains[name]:.2f}x.")
    busy = sweep[sweep["idle_share"] <= 0.02].groupby("model", sort=False)["batch"].min()
    until = ", ".join(f"{name} {batch}" for name, batch in busy.items())
    tried = sweep["batch"].unique().tolist()
    return "\n".join([*lines, f"- Batch from which the GPU no longer waits (of {tried}): {until or 'none'}."])
