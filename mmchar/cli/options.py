"""Options of the shell commands: the fields of the package's own dataclasses, and what they ask for."""

import argparse
import inspect
import json
import re
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

from mmchar.projection.roofline import EXECUTIONS
from mmchar.runs.slurm import SlurmOptions, check_slurm
from mmchar.tracing.attention import BACKENDS

_SHARED: dict[str, dict[str, Any]] = {
    "model": {"metavar": "MODEL", "help": "a zoo name, a model file, a folder of configurations, or a hub id"},
    "--gpu": {"help": "e.g. a100-80gb, h100-sxm, t4"},
    "--dtype": {"default": "bfloat16", "help": "bfloat16, float16 or float32"},
    "--attention": {"choices": BACKENDS, "default": "flash", "help": "kernel, and how many bytes it moves"},
    "--execution": {"choices": EXECUTIONS, "default": "eager"},
    "--tiny": {"action": "store_true", "help": "the scaled-down variant of the model"},
    "--cache": {"action": argparse.BooleanOptionalAction, "default": True, "help": "take a count from the cache"},
    "--out": {"help": "where to write the whole table (.parquet or .csv)"},
    "--results": {"default": "results", "help": "folder of the runs: executed notebooks, tables, figures"},
    "--json": {"action": "store_true", "help": "machine-readable output"},
    "--call": {
        "action": "append",
        "metavar": "NAME=VALUE",
        "default": [],
        "help": "what else the model's own call takes, e.g. guidance_scale=4; an image is WIDTHxHEIGHT",
    },
}


def add_shared(parser: argparse.ArgumentParser, *names: str, **different: Any) -> None:
    """Add options that several commands take; ``different`` is what this command says of them."""
    for name in names:
        parser.add_argument(name, **{**_SHARED[name], **different})


def add_fields(parser: argparse.ArgumentParser, spec: type) -> None:
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
        if name in inspect.signature(function).parameters or name in vars(args):
            raise ValueError(f"argument --call: {name!r} has an option of its own, or is not for the model's call")
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


def seconds(text: str) -> float:
    """A number of seconds above 0, for argparse."""
    if not 0 < (value := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _option(name: str) -> str:
    """The option of a field; ``time_limit_min`` is ``--time-limit``."""
    return f"--{name.removesuffix('_min').replace('_', '-')}"


def _said(spec: type) -> dict[str, str]:
    """What the section Parameters of a dataclass's docstring says of each field."""
    entries = re.findall(r"^(\w[\w, ]*) : .*\n((?:    .+\n?)+)", inspect.getdoc(spec) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _reader(kind: Any) -> Callable[[str], Any]:
    """How the text of an option becomes a value of a type, or of the first type of a union."""
    kinds = get_args(kind) or (kind,)
    if any(get_origin(each) is tuple for each in kinds):
        return _whole_or_list
    readers: dict[type, Callable[[str], Any]] = {int: _whole, float: _number, str: str}
    return readers[kinds[0]]


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


def _whole_or_list(text: str) -> int | list[int]:
    numbers = [_whole(part) for part in text.split(",")]
    return numbers if "," in text else numbers[0]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
