"""Options of the shell commands, and what they ask for."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from mmchar.measuring.optimization.ladder import EXECUTIONS, FIELDS as LEVERS, GUIDANCES, QUANTIZATIONS, Levers
from mmchar.request import FIELDS, Request, from_mapping

if TYPE_CHECKING:
    from mmchar.projection.parallel.layout import Degrees
    from mmchar.runs.slurm import SlurmOptions

_OPTIONS = ("dtype", "attention", "tiny", "device", "samples", "stages", "execution")  # no arguments of a model's call
DEGREES = {
    "gpus": "how many share the generation; the product of the degrees below",
    "ulysses": "GPUs that share the denoiser's tokens, and heads around attention",
    "ring": "GPUs that share the denoiser's tokens, passing keys on",
    "cfg": "2: the halves of guidance at the same time",
    "tensor": "GPUs that share a language model's weights",
    "pipefusion": "GPUs that share the denoiser's layers",
    "patch": "GPUs that share the image (DistriFusion)",
}


def model_options(parser: argparse.ArgumentParser, dtype: str | None = "bfloat16", *, needs_model: bool = True) -> None:
    """Add what every command on a model takes: the model, a request, a numeric type, and where to write."""
    many = None if needs_model else "?"
    parser.add_argument(
        "model", metavar="MODEL", nargs=many, help="a zoo name, a model file, a folder of configurations, or a hub id"
    )
    for name in FIELDS:
        kind = {"steps": _steps, "guidance": _number}.get(name, whole)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="request; the model's default if not given")
    parser.add_argument(
        "--call",
        action="append",
        metavar="NAME=VALUE",
        help="what else the model's own call takes, e.g. guidance_scale=4; an image is WIDTHxHEIGHT",
    )
    parser.add_argument("--dtype", default=dtype, help="bfloat16, float16 or float32")
    parser.add_argument("--tiny", action="store_true", help="the scaled-down variant of the model")
    parser.add_argument("--no-cache", action="store_true", help="count afresh")
    parser.add_argument("--out", help="where to write the whole table (.parquet or .csv; a folder for measure)")


def lever_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each lever of a measurement."""
    default = Levers()
    parser.add_argument("--execution", choices=EXECUTIONS, default=default.execution, help="compiled: repeated blocks")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default=default.quantization, help="through torchao")
    parser.add_argument("--channels-last", action="store_true", help="convolutions in channels-last layout")
    parser.add_argument("--fused-qkv", action="store_true", help="one projection for q, k and v in the denoiser")
    parser.add_argument("--cfg", choices=GUIDANCES, default=default.cfg, help="guidance in one execution or in two")
    parser.add_argument("--layer-skip", type=whole, default=0, help="self-speculation: skip every k-th layer")
    parser.add_argument("--draft-tokens", type=whole, default=default.draft_tokens, help="drafted per verification")
    parser.add_argument("--acceptance", type=_number, help="chance that a drafted token is accepted, 0 to 1")


def levers_asked(args: argparse.Namespace) -> Levers:
    """Return the levers that were asked for."""
    return Levers(**{name: getattr(args, name) for name in LEVERS})


def slurm_options(parser: argparse.ArgumentParser) -> None:
    """Add what a study may ask of a cluster."""
    parser.add_argument("--slurm", action="store_true", help="send the runs to a Slurm cluster as one job array")
    parser.add_argument("--partition", help="with --slurm: where to run")
    parser.add_argument("--time-limit", type=whole, metavar="MIN", help="with --slurm: minutes per run")
    parser.add_argument("--gres", help="with --slurm: GPUs that one run has for itself, e.g. gpu:1")
    parser.add_argument("--parallel", type=whole, metavar="N", help="with --slurm: runs at a time")


def slurm_asked(args: argparse.Namespace) -> "SlurmOptions | None":
    """Return what to ask of Slurm; None without it. Raises a ValueError where there is no Slurm."""
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
    from mmchar.runs.slurm import SlurmOptions, check_slurm

    options = SlurmOptions(**given)
    check_slurm()
    return options


def whole(text: str) -> int:
    """Return the whole number that a text is, for argparse."""
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
    steps = [whole(part) for part in text.split(",")]
    return steps if "," in text else steps[0]


def request_asked(args: argparse.Namespace) -> Request:
    """Return the request that the options make."""
    return from_mapping({name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None})


def call_asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a model's own call is given besides a request: values are JSON, or else texts."""
    found: dict[str, Any] = {}
    for text in args.call or ():
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"argument --call: {text!r} is not NAME=VALUE")
        if name in _OPTIONS or name in FIELDS:
            raise ValueError(f"argument --call: {name!r} has an option of its own, --{name.replace('_', '-')}")
        if name in found:
            raise ValueError(f"argument --call: {name!r} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def degrees_asked(args: argparse.Namespace) -> "Degrees | None":
    """How GPUs share the work; None where none of it was asked for."""
    given = {name: getattr(args, name) for name in DEGREES if getattr(args, name) is not None}
    if not given:
        return None
    from mmchar.projection.parallel.layout import Degrees

    degrees = Degrees(**given)
    return degrees if degrees.gpus != 1 else None
