"""Options of the shell commands: the fields of the package's own dataclasses, and what they ask for."""

import argparse
import contextlib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mmchar.projection.evidence.calibration import LEFT_OUT
from mmchar.projection.planning.step_caching import KINDS as STEP_CACHES
from mmchar.projection.roofline import EXECUTIONS
from mmchar.runs.slurm import SlurmOptions, check_slurm
from mmchar.tracing.attention import BACKENDS


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


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")


_FLAG = {"action": "store_true"}
OPTIONS: dict[str, dict[str, Any]] = {  # of all commands, but for the fields of dataclasses
    "model": {"metavar": "MODEL", "help": "a zoo name, a model file, a folder of configurations, or a hub id"},
    "rows": {"metavar": "ROWS.csv", "help": "one measurement a line; data/README.md names the columns"},
    "file": {"metavar": "FILE", "help": "a trace of torch.profiler, .json or .json.gz"},
    "first": {"metavar": "A", "help": "a model, a table (.parquet), a trace or a run's folder, and its own settings"},
    "second": {"metavar": "B", "help": "the same, e.g. sdxl-base-1.0,steps=4,gpu=h100-sxm"},
    "what": {"nargs": "*", "metavar": "show ID | diff A B", "help": "an id or the name of a run's folder"},
    "--family": {"help": "only this family"},
    "--match": {"help": "only names that hold this text"},
    "--schema": {**_FLAG, "help": "the JSON Schema of a model file, for editors"},
    "--gpu": {"help": "e.g. a100-80gb, h100-sxm, t4"},
    "--best-of": {"type": _whole, "metavar": "N", "help": "rank every way to share it among up to N of these GPUs"},
    "--step-cache": {
        "choices": STEP_CACHES,
        "help": "steps that hit a cache run the first block, or its first norm, only",
    },
    "--hit-rate": {"type": _rate, "metavar": "SHARE", "help": "of the denoising steps, e.g. 0.4; yours to state"},
    "--dtype": {"default": "bfloat16", "help": "bfloat16, float16 or float32"},
    "--attention": {"choices": BACKENDS, "default": "flash", "help": "kernel, and how many bytes it moves"},
    "--execution": {"choices": EXECUTIONS, "default": "eager"},
    "--tiny": {**_FLAG, "help": "the scaled-down variant of the model"},
    "--cache": {"action": argparse.BooleanOptionalAction, "default": True, "help": "take a count from the cache"},
    "--call": {
        "action": "append",
        "metavar": "NAME=VALUE",
        "default": [],
        "help": "what else the model's own call takes, e.g. guidance_scale=4; an image is WIDTHxHEIGHT",
    },
    "--out": {"help": "where to write: a table (.parquet or .csv), the zoo's page (.md), a folder of measurements"},
    "--perfetto": {"metavar": "FILE", "help": "where to write a trace of the table for ui.perfetto.dev (.json)"},
    "--json": {**_FLAG, "help": "machine-readable output"},
    "--moves": {"metavar": "ID", "help": "change one assumption at a time, and show which moves this claim, e.g. c001"},
    "--leave-out": {"choices": LEFT_OUT, "help": "predict each model, family or GPU by a fit to the others"},
    "--published": {**_FLAG, "help": "validate with data/reference/published_speeds.csv"},
    "--efficiency": {"metavar": "FILE.json", "help": "project with what mmchar fit found"},
    "--write-errors": {
        "metavar": "FILE.csv",
        "help": "write the errors by kind, replacing those of the same source",
    },
    "--source": {"help": "with --write-errors: what the measurements are called"},
    "--figure": {"metavar": "FILE", "help": "where to draw it (.png or .svg)"},
    "--kernels": {**_FLAG, "help": "show kernels by kind and name instead of operators"},
    "--device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "--samples": {"type": int, "default": 5, "help": "timed runs of each stage"},
    "--stages": {"help": "only these stages, e.g. denoise,decode_image"},
    "--grid": {"metavar": "FILE", "help": "measure what is missing of this grid, the most valuable first"},
    "--ceilings": {**_FLAG, "help": "measure what this machine's operators reach at best"},
    "--pack": {**_FLAG, "help": "pack what a campaign that was cut off left in --out"},
    "--compare": {"nargs": 2, "metavar": "FOLDER", "help": "medians of what two campaigns both measured, side by side"},
    "--budget": {"type": _seconds, "default": math.inf, "help": "seconds that --grid or --ceilings may take in all"},
    "--have": {"metavar": "FOLDER", "action": "append", "default": [], "help": "results not to measure again"},
    "--list": {**_FLAG, "help": "with --grid: what is missing, and its cost; runs nothing"},
    "--retry": {**_FLAG, "help": "with --grid: measure again what failed twice"},
    "--only": {"help": "notebook numbers, e.g. 02,05"},
    "--notebooks": {"default": "notebooks", "help": "folder of the notebooks"},
    "--results": {"default": "results", "help": "folder of the runs: executed notebooks, tables, figures"},
    "--quick": {**_FLAG, "help": "small parameters, for tests"},
    "--jobs": {"type": int, "help": "notebooks at a time; while one measures the others wait"},
    "--render": {"metavar": "FOLDER", "help": "folder for the executed notebooks of good runs"},
    "--force": {**_FLAG, "help": "run again what has its good result"},
    "--dry-run": {**_FLAG, "help": "list what would run, and why; write nothing"},
    "--slurm": {**_FLAG, "help": "send the runs to a Slurm cluster as one job array"},
}


