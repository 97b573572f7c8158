"""The shell: what can be asked for. A command parses, calls one function of the package and prints; none computes."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmchar import __version__
from mmchar.cli import campaign as cli_campaign
from mmchar.cli.batch import run_runs, run_study
from mmchar.cli.generation import run_count, run_measure, run_project
from mmchar.cli.options import DEGREES, lever_options, model_options, slurm_options, whole
from mmchar.cli.reference import run_claims, run_doctor, run_gpus, run_models, run_validate, run_zoo
from mmchar.measuring.optimization.backends import MEASURED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a failed run, 2 bad input (one line on stderr)."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice on loading weights is not about us
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("always", category=UserWarning, module="mmchar")
        warnings.showwarning = _noting(notes, warnings.showwarning)
        code = _run(argv)
    for note in notes if code == 0 else ():  # what is refused is refused in one line
        print(f"mmchar: note: {note}", file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None) -> int:
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


def _noting(notes: list[str], show: Callable[..., None]) -> Callable[..., None]:
    """Show warnings as before, but keep those of this package, each once."""
    ours = str(Path(__file__).parents[1])

    def note(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        if not filename.startswith(ours):
            show(message, category, filename, *rest, **more)
        elif str(message) not in notes:
            notes.append(str(message))

    return note


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
    _finish(measure, _measure)

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


def _measure(args: argparse.Namespace) -> int:
    """Measure one generation, or what a grid asks for, or the machine's ceilings."""
    mode = cli_campaign.check_mode(args, blank=vars(_parser().parse_args(["measure"])))
    return cli_campaign.RUN[mode](args) if mode else run_measure(args)


def _finish(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
