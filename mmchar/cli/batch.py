"""The shell commands that run notebooks, look at what they left, and make the site of it."""

import argparse
from collections import Counter
from typing import Any

from mmchar.cli.options import slurm_given
from mmchar.cli.output import Answer, aligned, records
from mmchar.runs.listing import diff_runs, read_runs, show_run, text_of
from mmchar.runs.study_batch import study, study_exit_code
from mmchar.study.site.build import build_site, size_line


def run_study(args: argparse.Namespace) -> Answer:
    """Run the notebooks, which says on the way how each ended."""
    slurm = slurm_given(args)
    how = {name: getattr(args, name) for name in ("only", "gpu", "quick", "jobs", "force", "dry_run")}
    statuses = study(args.notebooks, args.results, render_dir=args.render, slurm=slurm, **how)
    return Answer(None, "", 0 if args.dry_run else study_exit_code(statuses))


def make_site(args: argparse.Namespace) -> Answer:
    """Make the static site, and say how large it is."""
    few = ["stable-diffusion-1.5"] if args.quick else None
    site = build_site(args.out, models=few, played=few)
    return Answer(None, size_line(site))


def look_at_runs(args: argparse.Namespace) -> Answer:
    """List the runs of a folder, show one, or compare two."""
    match args.what:
        case []:
            table = read_runs(args.results)
            columns = ["run", "id", "status", "checks", "utc", "message"]
            return Answer(records(table), aligned(table[columns].fillna("")))
        case ["show", name]:
            shown = show_run(args.results, name)
            return Answer(shown, "\n".join(_shown_lines(shown)))
        case ["diff", first, second]:
            rows = diff_runs(args.results, first, second)
            many = f"{len(rows)} differences" if rows else "no difference"
            return Answer(rows, "\n".join([*map(_difference, rows), many]))
    raise ValueError(f"mmchar runs {' '.join(args.what)}: give nothing, 'show ID' or 'diff A B'")


def _difference(row: dict[str, Any]) -> str:
    change = f": {text_of(row['first'])} -> {text_of(row['second'])}" if row["first"] != "" else ""
    return f"{row['what']:<10} {row['name']}{change}"


def _shown_lines(shown: dict[str, Any]) -> list[str]:
    """Single values on a line each, then what belongs together, indented."""
    lines = [f"{key:<12}{text_of(value)}" for key, value in shown.items() if not isinstance(value, dict | list)]
    for key in ("versions", "hardware", "parameters", "figures"):
        lines += [f"{key}:", *(f"  {name:<14} {text_of(value)}" for name, value in shown[key].items())]
    lines += ["tables:", *(f"  {name} ({entry['rows']} rows)" for name, entry in shown["tables"].items())]
    lines += ["files:", *(f"  {file}" for file in shown["files"])]
    verdicts = Counter(check["verdict"] for check in shown["checks"])
    lines.append(f"checks: {', '.join(f'{many} {verdict}' for verdict, many in verdicts.items()) or 'none'}")
    return [line.rstrip() for line in lines]
