"""The shell's ways to measure more than one model: a grid, a machine's ceilings, and packing what was cut off."""

import argparse
from pathlib import Path
from typing import Any

from mmchar.cli.output import check_out, print_json, print_table, save

NUMBERS = ("first_s", "second_s", "ratio", "spread")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the ways to measure more than one model."""
    parser.add_argument("--grid", metavar="FILE", help="measure what is missing of this grid, the most valuable first")
    parser.add_argument("--ceilings", action="store_true", help="measure what this machine's operators reach at best")
    parser.add_argument("--pack", action="store_true", help="pack what a campaign that was cut off left in --out")
    parser.add_argument(
        "--compare", nargs=2, metavar="FOLDER", help="medians of what two campaigns both measured, side by side"
    )
    parser.add_argument("--budget", type=_seconds, help="seconds that --grid or --ceilings may take in all")
    parser.add_argument("--have", metavar="FOLDER", action="append", help="results not to measure again; repeatable")
    parser.add_argument("--list", action="store_true", help="with --grid: what is missing, and its cost; runs nothing")
    parser.add_argument("--retry", action="store_true", help="with --grid: measure again what failed twice")


_MODES = {  # what may be given with each way to measure, beside --out and --json
    "grid": ("budget", "have", "list", "retry"),
    "ceilings": ("budget", "device", "tiny"),
    "pack": (),
    "compare": (),
}


def check_mode(args: argparse.Namespace, blank: dict[str, Any]) -> str:
    """Which way to measure is asked for: grid, ceilings, pack, or "" for a single model.

    Options of one way that are given with another are refused; ``blank`` holds the value of each that is not given.
    """
    modes = [mode for mode in _MODES if getattr(args, mode)]
    given = [name for name, value in vars(args).items() if name != "run" and value != blank[name]]
    if not modes:
        if args.model is None:
            raise ValueError("measure needs a MODEL, or --grid FILE, or --ceilings; 'mmchar measure --help' says more")
        wrong = [name for name in given if name in _MODES["grid"]]
        if wrong:
            raise ValueError(f"--{wrong[0]} goes with --grid or --ceilings, not with a single model")
        return ""
    fitting = (modes[0], "out", "json", *_MODES[modes[0]])
    wrong = [name for name in given if name not in fitting]
    if wrong:
        name = "a model" if wrong[0] == "model" else f"--{wrong[0].replace('_', '-')}"
        takes = ", ".join(f"--{one}" for one in fitting[1:])
        raise ValueError(f"{name} does not go with --{modes[0]}; it takes {takes}")
    return modes[0]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _print_listed(rows: list[dict[str, Any]]) -> None:
    spent = 0.0
    for row in rows:
        spent += row["expect_s"] or 0.0 if row["state"] == "missing" else 0.0
        cost = f"{row['expect_s']:8.0f} s" if row["expect_s"] else " " * 10
        need = f"{row['need_bytes'] / 1e9:7.1f} GB" if row["need_bytes"] else " " * 10
        after = f"{spent:8.0f} s" if row["state"] == "missing" else " " * 10
        why = f"  {row['reason']}" if row["reason"] else ""
        print(f"{row['state']:<8} {row['value']:>6g} {cost} {after} {need}  {row['point']}{why}")
    many = sum(row["state"] == "missing" for row in rows)
    print(f"{many} of {len(rows)} points are missing, about {spent:.0f} s (value, cost, cost so far, memory, point)")


def run_grid(args: argparse.Namespace) -> int:
    """Measure what is missing of a grid, or list it."""
    from mmchar.runs.campaign import grid_run as campaign

    if args.list:
        own = [args.out] if args.out and Path(args.out).is_dir() else []  # a first campaign has no folder yet
        listed = campaign.list_campaign(args.grid, have=[*(args.have or ()), *own])
        print_json({"points": listed}) if args.json else _print_listed(listed)
        return 0
    if not args.out:
        raise ValueError("--grid needs --out, the folder of the results")
    rows = campaign.run_campaign(
        args.grid, args.out, budget_s=args.budget or float("inf"), have=args.have or (), retry=args.retry
    )
    statuses = campaign.counts(rows)
    if args.json:
        keys = ("id", "status", "reason", "asked", "hardware", "expect_s", "took_s")
        print_json({"statuses": statuses, "points": [{key: row.get(key) for key in keys} for row in rows]})
    else:
        print(", ".join(f"{many} {status}" for status, many in statuses.items()))
    return campaign.exit_code(rows)


def run_ceilings(args: argparse.Namespace) -> int:
    """Measure what this machine reaches at best, operator by operator."""
    if not args.out:
        raise ValueError("--ceilings needs --out, the folder of the results")
    from mmchar.measuring.ceilings import measure_ceilings, save_ceilings

    table = measure_ceilings(device=args.device, budget_s=args.budget or float("inf"), tiny=args.tiny, keep=args.out)
    path = save_ceilings(args.out, table)
    reached = {kind: int(many) for kind, many in table.groupby("status")["op"].count().items()}
    if args.json:
        print_json({"file": path.name, "statuses": reached})
    else:
        print(f"{path.name}: " + ", ".join(f"{many} {status}" for status, many in reached.items()))
    return 0


def run_pack(args: argparse.Namespace) -> int:
    """Pack the results of a campaign that was cut off."""
    if not args.out:
        raise ValueError("--pack needs --out, the folder of the results")
    from mmchar.runs.campaign.measured import load_points, pack

    found, problems = load_points(args.out)
    left = pack(args.out)
    if args.json:
        print_json({"points": len(found), "left": left, "damaged": list(problems.values())})
        return 0
    for problem in problems.values():
        print(problem)
    print(f"{len(found) - len(left)} points packed" + (f", {len(left)} did not fit" if left else ""))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """Set two campaigns side by side; exits with 0 whether they agree or not."""
    check_out(args.out)
    from mmchar.runs.campaign.comparison import compare_campaigns

    table = compare_campaigns(*args.compare)
    save(table, args.out)
    if args.json:
        print_json({"stages": table.to_dict("records")})
        return 0
    shown = table.drop(columns=["device", "tiny"])
    print_table(shown.assign(**{name: shown[name].map("{:.4g}".format) for name in NUMBERS}))
    off = (table["ratio"] - 1).abs()
    print(
        f"{len(table)} stages, {table['within'].sum()} within their spread; off by {100 * off.median():.1f} % in the "
        f"median, {100 * off.max():.1f} % at most"
    )
    return 0


RUN = {"grid": run_grid, "ceilings": run_ceilings, "pack": run_pack, "compare": run_compare}
