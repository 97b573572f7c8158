"""Rows of measurements as people write them: a CSV, read leniently, and each row checked against one description."""

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pandas as pd
from msgspec import Meta

from mmchar.projection.evidence.work import LOOP, WHOLE
from mmchar.projection.parallel.layout import Degrees
from mmchar.projection.roofline import EXECUTIONS
from mmchar.tracing.attention import BACKENDS

_Gpus = Annotated[int, Meta(ge=1, le=1024)]
_Side = Annotated[int, Meta(ge=1, le=16_384)]
_Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
_Amount = Annotated[float, Meta(gt=0, le=1e15)]
_DELIMITERS = ",;\t|"
_BLANK = {"", "nan", "na", "n/a", "none", "null", "-"}
DEGREES = tuple(field.name for field in fields(Degrees))
SIZES = ("batch", "steps", "height", "width", "frames", "prompt_tokens", "new_tokens", "guidance")

# What a value may be: seconds per ... or ... per second; and of what part it is where no stage is given.
UNITS = {
    **dict.fromkeys(("s", "s/batch", "s/image", "s/video", "images/s", "videos/s"), WHOLE),
    "it/s": LOOP,
    "s/step": "denoise",
    "tokens/s": "decode",
}


class Row(msgspec.Struct, omit_defaults=True):
    """What a row of measurements says: ``model``, ``gpu``, and ``latency_s`` or a ``value`` and its ``unit``.

    What is left blank is the model's own default (sizes, steps), one GPU, or what `validate` is told (types, kernels).
    ``energy_j`` is of all GPUs and the whole batch; ``frames`` is 1 for images. ``stage`` is the part of the generation
    that the time is of (``denoise``, ``decode_image``, ``encode_text``, ...), by default all of it. ``fitted`` is
    ``host`` where the host was the limit, ``board`` where it is not said which of a GPU's boards it was, and ``no``
    where the GPU was not as its sheet says: a fit leaves all three out.
    """

    model: str
    gpu: str
    gpus: _Gpus | None = None
    ulysses: _Gpus | None = None
    ring: _Gpus | None = None
    cfg: _Gpus | None = None
    tensor: _Gpus | None = None
    pipefusion: _Gpus | None = None
    patch: _Gpus | None = None
    batch: Annotated[int, Meta(ge=1, le=4096)] | None = None
    steps: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    height: _Side | None = None
    width: _Side | None = None
    frames: Annotated[int, Meta(ge=1, le=4096)] | None = None
    prompt_tokens: _Tokens | None = None
    new_tokens: _Tokens | None = None
    guidance: Annotated[float, Meta(ge=0, le=1000)] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    attention: Literal["flash", "eager"] | None = None
    execution: Literal["eager", "compiled"] | None = None
    channels_last: bool | None = None
    tf32: bool | None = None
    fitted: Literal["yes", "no", "host", "board"] | None = None
    stage: str | None = None
    value: _Amount | None = None
    unit: str | None = None
    latency_s: _Amount | None = None
    energy_j: _Amount | None = None


REQUIRED = ("model", "gpu")
_ONE_OF = {
    "dtype": ("bfloat16", "float16", "float32"),
    "attention": BACKENDS,
    "execution": EXECUTIONS,
    "fitted": ("yes", "no", "host", "board"),
}


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV of measurements as text, with the line that each ends on (column ``line``).

    Fields are parted by whichever of comma, semicolon, tab and bar the header has most of; a byte order mark, quoted
    fields, any line ends, blank lines and columns without a name are fine. An error says that the file cannot be read,
    lacks a column, or has no rows; rows are judged by `validate`, not here.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names, rows = _parsed(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot read {path}: {reason}; give a CSV file of measurements") from error
    _check_header(path, names)
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    return pd.DataFrame(rows, columns=[*names, *({"fields too many"} & {key for row in rows for key in row}), "line"])


def _parsed(text: str) -> tuple[list[str], list[dict[str, Any]]]:
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    file = io.StringIO(text)
    reader = csv.DictReader(file, strict=True, restkey="fields too many", delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    rows = []
    for row in reader:
        unnamed = row.pop("", None)
        if (
            any(value.strip() for value in row.values() if isinstance(value, str))
            or unnamed
            or "fields too many" in row
        ):
            rows.append({**row, "line": reader.line_num})
    return [name for name in reader.fieldnames if name], rows


def _check_header(path: Path, names: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if "latency_s" not in names and not {"value", "unit"} <= set(names):
        missing.append("latency_s (or value and unit)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing or twice:
        wrong = f"lacks the columns {', '.join(missing)}" if missing else f"has the column {twice[0]!r} twice"
        raise ValueError(f"{path} {wrong}; it must have {', '.join(REQUIRED)}, latency_s (or value and unit)")


def checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the fields of `Row` as numbers, those left blank taken out; an error names the field that is bad."""
    given = {name: text for name, value in row.items() if (text := _text(value)).lower() not in _BLANK}
    if "fields too many" in given:
        raise ValueError("more fields than the header has columns")
    for name, able in _ONE_OF.items():
        if name in given and given[name] not in able:
            raise ValueError(f"{name}={given[name]}: choose one of {', '.join(able)}")
    try:
        found = msgspec.to_builtins(msgspec.convert(given, Row, strict=False))
    except msgspec.ValidationError as error:
        wanted, _, name = str(error).partition(" - at `$.")
        if name:
            name = name.rstrip("`")
            wanted = wanted.removesuffix(" | null`").replace("`", "").replace(" | null", "")
            raise ValueError(f"{name}={given[name]}: {wanted[0].lower()}{wanted[1:]}") from error
        raise ValueError(f"{wanted.split('`')[1]} is missing") from error
    _check_value(found)
    known = set(Row.__struct_fields__)
    return {name: found.get(name, value) for name, value in row.items() if name in found or name not in known}


def _text(value: Any) -> str:
    """A cell as text; whole numbers that a table turned into floats are whole again."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", str(value).strip())


def _check_value(found: Mapping[str, Any]) -> None:
    if "latency_s" in found and "value" in found:
        raise ValueError("both latency_s and value are given; leave one of them blank")
    if "latency_s" in found:
        return
    if "value" not in found:
        raise ValueError("latency_s is missing")
    if found.get("unit") not in UNITS:
        raise ValueError(f"unit={found.get('unit', '')}: choose one of {', '.join(UNITS)}")


def part_of(asked: Mapping[str, Any]) -> str:
    """The part of a generation that a checked row's time is of."""
    said = asked.get("stage") or UNITS[asked.get("unit", "s") if "latency_s" not in asked else "s"]
    return LOOP if said == "denoise" and asked.get("unit") == "it/s" else said


def seconds(asked: Mapping[str, Any], *, executions: int, batch: int) -> float:
    """Seconds that the part takes in the whole generation, of all its executions and the whole batch."""
    if "latency_s" in asked:
        return asked["latency_s"]
    value, unit = asked["value"], asked["unit"]
    each = {"it/s": executions, "s/step": executions, "tokens/s": executions * batch, "s": 1, "s/batch": 1}
    many = each.get(unit, batch)
    return many / value if unit.endswith("/s") else many * value
