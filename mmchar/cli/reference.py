"""The shell commands on what is known: the zoo, the GPUs, this machine, and what the papers state."""

import argparse
import json

from mmchar.cli.output import Answer, aligned, check_out, formatted, records
from mmchar.models.loading import list_models
from mmchar.models.specs import schema
from mmchar.projection.data_sheets import get_gpu, list_gpus
from mmchar.provenance import doctor
from mmchar.runs.verdicts import counts
from mmchar.study.verdicts.pages import write_verdicts
from mmchar.study.verdicts.scorecard import moves, scorecard
from mmchar.study.verdicts.setting import Setting
from mmchar.study.zoo_page import write_page, zoo_table


def list_zoo(args: argparse.Namespace) -> Answer:
    """List the zoo, or say what a model file may hold."""
    if args.schema:
        return Answer(schema(), json.dumps(schema(), indent=1))
    table = list_models()
    if args.family is not None:
        families = sorted(set(table["family"]))
        if args.family not in families:
            raise ValueError(f"unknown family {args.family!r}; choose one of {', '.join(families)}")
        table = table[table["family"] == args.family]
    if args.match is not None:
        table = table[table["model"].str.contains(args.match, case=False, regex=False)]
        if table.empty:
            raise ValueError(f"no model's name holds {args.match!r}; 'mmchar models' lists all")
    more = table["unpublished"].map(lambda roles: " +" if roles else "  ")  # + a component of unpublished size
    shown = table.assign(
        params=formatted(table["published_params"] / 1e9, "{:.2f} B") + more,
        request=table["request"].map(lambda given: ", ".join(f"{name} {value}" for name, value in given.items())),
    )
    return Answer(records(table), aligned(shown[["model", "family", "year", "params", "request"]]))


def compare_zoo(args: argparse.Namespace) -> Answer:
    """Compare the zoo with what is published, and write the page of it."""
    check_out(args.out, (".md",))
    table = zoo_table(progress=not args.json)
    if args.out:
        write_page(args.out, zoo=table)
    billions = {name: formatted(table[name] / 1e9, "{:.2f} B") for name in ("published_params", "built_params")}
    shown = table.assign(**billions, tflop=formatted(table["tflop"], "{:,.2f}"))
    return Answer(records(table), aligned(shown[["model", "family", "year", *billions, "tflop", "request"]]))


def list_sheets(args: argparse.Namespace) -> Answer:
    """List the GPUs that a projection can name."""
    table = list_gpus()
    shown = table[["name", "vendor", "year"]].assign(
        fp16_tflop_s=formatted(table["float16_flop_s"] / 1e12, "{:.0f}"),
        tb_s=formatted(table["bandwidth_bytes_s"] / 1e12, "{:.2f}"),
        memory_gb=formatted(table["memory_bytes"] / 1e9, "{:.0f}"),
        tdp_w=formatted(table["tdp_w"], "{:.0f}"),
        source=table["source"],
    )
    return Answer(records(table), aligned(shown))


def examine(args: argparse.Namespace) -> Answer:
    """Say what this machine and its packages can do."""
    facts = doctor()
    width = max(map(len, facts))
    return Answer(facts, "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def judge_claims(args: argparse.Namespace) -> Answer:
    """Judge the papers' claims, or say which assumption moves one of them; ``--out`` writes all verdicts as CSV."""
    check_out(args.out, (".csv",))
    get_gpu(args.gpu).check_dtype(args.dtype)
    setting = Setting(gpu=args.gpu, dtype=args.dtype, execution=args.execution)
    if args.moves is not None:
        table = moves(args.moves, setting)
        return Answer(records(table), aligned(table.round(2)))
    table = scorecard(setting, progress=not args.json)
    if args.out:
        write_verdicts(table, args.out)
    shown = table[table["ours"].notna()][["id", "short", "ours", "low", "high", "our_unit", "verdict", "condition"]]
    return Answer(records(table), f"{aligned(shown.round(2))}\n\n{counts(table)}")
