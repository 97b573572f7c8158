"""The shell command that sets two generations side by side."""

import argparse

import pandas as pd

from mmchar.cli.options import given
from mmchar.cli.output import Answer, aligned, check_out, formatted, records, save
from mmchar.request import Request
from mmchar.study.comparing import SETTINGS, compare


def compare_two(args: argparse.Namespace) -> Answer:
    """Compare two models, GPUs, settings, traces or runs."""
    check_out(args.out)
    check_out(args.figure, (".png", ".svg"), name="--figure")
    settings = {name: getattr(args, name) for name in SETTINGS} | given(Request, args)
    table = compare(args.first, args.second, **settings)
    save(table, args.out)
    if args.figure:
        _draw(table, args.figure)
    facts = table.attrs
    lines = [
        *(
            f"{name:<7} {label} ({kind})"
            for name, label, kind in zip(("first", "second"), facts["labels"], facts["time_kinds"], strict=True)
        ),
        f"differ: {'; '.join(f'{name} {one} -> {two}' for name, (one, two) in facts['differs'].items()) or 'nothing'}",
        "",
        aligned(_shown(table)),
    ]
    return Answer({**facts, "rows": records(table)}, "\n".join(lines))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    ms = {name: formatted(1e3 * table[f"{name}_s"], "{:,.3f} ms") for name in ("first", "second", "difference")}
    shown = pd.DataFrame({"what": table["what"], "part": table["part"], **ms})
    shown["second/first"] = formatted(table["ratio"], "{:.3f}")
    for side in ("first", "second"):
        shown[f"TFLOP {side}"] = formatted(table[f"{side}_flop"] / 1e12, "{:,.3f}")
    return shown


def _draw(table: pd.DataFrame, path: str) -> None:
    from mmchar.runs.figures import write_figure
    from mmchar.study.drawing.comparison import comparison
    from mmchar.study.drawing.look import style

    style()
    write_figure(comparison(table), path)
