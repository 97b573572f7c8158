"""The shell commands on one generation of a model: counted, projected, measured."""

import argparse
from typing import TYPE_CHECKING

from mmchar.cli.options import call_asked, degrees_asked, levers_asked, request_asked
from mmchar.cli.output import check_out, print_json, print_stages, save
from mmchar.request import Request

if TYPE_CHECKING:
    import pandas as pd


def run_count(args: argparse.Namespace) -> int:
    """Count one generation."""
    from mmchar.counting.operator_table import count, summarize_count

    check_out(args.out)
    table = count(
        args.model,
        request_asked(args),
        dtype=args.dtype,
        attention=args.attention,
        tiny=args.tiny,
        cache=not args.no_cache,
        **call_asked(args),
    )
    save(table, args.out)
    summary = summarize_count(table)
    if args.json:
        print_json(summary)
        return 0
    print(f"{summary['model']}{' (scaled-down variant)' if args.tiny else ''}, one generation:")
    print(f"  {summary['params'] / 1e9:.3f} B parameters, peak memory {summary['peak_bytes'] / 1e9:.2f} GB")
    moved = summary["read_bytes"] + summary["write_bytes"]
    print(f"  {summary['flop'] / 1e12:,.2f} TFLOP, {moved / 1e9:,.1f} GB moved")
    print_stages(summary["stages"], "flop", 1e9, "GFLOP per execution")
    _print_uncounted(summary["uncounted"])
    return 0


def run_project(args: argparse.Namespace) -> int:
    """Project one generation onto a GPU."""
    from mmchar.counting.operator_table import count
    from mmchar.projection.data_sheets import get_gpu
    from mmchar.projection.roofline import project, summarize, summarize_memory
    from mmchar.projection.uncertainty import time_range

    check_out(args.out)
    gpu = get_gpu(args.gpu)
    gpu.check_dtype(args.dtype)
    degrees, call = degrees_asked(args), call_asked(args)

    def counted(request: Request) -> "pd.DataFrame":
        return count(args.model, request, dtype=args.dtype, tiny=args.tiny, cache=not args.no_cache, **call)

    table = counted(request_asked(args))
    if degrees is not None:
        from mmchar.models.loading import get_spec
        from mmchar.projection.parallel.layout import parallelize

        table = parallelize(table, degrees, count=counted, spec=get_spec(args.model, tiny=args.tiny))
    memory = summarize_memory(table, gpu)
    projected = project(table, gpu=args.gpu, attention=args.attention, execution=args.execution)
    save(projected, args.out)
    summary = summarize(projected) | {name: memory[name] for name in ("peak_bytes", "fits")}
    summary["range"] = time_range(projected, summary["time_s"])
    if args.json:
        print_json(summary)
        return 0
    how = f"{args.attention} attention, {args.execution} execution, {args.dtype}"
    on = f"{summary['gpus']} x {gpu.name}" if summary.get("gpus", 1) > 1 else gpu.name
    print(f"{args.model} on {on}: {summary['time_s']:.3f} s, {summary['energy_j']:,.0f} J projected ({how})")
    reach = summary["range"]
    print(f"  likely {reach['low_s']:.3f} to {reach['high_s']:.3f} s, as far as we were off for {reach['kind']}")
    print_stages(summary["stages"], "time_s", 1e-3, "ms per execution")
    _print_uncounted(summary["uncounted"])
    if not summary["fits"]:
        needs, has = summary["peak_bytes"] / 1e9, gpu.memory_bytes / 1e9
        print(f"  needs {needs:.0f} GB and {gpu.name} has {has:.0f} GB: it does not fit one GPU as it is")
    return 0


def run_measure(args: argparse.Namespace) -> int:
    """Measure one generation on this machine."""
    from mmchar.measuring.profiling import measure, summarize_measured

    table = measure(
        args.model,
        request_asked(args),
        device=args.device,
        dtype=args.dtype,
        attention=args.attention,
        tiny=args.tiny,
        samples=args.samples,
        levers=levers_asked(args),
        stages=args.stages.split(",") if args.stages else None,
        **call_asked(args),
    )
    if args.out:
        from mmchar.runs.records import save_measured

        save_measured(args.out, table)
    summary = summarize_measured(table)
    if args.json:
        print_json(summary)
        return 0
    scale = ", scaled-down variant" if args.tiny else ""
    print(f"{args.model} on {args.device}{scale}: {summary['time_s']:.3f} s measured ({args.attention} attention)")
    print_stages(summary["stages"], "median_s", 1e-3, "ms per execution")
    for doubt in summary["doubts"]:
        print(f"  in doubt: {doubt}")
    return 0


def _print_uncounted(names: list[str]) -> None:
    if names:
        print(f"uncounted operators: {', '.join(names)}")
