"""The shell commands. Everything here parses, calls one function of the package and prints; nothing is computed."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mmchar import __version__, cli_campaign
from mmchar.backends import MEASURED
from mmchar.cli_batch import run_runs, run_study
from mmchar.cli_options import (
    DEGREES,
    degrees_asked,
    lever_options,
    levers_asked,
    model_options,
    request_asked,
    slurm_options,
    whole,
)
from mmchar.cli_output import check_out, print_json, print_stages, print_table, save
from mmchar.request import Request

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a failed run, 2 bad input (one line on stderr)."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice on loading weights is not about us
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except ValueError as error:
        print(f"mmchar: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmchar: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run_models(args: argparse.Namespace) -> int:
    """List the zoo."""
    from mmchar.models import list_models

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
    from mmchar.zoo_page import write_page, zoo_table

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


def run_count(args: argparse.Namespace) -> int:
    """Count one generation."""
    from mmchar.counting import count, summarize_count

    check_out(args.out)
    table = count(
        args.model,
        request_asked(args),
        dtype=args.dtype,
        attention=args.attention,
        tiny=args.tiny,
        cache=not args.no_cache,
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
    if summary["uncounted"]:
        print(f"uncounted operators: {', '.join(summary['uncounted'])}")
    return 0


def run_project(args: argparse.Namespace) -> int:
    """Project one generation onto a GPU."""
    from mmchar.counting import count
    from mmchar.hardware import get_gpu
    from mmchar.memory_fit import summarize_memory
    from mmchar.roofline import project, summarize
    from mmchar.uncertainty import time_range

    check_out(args.out)
    gpu = get_gpu(args.gpu)
    gpu.check_dtype(args.dtype)
    degrees = degrees_asked(args)
    table = count(args.model, request_asked(args), dtype=args.dtype, tiny=args.tiny, cache=not args.no_cache)
    if degrees is not None:
        from mmchar.models import get_spec
        from mmchar.parallel import parallelize

        def again(request: Request) -> "pd.DataFrame":
            return count(args.model, request, dtype=args.dtype, tiny=args.tiny, cache=not args.no_cache)

        table = parallelize(table, degrees, count=again, spec=get_spec(args.model, tiny=args.tiny))
    memory = summarize_memory(table, gpu)
    projected = project(table, gpu=args.gpu, attention=args.attention, execution=args.execution)
    save(projected, args.out)
    peak_bytes = memory["peak_bytes"]
    summary = summarize(projected) | {"peak_bytes": peak_bytes, "fits": memory["fits"]}
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
    if not summary["fits"]:
        have = gpu.memory_bytes / 1e9
        print(f"  needs {peak_bytes / 1e9:.0f} GB and {gpu.name} has {have:.0f} GB: it does not fit one GPU as it is")
    return 0


def run_validate(args: argparse.Namespace) -> int:
    """Compare projections with measurements; 1 if some rows could not be used."""
    check_out(args.out)
    check_out(args.figure, (".png", ".svg"), name="--figure")
    from mmchar.validation import figures, read_rows, summary, validate

    rows, how = read_rows(args.rows), {"attention": args.attention, "execution": args.execution, "dtype": args.dtype}
    table = validate(rows, **how, leave_out=args.leave_one_model_out, progress=not args.json)
    problems = table.attrs.pop("problems")
    for problem in problems:
        print(f"mmchar: {problem}", file=sys.stderr)
    if not table.empty:
        save(table, args.out)
    if args.figure and not table.empty:
        from mmchar.validation_plots import save_predicted_against_measured

        save_predicted_against_measured(table, args.figure)
    if args.json:
        print_json({"rows": len(table), "problems": problems, "summary": figures(table)})
    else:
        if not table.empty:
            print_table(summary(table).round(1))
        fitted = "; each model by a fit to the others" if args.leave_one_model_out else ""
        print(f"{len(table)} rows, errors in percent: (predicted - measured) / measured{fitted}")
    return 1 if problems else 0


def run_measure(args: argparse.Namespace) -> int:
    """Measure one generation on this machine, or what a grid asks for, or the machine's ceilings."""
    mode = cli_campaign.check_mode(args, vars(_parser().parse_args(["measure"])))
    if mode:
        return cli_campaign.RUN[mode](args)
    from mmchar.profiling import measure, summarize_measured

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
    )
    if args.out:
        from mmchar.records import save_measured

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


def run_gpus(args: argparse.Namespace) -> int:
    """List the GPUs that a projection can name."""
    from mmchar.hardware import list_gpus

    table = list_gpus()
    if args.json:
        print_json(json.loads(table.to_json(orient="records")))
        return 0
    tera = (table["float16_flop_s"] / 1e12).map("{:.0f}".format)
    moved, memory = table["bandwidth_bytes_s"] / 1e12, table["memory_bytes"] / 1e9
    short = table.assign(fp16_tflop_s=tera, tb_s=moved.map("{:.2f}".format), memory_gb=memory.map("{:.0f}".format))
    print_table(short[["name", "year", "fp16_tflop_s", "tb_s", "memory_gb", "source"]])
    return 0