def add_options(parser: argparse.ArgumentParser, options: Iterable[Any]) -> None:
    """Add each option by its name, by its name with what differs for this command, or all fields of a dataclass."""
    for option in options:
        if isinstance(option, type):
            _add_fields(parser, option)
        else:
            name, different = option if isinstance(option, tuple) else (option, {})
            parser.add_argument(name, **{**OPTIONS[name], **different})


def _add_fields(parser: argparse.ArgumentParser, spec: type) -> None:
    """Add an option for each field of a dataclass: its type, and what its docstring says of it."""
    group, said = parser.add_argument_group(spec.__name__), _said(spec)
    for name, kind in get_type_hints(spec).items():
        how: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": _reader(kind)}
        group.add_argument(_option(name), dest=name, default=None, help=said.get(name), **how)


def given(spec: type, args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a dataclass whose options were given."""
    return {name: value for name in get_type_hints(spec) if (value := getattr(args, name)) is not None}


def call_given(args: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """What a model's own call is given beside what ``function`` takes: values are JSON, or else texts."""
    found: dict[str, Any] = {}
    for text in args.call:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"argument --call: {text!r} is not NAME=VALUE")
        if name in vars(args):
            raise ValueError(f"argument --call: {name!r} has an option of its own, {_option(name)}")
        if name in inspect.signature(function).parameters:
            raise ValueError(f"argument --call: {name!r} is not for the model's call")
        if name in found:
            raise ValueError(f"argument --call: {name!r} is given twice")
        found[name] = _value(value)
    return found


def slurm_given(args: argparse.Namespace) -> SlurmOptions | None:
    """What to ask of Slurm; None without it. Raises a ValueError where there is no Slurm."""
    asked = given(SlurmOptions, args)
    if args.slurm:
        options = SlurmOptions(**asked)
        check_slurm()
        return options
    for name in asked:
        raise ValueError(f"{_option(name)} says what to ask of Slurm; add --slurm, or leave it out")
    return None


def _option(name: str) -> str:
    """The option of a field; ``time_limit_min`` is ``--time-limit``."""
    return f"--{name.removesuffix('_min').replace('_', '-')}"


def _said(spec: type) -> dict[str, str]:
    """What a dataclass's docstring says of each field, in lines that begin with ``- ``field``: ``."""
    entries = re.findall(r"^- ([^:\n]+): (.+(?:\n  .+)*)", inspect.getdoc(spec) or "", re.MULTILINE)
    said = {name: text for names, text in entries for name in re.findall(r"``(\w+)``", names)}
    return {name: " ".join(text.replace("``", "").split()).rstrip(".") for name, text in said.items()}


def _reader(kind: Any) -> Callable[[str], Any]:
    """How the text of an option becomes a value of a type, or of the first type of a union."""
    if get_origin(kind) is Literal:
        return str
    kinds = get_args(kind) or (kind,)
    if any(get_origin(each) is tuple for each in kinds):
        return _whole_or_list
    readers: dict[type, Callable[[str], Any]] = {int: _whole, float: _number, str: str}
    return readers[kinds[0]]


def _whole_or_list(text: str) -> int | list[int]:
    numbers = [_whole(part) for part in text.split(",")]
    return numbers if "," in text else numbers[0]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
