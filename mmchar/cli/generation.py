"""The shell commands on one generation of a model: counted, measured."""

import argparse

from mmchar.cli.options import call_given, given
from mmchar.cli.output import Answer, check_out, save, stage_lines
from mmchar.counting.operator_table import count, summarize_count
from mmchar.measuring.optimization.ladder import Levers
from mmchar.projection.utilization import add_mfu
from mmchar.request import Request
from mmchar.runs.records import save_measured


def count_model(args: argparse.Namespace) -> Answer:
    """Count one generation."""
    check_out(args.out)
    check_out(args.perfetto, (".json",), name="--perfetto")
    same = {name: getattr(args, name) for name in ("dtype", "attention", "tiny", "cache")}
    table = count(args.model, Request(**given(Request, args)), **same, **call_given(args, count))
    save(table, args.out, args.perfetto)
    found = summarize_count(table)
    moved = found["read_bytes"] + found["write_bytes"]
    lines = [
        f"{found['model']}{' (scaled-down variant)' if args.tiny else ''}, one generation:",
        f"  {found['params'] / 1e9:.3f} B parameters, peak memory {found['peak_bytes'] / 1e9:.2f} GB",
        f"  {found['flop'] / 1e12:,.2f} TFLOP, {moved / 1e9:,.1f} GB moved",
        *stage_lines(found["stages"], "flop", 1e9, "GFLOP per execution"),
        *uncounted_lines(found["uncounted"]),
    ]
    return Answer(found, "\n".join(lines))


def measure_model(args: argparse.Namespace) -> Answer:
    """Measure one generation on this machine."""
    from mmchar.measuring.profiling import measure, summarize_measured

    check_out(args.perfetto, (".json",), name="--perfetto")
    same = {name: getattr(args, name) for name in ("device", "dtype", "attention", "tiny", "samples")}
    stages = args.stages.split(",") if args.stages else None
    request, levers = Request(**given(Request, args)), Levers(**given(Levers, args))
    more = call_given(args, measure)
    table = measure(args.model, request, levers=levers, stages=stages, **same, **more)
    if args.out:
        save_measured(args.out, table)
    save(table, None, args.perfetto)
    found = summarize_measured(table)
    if device := ((found["machine"] or {}).get("before") or {}).get("name"):  # a GPU
        counted = count(args.model, request, dtype=found["dtype"], tiny=args.tiny, **more)
        add_mfu(found, counted, device)
    scale = ", scaled-down variant" if args.tiny else ""
    lines = [
        f"{args.model} on {args.device}{scale}: {found['time_s']:.3f} s measured ({args.attention} attention)",
        *stage_lines(found["stages"], "median_s", 1e-3, "ms per execution"),
        *(f"  in doubt: {doubt}" for doubt in found["doubts"]),
    ]
    return Answer(found, "\n".join(lines))


def uncounted_lines(names: list[str]) -> list[str]:
    """A line that names the operators without a formula, if there are any."""
    return [f"uncounted operators: {', '.join(names)}"] if names else []