def run_claims(args: argparse.Namespace) -> int:
    """Judge the paper's claims by projections of its models."""
    from mmchar.hardware import get_gpu

    get_gpu(args.gpu).check_dtype(args.dtype)
    from mmchar.claims import projected_suite, scorecard

    suite = projected_suite(gpu=args.gpu, dtype=args.dtype, execution=args.execution, progress=not args.json)
    table = scorecard(*suite).assign(gpu=args.gpu, time_kind="projected")
    if args.json:
        print_json(table.to_dict("records"))
        return 0
    print_table(table[["id", "statement", "paper", "ours", "unit", "low", "high", "verdict", "how"]])
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Say what this machine and its packages can do."""
    from mmchar.hardware import doctor

    facts = doctor()
    if args.json:
        print_json(facts)
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, but for a bad argument one line that says what is possible."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; '{self.prog} --help' lists what is possible")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mmchar", description="Where the time of a multi-modal generation goes, and what would make it faster."
    )
    parser.add_argument("--version", action="version", version=f"mmchar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the zoo")
    models.add_argument("--family", help="only this family")
    models.add_argument("--match", help="only names that hold this text")
    _finish(models, run_models)

    zoo = commands.add_parser("zoo", help="the zoo's sizes and FLOPs against the published ones, as a table or a page")
    zoo.add_argument("--out", help="where to write the page (.md)")
    _finish(zoo, run_zoo)

    _finish(commands.add_parser("gpus", help="list the GPUs that a projection can name"), run_gpus)

    count = commands.add_parser("count", help="FLOPs, bytes and lengths of one generation, exact, without running it")
    model_options(count)
    count.add_argument("--attention", choices=("flash", "eager"), default="flash", help="byte model of attention")
    _finish(count, run_count)

    project = commands.add_parser("project", help="projected time of one generation on a named GPU")
    model_options(project)
    project.add_argument("--gpu", required=True, help="e.g. a100-80gb, h100-sxm, t4")
    project.add_argument("--attention", choices=("flash", "eager"), default="flash")
    project.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    for name, text in DEGREES.items():
        project.add_argument(f"--{name}", type=whole, help=text)
    _finish(project, run_project)

    validate = commands.add_parser("validate", help="projections beside measurements of others: errors by model")
    validate.add_argument("rows", metavar="ROWS.csv", help="one measurement a line; data/README.md names the columns")
    validate.add_argument("--attention", choices=("flash", "eager"), default="flash")
    validate.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    validate.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    validate.add_argument(
        "--leave-one-model-out", action="store_true", help="predict each model by a fit to the other models of the file"
    )
    validate.add_argument("--out", help="where to write predicted beside measured (.parquet or .csv)")
    validate.add_argument("--figure", metavar="FILE", help="where to draw predicted against measured (.png or .svg)")
    _finish(validate, run_validate)

    measure = commands.add_parser("measure", help="measured time of one generation, or of a grid, on this machine")
    model_options(measure, dtype=None, needs_model=False)
    measure.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    measure.add_argument("--attention", choices=MEASURED, default="flash")
    measure.add_argument("--samples", type=int, default=5, help="timed runs of each stage")
    measure.add_argument("--stages", help="only these stages, e.g. denoise,decode_image")
    lever_options(measure)
    cli_campaign.add_options(measure)
    _finish(measure, run_measure)

    claims = commands.add_parser("claims", help="the paper's claims judged by projections of its models")
    claims.add_argument("--gpu", default="a100-80gb", help="the paper's own is a100-80gb")
    claims.add_argument("--dtype", default="bfloat16", help="bfloat16, float16 or float32")
    claims.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    _finish(claims, run_claims)

    study = commands.add_parser("study", help="run every notebook and regenerate the figures")
    study.add_argument("--only", help="notebook numbers, e.g. 02,05")
    study.add_argument("--gpu", help="project for this GPU")
    study.add_argument("--notebooks", default="notebooks", help="folder of the notebooks")
    study.add_argument("--results", default="results", help="folder for executed notebooks and tables")
    study.add_argument("--quick", action="store_true", help="small parameters, for tests")
    study.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    study.add_argument("--render", metavar="FOLDER", help="folder for the executed notebooks of good runs")
    study.add_argument("--force", action="store_true", help="run again what has its good result")
    study.add_argument("--dry-run", action="store_true", help="list what would run, and why; write nothing")
    slurm_options(study)
    study.set_defaults(run=run_study)

    runs = commands.add_parser("runs", help="list the runs behind figures and tables, show one, or compare two")
    runs.add_argument("what", nargs="*", metavar="show ID | diff A B", help="an id or the name of a run's folder")
    runs.add_argument("--results", default="results", help="folder of the runs")
    _finish(runs, run_runs)

    _finish(commands.add_parser("doctor", help="what this machine and its packages can do"), run_doctor)
    return parser


def _finish(parser: argparse.ArgumentParser, run: Any) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
