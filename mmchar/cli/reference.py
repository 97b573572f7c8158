"""The shell commands on what is known: the zoo, the GPUs, this machine, and projections held against publications."""

import argparse
import json
import sys

from mmchar.cli.output import check_out, print_json, print_table, save


def run_models(args: argparse.Namespace) -> int:
    """List the zoo."""
    from mmchar.models.loading import list_models

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
    if args.json:
        print_json(table.to_dict("records"))
        return 0
    more = table["unpublished"].map(bool).map({True: " +", False: "  "})  # + a component of unpublished size
    short = table.assign(
        params=(table["published_params"] / 1e9).map("{:.2f} B".format) + more,
        request=table["request"].map(lambda given: ", ".join(f"{name} {value}" for name, value in given.items())),
    )
    print_table(short[["model", "family", "year", "params", "request"]])
    return 0


def run_zoo(args: argparse.Namespace) -> int:
    """Compare the zoo with what is published, or write the page of it."""
    check_out(args.out, (".md",))
    from mmchar.study.zoo_page import write_page, zoo_table

    if args.out:
        write_page(args.out, progress=not args.json)
    if args.out and not args.json:
        return 0
    table = zoo_table(progress=not args.json)
    if args.json:
        print_json(json.loads(table.to_json(orient="records")))
        return 0
    billions = {name: (table[name] / 1e9).map("{:.2f} B".format) for name in ("published_params", "built_params")}
    short = table.assign(**billions, tflop=table["tflop"].map("{:,.2f}".format))
    print_table(short[["model", "family", "year", *billions, "tflop", "request"]])
    return 0


def run_gpus(args: argparse.Namespace) -> int:
    """List the GPUs that a projection can name."""
    from mmchar.projection.data_sheets import list_gpus

    table = list_gpus()
    if args.json:
        print_json(json.loads(table.to_json(orient="records")))
        return 0
    tera = (table["float16_flop_s"] / 1e12).map("{:.0f}".format)
    moved, memory = table["bandwidth_bytes_s"] / 1e12, table["memory_bytes"] / 1e9
    short = table.assign(fp16_tflop_s=tera, tb_s=moved.map("{:.2f}".format), memory_gb=memory.map("{:.0f}".format))
    print_table(short[["name", "year", "fp16_tflop_s", "tb_s", "memory_gb", "source"]])
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Say what this machine and its packages can do."""
    from mmchar.provenance import doctor

    facts = doctor()
    if args.json:
        print_json(facts)
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def run_validate(args: argparse.Namespace) -> int:
    """Compare projections with measurements; 1 if some rows could not be used."""
    check_out(args.out)
    check_out(args.figure, (".png", ".svg"), name="--figure")
    from mmchar.projection.validation import figures, read_rows, summary, validate

    rows, how = read_rows(args.rows), {"attention": args.attention, "execution": args.execution, "dtype": args.dtype}
    table = validate(rows, **how, leave_out=args.leave_one_model_out, progress=not args.json)
    problems = table.attrs.pop("problems")
    for problem in problems:
        print(f"mmchar: {problem}", file=sys.stderr)
    if not table.empty:
        save(table, args.out)
    if args.figure and not table.empty:
        from mmchar.study.validation_plots import save_predicted_against_measured

        save_predicted_against_measured(table, args.figure)
    if args.json:
        print_json({"rows": len(table), "problems": problems, "summary": figures(table)})
    else:
        if not table.empty:
            print_table(summary(table).round(1))
        fitted = "; each model by a fit to the others" if args.leave_one_model_out else ""
        print(f"{len(table)} rows, errors in percent: (predicted - measured) / measured{fitted}")
    return 1 if problems else 0


def run_claims(args: argparse.Namespace) -> int:
    """Judge the paper's claims by projections of its models."""
    from mmchar.projection.data_sheets import get_gpu

    get_gpu(args.gpu).check_dtype(args.dtype)
    from mmchar.study.claims import projected_suite, scorecard

    suite = projected_suite(gpu=args.gpu, dtype=args.dtype, execution=args.execution, progress=not args.json)
    table = scorecard(*suite).assign(gpu=args.gpu, time_kind="projected")
    if args.json:
        print_json(table.to_dict("records"))
        return 0
    print_table(table[["id", "statement", "paper", "ours", "unit", "low", "high", "verdict", "how"]])
    return 0
