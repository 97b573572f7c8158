"""The shell command that reads a trace which someone else recorded."""

import argparse

import pandas as pd

from mmchar.cli.output import Answer, aligned, check_out, formatted, records, save
from mmchar.measuring.recorded.table import STAGE, kernel_table, read_trace
from mmchar.projection.data_sheets import get_gpu
from mmchar.study.beside_traces import beside_trace, compared

_ROWS = 20  # that are shown; --out and --json have all
_LEFT_OUT = ("model", "stage", "step", "repeats", "component", "live_bytes", "time_kind")


def show_trace(args: argparse.Namespace) -> Answer:
    """Read a trace, and set the projection of its rows beside it."""
    check_out(args.out)
    check_out(args.perfetto, (".json",), name="--perfetto")
    if args.gpu:
        get_gpu(args.gpu)  # a wrong name is refused before a large file is read
    table, gpu, why = read_trace(args.file), None, ""
    try:
        table = beside_trace(table, gpu=args.gpu)
        gpu = table.attrs["gpu"]
    except ValueError as error:
        table, why = table.assign(projected_s=float("nan")), str(error)
    save(table, args.out, args.perfetto)
    facts, kernels, categories = table.attrs, kernel_table(table), compared(table, "category")
    idle, covered, doubts = (facts[name][STAGE] for name in ("idle", "coverage", "doubts"))
    found = {
        **{name: facts[name] for name in ("model", "device", "dtype", "steps")},
        "gpu": gpu,
        "not_projected": why,
        "time_s": float(table["time_s"].sum()),
        **{name: idle[name] for name in ("busy_s", "span_s", "kernels", "launch_bound")},
        "idle_share": idle["share"],
        "coverage": covered,
        "doubts": doubts,
        "categories": records(categories),
        "rows": records(table.drop(columns=list(_LEFT_OUT))),
        "kernel_kinds": records(kernels),
    }
    lines = [
        f"{facts['model']} on {facts['device'] or 'a GPU without a name'}: {idle['kernels']} kernels,"
        f" {1e3 * idle['busy_s']:,.3f} ms busy of {1e3 * idle['span_s']:,.3f} ms (idle {idle['share']:.0%})",
        f"  operators explain {covered['of_operators']:.1%} of the kernels' time, and shapes are known of"
        f" {covered['with_sizes']:.1%}",
        *(f"  in doubt: {doubt}" for doubt in doubts),
        f"  not projected: {why}" if why else f"  beside it the projection on {gpu}, kernels only",
        "",
        _beside(categories),
        "",
        _kinds(kernels) if args.kernels else _beside(_by_shape(table)),
    ]
    return Answer(found, "\n".join(lines))


def _by_shape(table: pd.DataFrame) -> pd.DataFrame:
    """The longest operators, each with equal shapes in all modules; of an attention core its lengths."""
    lengths = table["q_len"].astype(str) + " x " + table["kv_len"].astype(str) + " tokens, "
    lengths += table["heads"].astype(str) + " heads of " + table["head_dim"].astype(str)
    name = table["op"].astype(str) + " " + table["shapes"].where(table["q_len"] == 0, lengths)
    return compared(table.assign(operator=name), "operator").head(_ROWS)


def _beside(table: pd.DataFrame) -> str:
    shown = table.assign(
        time_s=formatted(1e3 * table["time_s"], "{:,.3f} ms"),
        share=formatted(table["share"], "{:.1%}"),
        projected_s=formatted(1e3 * table["projected_s"].where(table["ratio"].notna()), "{:,.3f} ms"),
        ratio=formatted(table["ratio"], "{:.2f}"),
    ).drop(columns="known_s")
    return aligned(shown.rename(columns={"time_s": "measured", "projected_s": "projected"}))


def _kinds(kernels: pd.DataFrame) -> str:
    """Kernels by kind, then the longest ones by name."""
    kinds = kernels.groupby("kind", as_index=False)[["launches", "time_s", "share"]].sum()
    tables = (kinds.sort_values("time_s", ascending=False), kernels.head(_ROWS))
    return "\n\n".join(
        aligned(
            table.assign(
                time_s=formatted(1e3 * table["time_s"], "{:,.3f} ms"), share=formatted(table["share"], "{:.1%}")
            )
        )
        for table in tables
    )
