"""The shell's ways to measure more than one model: a grid, a machine's ceilings, packing, comparing two campaigns."""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mmchar.cli.generation import measure_model
from mmchar.cli.output import Answer, aligned, check_out, formatted, records, save
from mmchar.runs.campaign.campaign import exit_code, list_campaign, run_campaign
from mmchar.runs.campaign.comparison import compare_campaigns
from mmchar.runs.campaign.measured import load_points, pack

_WITH: dict[str, tuple[str, ...]] = {  # what may be given with each way to measure, beside --out and --json
    "grid": ("budget", "have", "list", "retry"),
    "ceilings": ("budget", "device", "tiny"),
    "pack": (),
    "compare": (),
}


def measure_asked(args: argparse.Namespace) -> Answer:
    """Measure one model, or more than one in the way that was asked for; options of another way are refused."""
    asked = [name for name, value in vars(args).items() if value != args.parser.get_default(name)]
    way = next((name for name in _WAYS if name in asked), None)
    if way is None:
        if args.model is None:
            raise ValueError("measure needs a MODEL, or --grid FILE, or --ceilings; 'mmchar measure --help' says more")
        for name in _WITH["grid"]:
            if name in asked:
                raise ValueError(f"--{name} goes with --grid or --ceilings, not with a single model")
        return measure_model(args)
    fitting = (way, "out", "json", *_WITH[way])
    for name in asked:
        if name not in fitting:
            wrong = "a model" if name == "model" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{wrong} does not go with --{way}; it takes --{', --'.join(fitting[1:])}")
    if not (args.out or args.list or args.compare):
        raise ValueError(f"--{way} needs --out, the folder of the results")
    return _WAYS[way](args)


def _grid(args: argparse.Namespace) -> Answer:
    if args.list:
        return _listed(args)
    rows = run_campaign(args.grid, args.out, budget_s=args.budget, have=args.have, retry=args.retry)
    statuses, keys = (
        Counter(row["status"] for row in rows),
        ("id", "status", "reason", "asked", "hardware", "expect_s", "took_s"),
    )
    found = {"statuses": statuses, "points": [{key: row.get(key) for key in keys} for row in rows]}
    return Answer(found, _many(statuses), exit_code(rows))


def _listed(args: argparse.Namespace) -> Answer:
    """What a campaign would measure, and what that would cost."""
    own = [args.out] if args.out and Path(args.out).is_dir() else []  # a first campaign has no folder yet
    points = list_campaign(args.grid, have=[*args.have, *own])
    table = pd.DataFrame(points)
    missing, cost = table["state"] == "missing", table["expect_s"].astype(float)
    so_far = cost.where(missing).fillna(0).cumsum()
    shown = table[["state", "value"]].assign(
        cost=formatted(cost, "{:.0f} s"),
        so_far=formatted(so_far.where(missing), "{:.0f} s"),
        memory=formatted(table["need_bytes"].astype(float) / 1e9, "{:.1f} GB"),
        point=table["point"],
        reason=table["reason"],
    )
    many = f"{missing.sum()} of {len(table)} points are missing, about {so_far.max():.0f} s"
    return Answer({"points": points}, f"{aligned(shown)}\n{many}")


def _ceilings(args: argparse.Namespace) -> Answer:
    from mmchar.measuring.ceilings import measure_ceilings, save_ceilings

    table = measure_ceilings(device=args.device, budget_s=args.budget, tiny=args.tiny, keep=args.out)
    path, statuses = save_ceilings(args.out, table), table["status"].value_counts(sort=False).to_dict()
    return Answer({"file": path.name, "statuses": statuses}, f"{path.name}: {_many(statuses)}")


def _pack(args: argparse.Namespace) -> Answer:
    points, problems = load_points(args.out)
    left = pack(args.out)
    packed = f"{len(points) - len(left)} points packed" + (f", {len(left)} did not fit" if left else "")
    return Answer(
        {"points": len(points), "left": left, "damaged": list(problems.values())},
        "\n".join([*problems.values(), packed]),
    )


def _compare(args: argparse.Namespace) -> Answer:
    """Two campaigns side by side; a success whether they agree or not."""
    check_out(args.out)
    table = compare_campaigns(*args.compare)
    save(table, args.out)
    numbers = {name: formatted(table[name], "{:.4g}") for name in ("first_s", "second_s", "ratio", "spread")}
    off = 100 * (table["ratio"] - 1).abs()
    within = f"{len(table)} stages, {table['within'].sum()} within their spread"
    text = f"{within}; off by {off.median():.1f} % in the median, {off.max():.1f} % at most"
    shown = table.drop(columns=["device", "tiny"]).assign(**numbers)
    return Answer({"stages": records(table)}, f"{aligned(shown)}\n{text}")


def _many(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{many} {status}" for status, many in statuses.items())


_WAYS = {"grid": _grid, "ceilings": _ceilings, "pack": _pack, "compare": _compare}
