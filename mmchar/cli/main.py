"""The shell: what can be asked for. A command parses, calls one function of the package and prints; none computes."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmchar import __version__
from mmchar.cli import batch, campaign, generation, reference
from mmchar.cli.options import add_fields, add_shared
from mmchar.cli.output import Answer
from mmchar.measuring.optimization.backends import MEASURED
from mmchar.measuring.optimization.ladder import Levers
from mmchar.projection.parallel.layout import Degrees
from mmchar.request import Request
from mmchar.runs.slurm import SlurmOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a failed run, 2 bad input (one line on stderr)."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice on loading weights is not about us
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("always", category=UserWarning, module="mmchar")
        code = _run(argv)
    notes = dict.fromkeys(map(_note, caught)) if code == 0 else ()  # what is refused is refused in one line
    print(*notes, sep="", end="", file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        answer = args.run(args)
        answer.print(as_json=getattr(args, "json", False))
        return answer.code
    except ValueError as error:
        print(f"mmchar: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmchar: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _note(caught: warnings.WarningMessage) -> str:
    """A warning of this package in one line, that of another as Python shows it."""
    if caught.filename.startswith(str(Path(__file__).parents[1])):
        return f"mmchar: note: {caught.message}\n"
    return warnings.formatwarning(caught.message, caught.category, caught.filename, caught.lineno)


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

    def command(name: str, run: Callable[[argparse.Namespace], Answer], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text)
        added.set_defaults(run=run)
        return added

    models = command("models", reference.list_zoo, "list the zoo")
    models.add_argument("--family", help="only this family")
    models.add_argument("--match", help="only names that hold this text")

    zoo = command("zoo", reference.compare_zoo, "the zoo's sizes and FLOPs against the published ones")
    add_shared(zoo, "--out", help="where to write it as a page (.md)")

    gpus = command("gpus", reference.list_sheets, "list the GPUs that a projection can name")

    count = command("count", generation.count_model, "FLOPs, bytes and lengths of one generation, without running it")
    _add_generation(count)
    add_shared(count, "--dtype", "--attention", "--out")

    project = command("project", generation.project_model, "projected time of one generation on a named GPU")
    _add_generation(project)
    add_shared(project, "--gpu", required=True)
    add_shared(project, "--dtype", "--attention", "--execution", "--out")
    add_fields(project, Degrees)

    validate = command("validate", reference.validate_rows, "projections beside measurements of others")
    validate.add_argument("rows", metavar="ROWS.csv", help="one measurement a line; data/README.md names the columns")
    add_shared(validate, "--dtype", "--attention", "--execution", "--out")
    validate.add_argument("--leave-one-model-out", action="store_true", help="fit the other models for each")
    validate.add_argument("--figure", metavar="FILE", help="where to draw predicted against measured (.png or .svg)")

    measure = command("measure", campaign.measure_asked, "measured time of one generation, or of a grid")
    _add_generation(measure, nargs="?")
    measure.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_shared(measure, "--dtype", default=None)
    add_shared(measure, "--attention", choices=MEASURED)
    measure.add_argument("--samples", type=int, default=5, help="timed runs of each stage")
    measure.add_argument("--stages", help="only these stages, e.g. denoise,decode_image")
    add_shared(measure, "--out", help="folder of the results")
    add_fields(measure, Levers)
    campaign.add_options(measure)

    claims = command("claims", reference.judge_claims, "the paper's claims judged by projections of its models")
    add_shared(claims, "--gpu", default="a100-80gb", help="the paper's own is a100-80gb")
    add_shared(claims, "--dtype", "--execution")

    study = command("study", batch.run_study, "run every notebook and regenerate the figures")
    study.add_argument("--only", help="notebook numbers, e.g. 02,05")
    add_shared(study, "--gpu", "--results")
    study.add_argument("--notebooks", default="notebooks", help="folder of the notebooks")
    study.add_argument("--quick", action="store_true", help="small parameters, for tests")
    study.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    study.add_argument("--render", metavar="FOLDER", help="folder for the executed notebooks of good runs")
    study.add_argument("--force", action="store_true", help="run again what has its good result")
    study.add_argument("--dry-run", action="store_true", help="list what would run, and why; write nothing")
    study.add_argument("--slurm", action="store_true", help="send the runs to a Slurm cluster as one job array")
    add_fields(study, SlurmOptions)

    runs = command("runs", batch.look_at_runs, "list the runs behind figures and tables, show one, or compare two")
    runs.add_argument("what", nargs="*", metavar="show ID | diff A B", help="an id or the name of a run's folder")
    add_shared(runs, "--results")

    doctor = command("doctor", reference.examine, "what this machine and its packages can do")
    for added in (models, zoo, gpus, count, project, validate, measure, claims, runs, doctor):
        add_shared(added, "--json")
    measure.set_defaults(blank=vars(measure.parse_args([])))
    return parser


def _add_generation(parser: argparse.ArgumentParser, **model: Any) -> None:
    """Add which model, and what it is asked for."""
    add_shared(parser, "model", **model)
    add_fields(parser, Request)
    add_shared(parser, "--call", "--tiny", "--cache")


if __name__ == "__main__":
    sys.exit(main())
