"""The shell's projections: one generation on a GPU, on every GPU, or on several of them in the fastest way."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from mmchar.cli.generation import uncounted_lines
from mmchar.cli.options import call_given, given
from mmchar.cli.output import Answer, aligned, check_out, formatted, records, save, stage_lines
from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec
from mmchar.projection.data_sheets import Gpu, get_gpu, list_gpus
from mmchar.projection.efficiency_file import EfficiencyFile, read_efficiency
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.planning.choices import best_ways, on_every_gpu
from mmchar.projection.planning.decoders import Generation
from mmchar.projection.planning.memory import first_to_fit
from mmchar.projection.planning.step_caching import cache_steps, check_blocks
from mmchar.projection.roofline import project
from mmchar.projection.summary import summarize, summarize_memory
from mmchar.projection.uncertainty import time_range
from mmchar.request import Request

Change = Callable[[pd.DataFrame], pd.DataFrame]


def project_asked(args: argparse.Namespace) -> Answer:
    """Project one generation in the way that was asked for; options of another way are refused."""
    check_out(args.out)
    check_out(args.perfetto, (".json",), name="--perfetto")
    many = "--best-of" if args.best_of is not None else "--gpu all" if args.gpu == "all" else ""
    if many and args.perfetto:
        raise ValueError(f"--perfetto writes one generation, and {many} projects several; leave out one of them")
    shared = [name for name in given(Degrees, args) if getattr(args, name) != 1]
    if many and shared:
        does = {"--best-of": "tries every way to share", "--gpu all": "projects onto one GPU each"}[many]
        raise ValueError(f"--{shared[0]} is given, but {many} {does}; leave out one of them")
    if many and args.efficiency:
        raise ValueError(f"--efficiency is of one GPU; name it with --gpu, and leave out {many}")
    if args.best_of is not None and args.gpu == "all":
        raise ValueError("--best-of needs one kind of GPU; name it with --gpu")
    return {"": _on_one_kind, "--gpu all": _everywhere, "--best-of": _best_of}[many](args, _step_cache(args))


def _on_one_kind(args: argparse.Namespace, change: Change) -> Answer:
    """One GPU, or several that share the generation as asked."""
    gpu, degrees = get_gpu(args.gpu), Degrees(**given(Degrees, args))
    gpu.check_dtype(args.dtype)
    own = read_efficiency(args.efficiency) if args.efficiency else EfficiencyFile()
    generation = _generation(args)
    table = change(_shared(args, generation.table, degrees))
    memory = summarize_memory(table, gpu)
    projected = project(table, gpu=args.gpu, attention=args.attention, execution=args.execution, efficiency=own.rates)
    save(projected, args.out, args.perfetto)
    found = summarize(projected, whole=change(generation.table), power=own.power)
    found |= {name: memory[name] for name in ("peak_bytes", "fits")}
    found["vendor"] = gpu.vendor
    found["range"] = reach = own.time_range(found["time_s"]) or time_range(projected, found["time_s"])
    found["memory"] = first_to_fit(generation, gpu) if degrees.gpus == 1 else []
    on = f"{degrees.gpus} x {gpu.name}" if degrees.gpus != 1 else gpu.name
    used = f", {found['mfu']:.0%} MFU" if found["mfu"] else ""
    lines = [
        f"{args.model} on {on}: {found['time_s']:.3f} s, {found['energy_j']:,.0f} J{used} projected ({_how(args)})",
        *_range_lines(reach),
        *stage_lines(found["stages"], "time_s", 1e-3, "ms per execution"),
        *uncounted_lines(found["uncounted"]),
        *_memory_lines(found, gpu),
    ]
    return Answer(found, "\n".join(lines))


def _range_lines(reach: dict[str, Any]) -> list[str]:
    within = f"{reach['low_s']:.3f} to {reach['high_s']:.3f} s"
    said = f"  likely {within}, as far as we were off for {reach['kind']} (n = {reach['n']})"
    return [said, f"  {reach['why']}"] if reach["why"] else [said]


def _everywhere(args: argparse.Namespace, change: Change) -> Answer:
    """One row per GPU, the fastest first."""
    generation = _generation(args)
    how = {"attention": args.attention, "execution": args.execution}
    table = on_every_gpu(generation, table=change(generation.table), **how)
    save(table, args.out)
    memory = [_with_offload(row) or "fits" for row in records(table)]
    shown = table[["gpu"]].assign(**_times(table), memory=memory)
    lines = [f"{args.model} on one GPU, projected ({_how(args)}):", aligned(shown), *_vendor_lines(table["vendor"])]
    if lacking := sorted(set(list_gpus()["name"]) - set(table["gpu"])):
        lines.append(f"  without {args.dtype}: {', '.join(lacking)}")
    return Answer(records(table), "\n".join(lines))


def _best_of(args: argparse.Namespace, change: Change) -> Answer:
    """One row per way to use up to so many GPUs, the fastest first."""
    get_gpu(args.gpu).check_dtype(args.dtype)
    same = {name: getattr(args, name) for name in ("gpu", "dtype", "tiny", "attention", "execution", "cache")}
    request = Request(**given(Request, args))
    table = best_ways(args.model, request, args.best_of, change=change, **same, **call_given(args, best_ways))
    save(table, args.out)
    marks = {"does not fit": table["fits"], "not exact": table["exact"]}
    notes = [", ".join(mark for mark, good in marks.items() if not good[row]) for row in table.index]
    shown = table[["way", "gpus"]].assign(
        **_times(table),
        efficiency=formatted(100 * table["efficiency"], "{:.0f} %"),
        sent_gb=formatted(table["sent_bytes"] / 1e9, "{:.2f}"),
        note=notes,
    )
    refused = table.attrs["refused"]
    lines = [
        f"{args.model} on up to {args.best_of} x {args.gpu}, projected ({_how(args)}):",
        aligned(shown),
        *(["not exact: GPUs use activations of the step before"] if not table["exact"].all() else []),
        *([f"{len(refused)} ways are refused, e.g. {next(iter(refused.values()))}"] if refused else []),
        *_vendor_lines([get_gpu(args.gpu).vendor]),
    ]
    return Answer({"ways": records(table), "refused": refused}, "\n".join(lines))


def _generation(args: argparse.Namespace) -> Generation:
    same = {name: getattr(args, name) for name in ("dtype", "tiny", "cache")}
    return Generation.of(args.model, Request(**given(Request, args)), **same, **call_given(args, count))


def _shared(args: argparse.Namespace, table: pd.DataFrame, degrees: Degrees) -> pd.DataFrame:
    """The table of what one of the GPUs does."""
    if degrees.gpus == 1:
        return table
    same = {name: getattr(args, name) for name in ("dtype", "tiny", "cache")}
    again = partial(count, args.model, **same, **call_given(args, count))
    return parallelize(table, degrees, count=again, spec=get_spec(args.model, tiny=args.tiny))


def _step_cache(args: argparse.Namespace) -> Change:
    """What a step cache makes of a table; nothing without one."""
    if args.step_cache is None and args.hit_rate is None:
        return lambda table: table
    if args.step_cache is None or args.hit_rate is None:
        raise ValueError("--step-cache KIND and --hit-rate SHARE go together: how often steps hit is yours to state")
    check_blocks(get_spec(args.model, tiny=args.tiny))
    return partial(cache_steps, kind=args.step_cache, hit_rate=args.hit_rate)


def _how(args: argparse.Namespace) -> str:
    cached = f", steps cached by {args.step_cache}, {args.hit_rate:.0%} hits" if args.step_cache else ""
    return f"{args.attention} attention, {args.execution} execution, {args.dtype}{cached}"


def _times(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns on time, as text."""
    span = formatted(table["low_s"], "{:.2f} to ") + formatted(table["high_s"], "{:.2f}")
    used = formatted(100 * table["mfu"], "{:.0f} %")
    return {"time_s": formatted(table["time_s"], "{:.3f}"), "likely_s": span, "mfu": used}


