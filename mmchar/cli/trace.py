"""The shell command that reads a trace which someone else recorded."""

import argparse
from typing import Any

import pandas as pd

from mmchar.cli.output import Answer, aligned, check_out, formatted, records, save
from mmchar.projection.data_sheets import get_gpu
from mmchar.study.beside_traces import beside_trace, compared

_STAGE = "trace"
_ROWS = 20  # that are shown; --out and --json have all
_LEFT_OUT = ("model", "stage", "step", "repeats", "component", "live_bytes", "time_kind")


def show_trace(args: argparse.Namespace) -> Answer:
    """Read a trace, and set the projection of its rows beside it."""
    from mmchar.measuring.recorded.table import kernel_table, read_trace

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
    kernels, categories = kernel_table(table), compared(table, "category")
    found = {
        **_facts(table),
        "gpu": gpu,
        "not_projected": why,
        "categories": records(categories),
        "rows": records(table.drop(columns=list(_LEFT_OUT))),
        "kernel_kinds": records(kernels),
    }
    lines = [
        f"{found['model']} on {found['device'] or 'a GPU without a name'}: {found['kernels']} kernels,"
        f" {1e3 * found['busy_s']:,.3f} ms busy of {1e3 * found['span_s']:,.3f} ms (idle {found['idle_share']:.0%})",
        "  operators explain {of_operators:.1%} of the kernels' time, shapes are known of {with_sizes:.1%}".format_map(
            found["coverage"]
        ),
        *(f"  in doubt: {doubt}" for doubt in found["doubts"]),
        f"  not projected: {why}" if why else f"  beside it the projection on {gpu}, kernels only",
        "",
        _beside(categories),
        "",
        _kinds(kernels) if args.kernels else _beside(_by_shape(table)),
    ]
    return Answer(found, "\n".join(lines))


def _facts(table: pd.DataFrame) -> dict[str, Any]:
    facts, idle = table.attrs, table.attrs["idle"][_STAGE]
    return {
        **{name: facts[name] for name in ("model", "device", "dtype", "steps")},
        "time_s": float(table["time_s"].sum()),
        **{name: idle[name] for name in ("busy_s", "span_s", "kernels", "launch_bound")},
        "idle_share": idle["share"],
        **{name: facts[name][_STAGE] for name in ("coverage", "doubts")},
    }


def _by_shape(table: pd.DataFrame) -> pd.DataFrame:
    """The longest operators, each with equal shapes in all modules; of an attention core its lengths."""
    lengths = table["q_len"].astype(str) + " x " + table["kv_len"].astype(str) + " tokens, "
    lengths += table["heads"].astype(str) + " heads of " + table["head_dim"].astype(str)
    name = table["op"].astype(str) + " " + table["shapes"].where(table["q_len"] == 0, lengths)
    return compared(table.assign(operator=name), "operator").head(_ROWS)


def _beside(table: pd.DataFrame) -> str:
    shown = table.drop(columns="known_s").assign(
        time_s=formatted(1e3 * table["time_s"], "{:,.3f} ms"),
        share=formatted(table["share"], "{:.1%}"),
        projected_s=formatted(1e3 * table["projected_s"].where(table["ratio"].notna()), "{:,.3f} ms"),
        ratio=formatted(table["ratio"], "{:.2f}"),
    )
    if table["ratio"].isna().all():  # nothing is projected
        shown = shown.drop(columns=["projected_s", "ratio"])
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
