"""The shell commands. Everything here parses, calls one function of the package and prints; nothing is computed."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmchar import __version__, cli_campaign
from mmchar.backends import MEASURED
from mmchar.levers import EXECUTIONS, GUIDANCES, QUANTIZATIONS, Levers
from mmchar.levers import FIELDS as LEVERS
from mmchar.request import FIELDS, Request, from_mapping

if TYPE_CHECKING:
    import pandas as pd

    from mmchar.parallel import Degrees
    from mmchar.slurm import SlurmOptions

DEGREES = {
    "gpus": "how many share the generation; the product of the degrees below",
    "ulysses": "GPUs that share the denoiser's tokens, and heads around attention",
    "ring": "GPUs that share the denoiser's tokens, passing keys on",
    "cfg": "2: the halves of guidance at the same time",
    "tensor": "GPUs that share a language model's weights",
    "pipefusion": "GPUs that share the denoiser's layers",
    "patch": "GPUs that share the image (DistriFusion)",
}


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
        _print_json(table.to_dict("records"))
        return 0
    more = table["unpublished"].map(bool).map({True: " +", False: "  "})  # + a component of unpublished size
    short = table.assign(
        params=(table["published_params"] / 1e9).map("{:.2f} B".format) + more,
        request=table["request"].map(lambda given: ", ".join(f"{name} {value}" for name, value in given.items())),
    )
    _print_table(short[["model", "family", "year", "params", "request"]])
    return 0


def run_zoo(args: argparse.Namespace) -> int:
    """Compare the zoo with what is published, or write the page of it."""
    _check_out(args.out, (".md",))
    from mmchar.zoo_page import write_page, zoo_table

    if args.out:
        write_page(args.out, progress=not args.json)
    if args.out and not args.json:
        return 0
    table = zoo_table(progress=not args.json)
    if args.json:
        _print_json(json.loads(table.to_json(orient="records")))
        return 0
    billions = {name: (table[name] / 1e9).map("{:.2f} B".format) for name in ("published_params", "built_params")}
    short = table.assign(**billions, tflop=table["tflop"].map("{:,.2f}".format))
    _print_table(short[["model", "family", "year", *billions, "tflop", "request"]])
    return 0


def run_count(args: argparse.Namespace) -> int:
    """Count one generation."""
    from mmchar.counting import count, summarize_count

    _check_out(args.out)
    table = count(
        args.model, _request(args), dtype=args.dtype, attention=args.attention, tiny=args.tiny, cache=not args.no_cache
    )
    _save(table, args.out)
    summary = summarize_count(table)
    if args.json:
        _print_json(summary)
        return 0
    print(f"{summary['model']}{' (scaled-down variant)' if args.tiny else ''}, one generation:")
    print(f"  {summary['params'] / 1e9:.3f} B parameters, peak memory {summary['peak_bytes'] / 1e9:.2f} GB")
    moved = summary["read_bytes"] + summary["write_bytes"]
    print(f"  {summary['flop'] / 1e12:,.2f} TFLOP, {moved / 1e9:,.1f} GB moved")
    _print_stages(summary["stages"], "flop", 1e9, "GFLOP per execution")
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

    _check_out(args.out)
    gpu = get_gpu(args.gpu)
    gpu.check_dtype(args.dtype)
    degrees = _degrees(args)
    table = count(args.model, _request(args), dtype=args.dtype, tiny=args.tiny, cache=not args.no_cache)
    if degrees is not None:
        from mmchar.models import get_spec
        from mmchar.parallel import parallelize

        def again(request: Request) -> "pd.DataFrame":
            return count(args.model, request, dtype=args.dtype, tiny=args.tiny, cache=not args.no_cache)

        table = parallelize(table, degrees, count=again, spec=get_spec(args.model, tiny=args.tiny))
    memory = summarize_memory(table, gpu)
    projected = project(table, gpu=args.gpu, attention=args.attention, execution=args.execution)
    _save(projected, args.out)
    peak_bytes = memory["peak_bytes"]
    summary = summarize(projected) | {"peak_bytes": peak_bytes, "fits": memory["fits"]}
    summary["range"] = time_range(projected, summary["time_s"])
    if args.json:
        _print_json(summary)
        return 0
    how = f"{args.attention} attention, {args.execution} execution, {args.dtype}"
    on = f"{summary['gpus']} x {gpu.name}" if summary.get("gpus", 1) > 1 else gpu.name
    print(f"{args.model} on {on}: {summary['time_s']:.3f} s, {summary['energy_j']:,.0f} J projected ({how})")
    reach = summary["range"]
    print(f"  likely {reach['low_s']:.3f} to {reach['high_s']:.3f} s, as far as we were off for {reach['kind']}")
    _print_stages(summary["stages"], "time_s", 1e-3, "ms per execution")
    if not summary["fits"]:
        have = gpu.memory_bytes / 1e9
        print(f"  needs {peak_bytes / 1e9:.0f} GB and {gpu.name} has {have:.0f} GB: it does not fit one GPU as it is")
    return 0


def run_validate(args: argparse.Namespace) -> int:
    """Compare projections with measurements; 1 if some rows could not be used."""
    _check_out(args.out)
    _check_out(args.figure, (".png", ".svg"), name="--figure")
    from mmchar.validation import figures, read_rows, summary, validate

    rows, how = read_rows(args.rows), {"attention": args.attention, "execution": args.execution, "dtype": args.dtype}
    table = validate(rows, **how, leave_out=args.leave_one_model_out, progress=not args.json)
    problems = table.attrs.pop("problems")
    for problem in problems:
        print(f"mmchar: {problem}", file=sys.stderr)
    if not table.empty:
        _save(table, args.out)
    if args.figure and not table.empty:
        from mmchar.validation_plots import save_predicted_against_measured

        save_predicted_against_measured(table, args.figure)
    if args.json:
        _print_json({"rows": len(table), "problems": problems, "summary": figures(table)})
    else:
        if not table.empty:
            _print_table(summary(table).round(1))
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
        _request(args),
        device=args.device,
        dtype=args.dtype,
        attention=args.attention,
        tiny=args.tiny,
        samples=args.samples,
        levers=_levers(args),
        stages=args.stages.split(",") if args.stages else None,
    )
    if args.out:
        from mmchar.records import save_measured

        save_measured(args.out, table)
    summary = summarize_measured(table)
    if args.json:
        _print_json(summary)
        return 0
    scale = ", scaled-down variant" if args.tiny else ""
    print(f"{args.model} on {args.device}{scale}: {summary['time_s']:.3f} s measured ({args.attention} attention)")
    _print_stages(summary["stages"], "median_s", 1e-3, "ms per execution")
    for doubt in summary["doubts"]:
        print(f"  in doubt: {doubt}")
    return 0


def run_study(args: argparse.Namespace) -> int:
    """Run the notebooks."""
    slurm = _slurm(args)
    from mmchar.study import study, study_exit_code

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
    from mmchar.records import read_runs
    from mmchar.runs import diff_runs, show_run, text_of

    match args.what:
        case []:
            table = read_runs(args.results)
            if args.json:
                _print_json(json.loads(table.to_json(orient="records")))
            else:
                _print_table(table[["run", "id", "status", "checks", "utc", "message"]].fillna(""))
        case ["show", name]:
            shown = show_run(args.results, name)
            if args.json:
                _print_json(shown)
            else:
                _print_shown(shown)
        case ["diff", first, second]:
            rows = diff_runs(args.results, first, second)
            if args.json:
                _print_json(rows)
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
    from mmchar.runs import text_of

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


def run_gpus(args: argparse.Namespace) -> int:
    """List the GPUs that a projection can name."""
    from mmchar.hardware import list_gpus

    table = list_gpus()
    if args.json:
        _print_json(json.loads(table.to_json(orient="records")))
        return 0
    tera = (table["float16_flop_s"] / 1e12).map("{:.0f}".format)
    moved, memory = table["bandwidth_bytes_s"] / 1e12, table["memory_bytes"] / 1e9
    short = table.assign(fp16_tflop_s=tera, tb_s=moved.map("{:.2f}".format), memory_gb=memory.map("{:.0f}".format))
    _print_table(short[["name", "year", "fp16_tflop_s", "tb_s", "memory_gb", "source"]])
    return 0


def run_claims(args: argparse.Namespace) -> int:
    """Judge the paper's claims by projections of its models."""
    from mmchar.hardware import get_gpu

    get_gpu(args.gpu).check_dtype(args.dtype)
    from mmchar.claims import projected_suite, scorecard

    suite = projected_suite(gpu=args.gpu, dtype=args.dtype, execution=args.execution, progress=not args.json)
    table = scorecard(*suite).assign(gpu=args.gpu, time_kind="projected")
    if args.json:
        _print_json(table.to_dict("records"))
        return 0
    _print_table(table[["id", "statement", "paper", "ours", "unit", "low", "high", "verdict", "how"]])
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Say what this machine and its packages can do."""
    from mmchar.hardware import doctor

    facts = doctor()
    if args.json:
        _print_json(facts)
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
    _model_options(count)
    count.add_argument("--attention", choices=("flash", "eager"), default="flash", help="byte model of attention")
    _finish(count, run_count)

    project = commands.add_parser("project", help="projected time of one generation on a named GPU")
    _model_options(project)
    project.add_argument("--gpu", required=True, help="e.g. a100-80gb, h100-sxm, t4")
    project.add_argument("--attention", choices=("flash", "eager"), default="flash")
    project.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    for name, text in DEGREES.items():
        project.add_argument(f"--{name}", type=_whole, help=text)
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
    _model_options(measure, dtype=None, needs_model=False)
    measure.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    measure.add_argument("--attention", choices=MEASURED, default="flash")
    measure.add_argument("--samples", type=int, default=5, help="timed runs of each stage")
    measure.add_argument("--stages", help="only these stages, e.g. denoise,decode_image")
    _lever_options(measure)
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
    _slurm_options(study)
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


def _model_options(
    parser: argparse.ArgumentParser, dtype: str | None = "bfloat16", *, needs_model: bool = True
) -> None:
    many = None if needs_model else "?"
    parser.add_argument("model", metavar="MODEL", nargs=many, help="a zoo name, a model file, or a folder of configs")
    for name in FIELDS:
        kind = {"steps": _steps, "guidance": _number}.get(name, _whole)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="request; the model's default if not given")
    parser.add_argument("--dtype", default=dtype, help="bfloat16, float16 or float32")
    parser.add_argument("--tiny", action="store_true", help="the scaled-down variant of the model")
    parser.add_argument("--no-cache", action="store_true", help="count afresh")
    parser.add_argument("--out", help="where to write the whole table (.parquet or .csv; a folder for measure)")


def _lever_options(parser: argparse.ArgumentParser) -> None:
    default = Levers()
    parser.add_argument("--execution", choices=EXECUTIONS, default=default.execution, help="compiled: repeated blocks")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default=default.quantization, help="through torchao")
    parser.add_argument("--channels-last", action="store_true", help="convolutions in channels-last layout")
    parser.add_argument("--fused-qkv", action="store_true", help="one projection for q, k and v in the denoiser")
    parser.add_argument("--cfg", choices=GUIDANCES, default=default.cfg, help="guidance in one execution or in two")
    parser.add_argument("--layer-skip", type=_whole, default=0, help="self-speculation: skip every k-th layer")
    parser.add_argument("--draft-tokens", type=_whole, default=default.draft_tokens, help="drafted per verification")
    parser.add_argument("--acceptance", type=_number, help="chance that a drafted token is accepted, 0 to 1")


def _levers(args: argparse.Namespace) -> Levers:
    return Levers(**{name: getattr(args, name) for name in LEVERS})


def _slurm_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slurm", action="store_true", help="send the runs to a Slurm cluster as one job array")
    parser.add_argument("--partition", help="with --slurm: where to run")
    parser.add_argument("--time-limit", type=_whole, metavar="MIN", help="with --slurm: minutes per run")
    parser.add_argument("--gres", help="with --slurm: GPUs that one run has for itself, e.g. gpu:1")
    parser.add_argument("--parallel", type=_whole, metavar="N", help="with --slurm: runs at a time")


def _slurm(args: argparse.Namespace) -> "SlurmOptions | None":
    given = {
        "partition": args.partition,
        "time_limit_min": args.time_limit,
        "gres": args.gres,
        "parallel": args.parallel,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not args.slurm:
        if given:
            name = next(iter(given)).removesuffix("_min").replace("_", "-")
            raise ValueError(f"--{name} says what to ask of Slurm; add --slurm, or leave it out")
        return None
    from mmchar.slurm import SlurmOptions, check_slurm

    options = SlurmOptions(**given)
    check_slurm()
    return options


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _steps(text: str) -> int | list[int]:
    steps = [_whole(part) for part in text.split(",")]
    return steps if "," in text else steps[0]


def _request(args: argparse.Namespace) -> Request:
    return from_mapping({name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None})


def _degrees(args: argparse.Namespace) -> "Degrees | None":
    """How GPUs share the work; None where none of it was asked for."""
    given = {name: getattr(args, name) for name in DEGREES if getattr(args, name) is not None}
    if not given:
        return None
    from mmchar.parallel import Degrees

    degrees = Degrees(**given)
    return degrees if degrees.gpus != 1 else None


def _check_out(out: str | None, suffixes: tuple[str, ...] = (".parquet", ".csv"), *, name: str = "--out") -> None:
    if not out:
        return
    if not out.endswith(suffixes):
        raise ValueError(f"{name} {out!r} is {'neither' if suffixes[1:] else 'not'} {' nor '.join(suffixes)}")
    folder = next(path for path in Path(out).absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name} {out!r} cannot be written: {folder.name!r} is no folder that you can write to")


def _save(table: "pd.DataFrame", out: str | None) -> None:
    if out:
        from mmchar.tables import write_table

        write_table(out, table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _print_stages(rows: list[dict[str, Any]], key: str, unit: float, label: str) -> None:
    width = max(len(row["stage"]) for row in rows)
    for row in rows:
        print(f"  {row['stage']:<{width}}  {row['repeats']:>6} x {row[key] / unit:>14,.3f} {label}")


def _print_table(table: "pd.DataFrame") -> None:
    lines = [list(table.columns), *table.astype(str).values.tolist()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
