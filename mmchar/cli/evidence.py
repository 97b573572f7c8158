"""The shell commands on what others measured: projections held against it, and efficiencies fitted to it."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pandas as pd

from mmchar.cli.output import Answer, aligned, check_out, save
from mmchar.files import checksum
from mmchar.projection.efficiency_file import EfficiencyFile, read_efficiency, write_efficiency
from mmchar.projection.evidence.calibration import leave_out
from mmchar.projection.evidence.cases import Case, cases, published_cases
from mmchar.projection.evidence.errors import write_errors
from mmchar.projection.evidence.own_fit import fit_own, parameters
from mmchar.projection.evidence.rows import read_rows
from mmchar.projection.evidence.validation import by_kind, figures, predicted, summary
from mmchar.provenance import versions

PUBLISHED = "published_speeds.csv"


def validate_rows(args: argparse.Namespace) -> Answer:
    """Compare projections with measurements; 1 if some rows could not be used."""
    check_out(args.out)
    check_out(args.figure, (".png", ".svg"), name="--figure")
    check_out(args.write_errors, (".csv",), name="--write-errors")
    if args.leave_out and args.efficiency:
        raise ValueError("--leave-out fits anew; leave out --efficiency")
    if bool(args.rows) == args.published:
        raise ValueError("give a file of rows, or --published for those of data/reference, and not both")
    own = read_efficiency(args.efficiency) if args.efficiency else EfficiencyFile()
    ready, problems = _measured(args)
    beside = [] if args.published else published_cases() if args.leave_out or args.write_errors else []
    if args.leave_out and ready:
        table = leave_out(ready, beside, by=args.leave_out, progress=not args.json)
    else:
        table = predicted(ready, own.rates, own.power)
    if args.write_errors and ready:
        source = args.source or (PUBLISHED if args.published else Path(args.rows).name)
        write_errors(args.write_errors, ready, beside, source=source, progress=not args.json)
    return _errors(table, problems, args)


def fit_rows(args: argparse.Namespace) -> Answer:
    """Fit efficiencies to measurements; 1 if some rows could not be used."""
    check_out(args.out, (".json",))
    ready, problems = _measured(args)
    if not ready:
        return Answer({"problems": problems}, "no row can be used: nothing is written", 1)
    file = msgspec.structs.replace(
        fit_own(ready, progress=not args.json),
        rows_sha256=checksum(Path(args.rows).read_bytes()),
        software=", ".join(f"{name} {version}" for name, version in versions().items() if version),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_efficiency(args.out, file)
    tables = {"as shipped": predicted(ready), "fitted": predicted(ready, file.rates, file.power)}
    said = [f"{name}: {_median(table):.1f} % median absolute error" for name, table in tables.items()]
    if file.errors:
        said.append(f"{file.errors.how}: {100 * file.errors.median_absolute:.1f} %")
    kinds = {name.replace(" ", "_"): figures(by_kind(table)) for name, table in tables.items()}
    value = {"rows": len(ready), "problems": problems, **kinds}
    return Answer(value, "\n".join([aligned(parameters(file)), "", *said]), 1 if problems else 0)


def _measured(args: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """The cases that were asked for; each row that is not one is said on stderr."""
    if getattr(args, "published", False):
        return published_cases(progress=not args.json), []
    how = {name: getattr(args, name) for name in ("attention", "execution", "dtype")}
    ready, problems = cases(read_rows(args.rows), **how, progress=not args.json)
    for problem in problems:
        print(f"mmchar: {problem}", file=sys.stderr)
    return ready, problems


def _errors(table: pd.DataFrame, problems: Sequence[str], args: argparse.Namespace) -> Answer:
    lines = []
    if not table.empty:
        save(table, args.out)
        if args.figure:
            from mmchar.study.drawing.projection_plots import save_predicted_against_measured

            save_predicted_against_measured(table, args.figure)
        lines = [aligned(errors.round(1)) + "\n" for errors in (summary(table), by_kind(table))]
    fitted = f"; each {args.leave_out} by a fit to the others" if args.leave_out else ""
    lines.append(f"{len(table)} rows, errors in percent: (predicted - measured) / measured{fitted}")
    tables = {"summary": summary, "by_kind": by_kind}
    errors = {name: figures(make(table)) if len(table) else [] for name, make in tables.items()}
    found = {"rows": len(table), "problems": list(problems), **errors}
    return Answer(found, "\n".join(lines), 1 if problems else 0)


def _median(table: pd.DataFrame) -> float:
    return float(100 * table["latency_error"].abs().median())
