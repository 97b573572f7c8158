"""The shell commands that run notebooks and look at what they left."""

import argparse
import json
from typing import Any

from mmchar.cli.options import slurm_asked
from mmchar.cli.output import print_json, print_table


def run_study(args: argparse.Namespace) -> int:
    """Run the notebooks."""
    slurm = slurm_asked(args)
    from mmchar.runs.study_batch import study, study_exit_code

    statuses = study(
        args.notebooks,
        args.results,
        only=args.only,
        gpu=args.gpu,
        quick=args.quick,
        jobs=args.jobs,
        render_dir=args.render,
        force=args.force,
        dry_run=args.dry_run,
        slurm=slurm,
    )
    return 0 if args.dry_run else study_exit_code(statuses)


def run_runs(args: argparse.Namespace) -> int:
    """List the runs of a folder, show one, or compare two."""
    from mmchar.runs.listing import diff_runs, read_runs, show_run, text_of

    match args.what:
        case []:
            table = read_runs(args.results)
            if args.json:
                print_json(json.loads(table.to_json(orient="records")))
            else:
                print_table(table[["run", "id", "status", "checks", "utc", "message"]].fillna(""))
        case ["show", name]:
            shown = show_run(args.results, name)
            if args.json:
                print_json(shown)
            else:
                _print_shown(shown)
        case ["diff", first, second]:
            rows = diff_runs(args.results, first, second)
            if args.json:
                print_json(rows)
            else:
                for row in rows:
                    change = f": {text_of(row['first'])} -> {text_of(row['second'])}" if row["first"] != "" else ""
                    print(f"{row['what']:<10} {row['name']}{change}")
                print(f"{len(rows)} differences" if rows else "no difference")
        case _:
            raise ValueError(f"mmchar runs {' '.join(args.what)}: give nothing, 'show ID' or 'diff A B'")
    return 0


def _print_shown(shown: dict[str, Any]) -> None:
    """Print a run: single values on a line each, then what belongs together, indented."""
    from mmchar.runs.listing import text_of

    for key, value in shown.items():
        if not isinstance(value, dict | list):
            print(f"{key:<12}{text_of(value)}".rstrip())
    for key in ("versions", "hardware", "parameters", "figures"):
        print(f"{key}:")
        for name, value in shown[key].items():
            print(f"  {name:<14} {text_of(value)}".rstrip())
    print("tables:", *(f"\n  {name} ({entry['rows']} rows)" for name, entry in shown["tables"].items()), sep="")
    print("files:", *(f"\n  {file}" for file in shown["files"]), sep="")
    verdicts = [check["verdict"] for check in shown["checks"]]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    print(f"checks: {counted or 'none'}")
