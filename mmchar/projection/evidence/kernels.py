"""Kernels that others timed on real GPUs beside what is projected of them, one by one and in an image decoder."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import LENGTHS, count
from mmchar.projection.columns import columns_of, holds
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.kernel_times import KernelTimes, kernel_times
from mmchar.projection.roofline import prepare
from mmchar.provenance import REFERENCE
from mmchar.tracing import operators
from mmchar.tracing.attention import ITEM_BYTES, attention_flop

_NAMES = {"linear": "matrix product", "scaled_dot_product_attention": "attention", "convolution": "convolution"}


def kernels_beside_projected(rates: Efficiency | None = None) -> pd.DataFrame:
    """One row per kernel of ``data/reference/kernel_times.csv``: what others measured, and what is projected of it.

    Returns
    -------
    DataFrame
        ``gpu, kind, sizes, measured_s, projected_s, source``. A convolution has up to three rows: its kernel, the
        copies of its maps to another layout, and the addition of its bias.
    """
    rows = pd.read_csv(REFERENCE / "kernel_times.csv")
    parts = []
    for gpu, here in rows.groupby("gpu", sort=False):
        table = pd.DataFrame([_operator(row) for row in here.to_dict("records")])
        times = _alone(table, str(gpu), rates)
        main_s = times.main_s + (rates or Efficiency()).kernel_compiled_s
        named = here.assign(kind=here["op"].map(_NAMES), sizes=[_sizes(row) for row in here.to_dict("records")])
        for suffix, measured, projected in (
            ("", "kernel_us", main_s),
            (": layout copies", "layout_us", times.layout_s),
            (": bias", "bias_us", times.bias_s),
        ):
            beside = named.assign(kind=named["kind"] + suffix, measured_s=named[measured] / 1e6, projected_s=projected)
            parts.append(beside[(beside["measured_s"] > 0) & (beside["projected_s"] > 0)])
    out = pd.concat(parts, ignore_index=True)
    return out[["gpu", "kind", "sizes", "measured_s", "projected_s", "source"]]


def decoder_beside_projected(rates: Efficiency | None = None) -> pd.DataFrame:
    """The kernels of FLUX's image decoder by kind, measured by others on an H200, beside the projection.

    Returns
    -------
    DataFrame
        ``kind, kernels, measured_s, projected_s, source``, of ``data/reference/decoder_kernels.csv``.
    """
    rows = pd.read_csv(REFERENCE / "decoder_kernels.csv")
    asked = rows.iloc[0]
    table = count(asked["model"], height=int(asked["height"]), width=int(asked["width"]), dtype=asked["dtype"])
    table = table[table["stage"] == "decode_image"].reset_index(drop=True)
    times = _alone(table, asked["gpu"], rates)
    convolution, norm = holds(table, "category", "Convolution"), holds(table, "op", "native_group_norm")
    main_s = times.main_s + times.start_s
    attends, linear = holds(table, "category", "Attention"), holds(table, "category", "Linear")
    projected = {
        "group norm: statistics": times.statistics_s[norm],
        "group norm: scaling": main_s[norm],
        "convolution": main_s[convolution],
        "convolution: layout copies": times.layout_s[convolution],
        "convolution: bias": times.bias_s[convolution],
        "attention": main_s[attends],
        "linear": main_s[linear],
        "pointwise and copies": main_s[~(convolution | norm | attends | linear)],
    }
    summed = rows["kind"].map({kind: seconds.sum() for kind, seconds in projected.items()})
    out = rows.assign(measured_s=rows["time_ms"] / 1e3, projected_s=summed)
    return out[["kind", "kernels", "measured_s", "projected_s", "source"]]


def _alone(table: pd.DataFrame, gpu: str, rates: Efficiency | None) -> KernelTimes:
    """What kernels take by themselves in eager mode, without the gaps between them, in which no kernel is timed."""
    rates = rates or Efficiency()
    own = replace(rates, kernel_s=rates.kernel_compiled_s)
    ready = prepare(table, attention="flash", execution="eager")
    return kernel_times(columns_of(ready), get_gpu(gpu), own, execution="eager")


def _operator(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the operator table that does what a timed kernel does."""
    item = ITEM_BYTES[str(row["dtype"])]
    blank = dict.fromkeys((*LENGTHS, "mask_bytes", "live_bytes", "step"), 0)
    base = blank | {"model": "", "stage": "", "module": "", "attention": "", "backend": "", "calls": 1, "repeats": 1}
    base |= {"op": row["op"], "dtype": row["dtype"], "category": operators.category(str(row["op"]), pointwise=False)}
    if row["op"] == "convolution":
        return base | _convolution(row, item)
    if row["op"] == "linear":
        m, n, k = (int(row[name]) for name in "mnk")
        moved = {"read_bytes": item * k * (m + n), "write_bytes": item * m * n}
        return base | {"m": m, "n": n, "k": k, "flop": operators.matmul_flop(m, k, n)} | moved
    batch, heads, q, kv, depth = (int(row[name]) for name in ("batch", "heads", "q_len", "kv_len", "head_dim"))
    width = item * batch * heads * depth
    return base | {
        "batch": batch, "heads": heads, "q_len": q, "kv_len": kv, "head_dim": depth, "backend": "flash",
        "attention": "causal" if row["causal"] else "self",
        "flop": attention_flop(q, kv, batch=batch, heads=heads, head_dim=depth),
        "read_bytes": width * (q + 2 * kv), "write_bytes": width * q,
    }  # fmt: skip


def _convolution(row: dict[str, Any], item: int) -> dict[str, Any]:
    image, weight, stride = (
        [int(size) for size in str(row[name]).split("x")] for name in ("input_shape", "weight_shape", "stride")
    )
    kernel = weight[2:]
    out = [(size - taps) // step + 1 for size, taps, step in zip(image[2:], kernel, stride, strict=True)]
    m, k = image[0] * int(np.prod(out)), int(np.prod(weight[1:]))
    flop = operators.convolution_flop(out, weight, batch=image[0])
    read = item * (int(np.prod(image)) + int(np.prod(weight)))
    return {"m": m, "n": weight[0], "k": k, "flop": flop, "read_bytes": read, "write_bytes": item * m * weight[0]}


def _sizes(row: dict[str, Any]) -> str:
    """The sizes of a timed kernel, to read."""
    if row["op"] == "convolution":
        return f"{row['input_shape']} * {row['weight_shape']}"
    if row["op"] == "linear":
        return " x ".join(f"{row[name]:.0f}" for name in "mnk")
    return f"{row['batch']:.0f} x {row['heads']:.0f} x {row['q_len']:.0f} x {row['kv_len']:.0f} x {row['head_dim']:.0f}"
