"""The shell commands on one generation of a model: counted, projected, measured."""

import argparse

import pandas as pd

from mmchar.cli.options import call_given, given
from mmchar.cli.output import Answer, check_out, save, stage_lines
from mmchar.counting.operator_table import count, summarize_count
from mmchar.measuring.optimization.ladder import Levers
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.memory import summarize_memory
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import project
from mmchar.projection.summary import summarize
from mmchar.projection.uncertainty import time_range
from mmchar.request import Request
from mmchar.runs.records import save_measured


def count_model(args: argparse.Namespace) -> Answer:
    """Count one generation."""
    check_out(args.out)
    check_out(args.perfetto, (".json",), name="--perfetto")
    table = _counted(args, attention=args.attention)
    save(table, args.out, args.perfetto)
    found = summarize_count(table)
    moved = found["read_bytes"] + found["write_bytes"]
    lines = [
        f"{found['model']}{' (scaled-down variant)' if args.tiny else ''}, one generation:",
        f"  {found['params'] / 1e9:.3f} B parameters, peak memory {found['peak_bytes'] / 1e9:.2f} GB",
        f"  {found['flop'] / 1e12:,.2f} TFLOP, {moved / 1e9:,.1f} GB moved",
        *stage_lines(found["stages"], "flop", 1e9, "GFLOP per execution"),
        *_uncounted_lines(found["uncounted"]),
    ]
    return Answer(found, "\n".join(lines))


def project_model(args: argparse.Namespace) -> Answer:
    """Project one generation onto a GPU, or several."""
    check_out(args.out)
    check_out(args.perfetto, (".json",), name="--perfetto")
    gpu = get_gpu(args.gpu)
    gpu.check_dtype(args.dtype)
    table = _shared(args)
    memory = summarize_memory(table, gpu)
    projected = project(table, gpu=args.gpu, attention=args.attention, execution=args.execution)
    save(projected, args.out, args.perfetto)
    found = summarize(projected) | {name: memory[name] for name in ("peak_bytes", "fits")}
    found["range"] = reach = time_range(projected, found["time_s"])
    how = f"{args.attention} attention, {args.execution} execution, {args.dtype}"
    on = f"{found['gpus']} x {gpu.name}" if found.get("gpus", 1) > 1 else gpu.name
    lines = [
        f"{args.model} on {on}: {found['time_s']:.3f} s, {found['energy_j']:,.0f} J projected ({how})",
        f"  likely {reach['low_s']:.3f} to {reach['high_s']:.3f} s, as far as we were off for {reach['kind']}",
        *stage_lines(found["stages"], "time_s", 1e-3, "ms per execution"),
        *_uncounted_lines(found["uncounted"]),
    ]
    if not found["fits"]:
        needs, has = found["peak_bytes"] / 1e9, gpu.memory_bytes / 1e9
        lines.append(f"  needs {needs:.0f} GB and {gpu.name} has {has:.0f} GB: it does not fit one GPU as it is")
    return Answer(found, "\n".join(lines))


def measure_model(args: argparse.Namespace) -> Answer:
    """Measure one generation on this machine."""
    from mmchar.measuring.profiling import measure, summarize_measured

    check_out(args.perfetto, (".json",), name="--perfetto")
    same = {name: getattr(args, name) for name in ("device", "dtype", "attention", "tiny", "samples")}
    stages = args.stages.split(",") if args.stages else None
    request, levers = Request(**given(Request, args)), Levers(**given(Levers, args))
    table = measure(args.model, request, levers=levers, stages=stages, **same, **call_given(args, measure))
    if args.out:
        save_measured(args.out, table)
    save(table, None, args.perfetto)
    found = summarize_measured(table)
    scale = ", scaled-down variant" if args.tiny else ""
    lines = [
        f"{args.model} on {args.device}{scale}: {found['time_s']:.3f} s measured ({args.attention} attention)",
        *stage_lines(found["stages"], "median_s", 1e-3, "ms per execution"),
        *(f"  in doubt: {doubt}" for doubt in found["doubts"]),
    ]
    return Answer(found, "\n".join(lines))


def _counted(args: argparse.Namespace, request: Request | None = None, *, attention: str = "flash") -> pd.DataFrame:
    """The count of the request that was asked for, unless another is given."""
    same = {name: getattr(args, name) for name in ("dtype", "tiny", "cache")}
    request = request or Request(**given(Request, args))
    return count(args.model, request, attention=attention, **same, **call_given(args, count))


def _shared(args: argparse.Namespace) -> pd.DataFrame:
    """The count of what one GPU does."""
    degrees = Degrees(**given(Degrees, args))
    table = _counted(args)
    if degrees.gpus == 1:
        return table
    spec = get_spec(args.model, tiny=args.tiny)
    return parallelize(table, degrees, count=lambda request: _counted(args, request), spec=spec)


def _uncounted_lines(names: list[str]) -> list[str]:
    return [f"uncounted operators: {', '.join(names)}"] if names else []
