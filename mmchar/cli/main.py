"""The shell: what can be asked for. A command parses, calls one function of the package and prints; none computes."""

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mmchar import __version__
from mmchar.cli import batch, campaign, comparing, evidence, generation, projecting, reference, trace
from mmchar.cli.options import add_options
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who reads has seen enough
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


class Command(NamedTuple):
    """What runs, what it does, and what may be given: names of options, fields of dataclasses."""

    run: Callable[[argparse.Namespace], Answer]
    help: str
    options: list[Any]


_GENERATION = [Request, "--call", "--tiny", "--cache", "--out", "--perfetto", "--json"]
_PROJECTION = ["--dtype", "--attention", "--execution"]
COMMANDS = {
    "models": Command(reference.list_zoo, "list the zoo", ["--family", "--match", "--schema", "--json"]),
    "zoo": Command(reference.compare_zoo, "sizes and FLOPs of the zoo against the published ones", ["--out", "--json"]),
    "gpus": Command(reference.list_sheets, "list the GPUs that a projection can name", ["--json"]),
    "count": Command(
        generation.count_model,
        "FLOPs, bytes and lengths of one generation, exact, without running it",
        ["model", *_GENERATION, "--dtype", "--attention"],
    ),
    "project": Command(
        projecting.project_asked,
        "projected time of one generation on a named GPU, on every GPU, or on several in the fastest way",
        [
            *["model", ("--gpu", {"required": True, "help": "e.g. a100-80gb; all is one row per GPU"}), "--best-of"],
            *["--efficiency", "--step-cache", "--hit-rate", *_GENERATION, *_PROJECTION, Degrees],
        ],
    ),
    "validate": Command(
        evidence.validate_rows,
        "projections beside measurements of others: errors by model, and by family, execution and GPU",
        [
            *[("rows", {"nargs": "?"}), "--published", *_PROJECTION, "--efficiency", "--leave-out", "--figure"],
            *["--write-errors", "--source", "--out", "--json"],
        ],
    ),
    "fit": Command(
        evidence.fit_rows,
        "efficiencies fitted to measurements of a GPU of your own, for --efficiency",
        ["rows", *_PROJECTION, ("--out", {"required": True, "help": "the efficiency file to write (.json)"}), "--json"],
    ),
    "measure": Command(
        campaign.measure_asked,
        "measured time of one generation, or of a grid, on this machine",
        [
            *[("model", {"nargs": "?"}), *_GENERATION, "--device", ("--dtype", {"default": None})],
            *[("--attention", {"choices": MEASURED}), "--samples", "--stages", Levers],
            *["--grid", "--ceilings", "--pack", "--compare", "--budget", "--have", "--list", "--retry"],
        ],
    ),
    "trace": Command(
        trace.show_trace,
        "a trace that someone recorded, by operator, beside the projection of its rows",
        ["file", "--gpu", "--kernels", "--out", "--perfetto", "--json"],
    ),
    "compare": Command(
        comparing.compare_two,
        "two models, GPUs, settings, traces or runs side by side, and a figure of it",
        [
            *["first", "second", ("--gpu", {"default": "a100-80gb"}), "--dtype", "--attention", "--execution"],
            *["--tiny", Request, "--figure", "--out", "--json"],
        ],
    ),
    "claims": Command(
        reference.judge_claims,
        "every statement of the papers with its verdict, or what moves one of them",
        [("--gpu", {"default": "a100-80gb"}), "--dtype", "--execution", "--moves", "--out", "--json"],
    ),
    "study": Command(
        batch.run_study,
        "run every notebook and regenerate the figures",
        [
            *["--only", "--gpu", "--notebooks", "--results", "--quick", "--jobs", "--render", "--force", "--dry-run"],
            *["--slurm", SlurmOptions],
        ],
    ),
    "site": Command(
        batch.make_site,
        "make the static site of a checkout: its pages, the zoo, and a page to play with",
        [
            ("--out", {"default": "site", "help": "the folder to make it in"}),
            ("--quick", {"help": "few models, for tests"}),
        ],
    ),
    "runs": Command(
        batch.look_at_runs,
        "list the runs behind figures and tables, show one, or compare two",
        ["what", "--results", "--json"],
    ),
    "doctor": Command(reference.examine, "what this machine and its packages can do", ["--json"]),
}


TASKS = {
    "one generation": ("count", "project", "measure", "compare", "trace"),
    "what there is": ("models", "gpus", "zoo", "doctor"),
    "how far projections are off": ("validate", "fit"),
    "the study": ("claims", "study", "runs", "site"),
}


def _parser() -> argparse.ArgumentParser:
    said = "Where the time of a multi-modal generation goes, and what would make it faster."
    parser = _Parser(
        prog="mmchar",
        usage="mmchar [-h] [--version] COMMAND ...",
        description=f"{said}\n\n{_by_task()}\n\n'mmchar COMMAND --help' tells its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmchar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="mmchar", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, description=command.help)
        added.set_defaults(run=command.run, parser=added)
        add_options(added, command.options)
    return parser


def _by_task() -> str:
    width = max(map(len, COMMANDS)) + 2
    groups = []
    for task, names in TASKS.items():
        lines = [
            textwrap.fill(
                COMMANDS[name].help, 96, initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2)
            )
            for name in names
        ]
        groups.append("\n".join([f"{task}:", *lines]))
    return "\n\n".join(groups)


if __name__ == "__main__":
    sys.exit(main())