def _memory_lines(found: dict[str, Any], gpu: Gpu) -> list[str]:
    """What does not fit, and what makes it fit; nothing where all is well."""
    ways = found["memory"]
    if found["fits"] and (not ways or (ways[0]["offload"], ways[0]["room"]) == ("none", "fits")):
        return []
    needs, has = found["peak_bytes"] / 1e9, gpu.memory_bytes / 1e9
    verdict = "is tight" if found["fits"] else "does not fit one GPU as it is"
    able = [
        f"{way['room'].replace('fits', 'fits with').replace('tight', 'tight with')} {text}"
        for way in ways
        if (text := _with_offload(way, tight=False))
    ]
    return ["; ".join([f"  needs {needs:.0f} GB and {gpu.name} has {has:.0f} GB: it {verdict}", *able])]


_NAMED = {"model": "model offload", "sequential": "sequential offload", "sliced": "VAE slicing", "tiled": "VAE tiling"}


def _with_offload(way: dict[str, Any], *, tight: bool = True) -> str:
    """A way to hold a generation: what it takes, its peak, and its cost; nothing where all stays."""
    if way["room"] == "none":
        return "does not fit"
    takes = " and ".join(_NAMED[name] for name in (way["offload"], way["decoder"]) if name in _NAMED)
    moves = f", at least {way['moved_s']:.1f} s more" if way["moved_s"] else ""
    text = f"{takes} ({way['peak_bytes'] / 1e9:.1f} GB{moves})" if takes else ""
    return f"tight{': ' if text else ''}{text}" if tight and way["room"] == "tight" else text


def _vendor_lines(vendors: Any) -> list[str]:
    others = " or ".join(sorted(set(vendors) - {"NVIDIA"}))
    return [f"  nothing on a GPU of {others} was measured, kernels as NVIDIA's are assumed"] if others else []
