"""Projections beside published measurements: how far off they are, model by model, on one GPU and on several."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pandas as pd
from msgspec import Meta
from tqdm import tqdm

from mmchar.models.loading import get_spec
from mmchar.projection.columns import columns_of, denoising, merge_equal
from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.calibration import leave_one_model_out
from mmchar.projection.evidence.cases import Case, predict, published_cases
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import Rates, prepare
from mmchar.projection.scaling import count_batch
from mmchar.projection.summary import summarize_memory
from mmchar.request import Request, from_mapping

MOST_POWER = 1.25  # of the board's limit; a few percent above it have been measured, a quarter is an error in the row
_DEGREES = tuple(field.name for field in fields(Degrees))
_Gpus = Annotated[int, Meta(ge=1, le=1024)]
_Side = Annotated[int, Meta(ge=1, le=16_384)]
_Amount = Annotated[float, Meta(gt=0, le=1e15)]


class Row(msgspec.Struct, omit_defaults=True):
    """What a row of measurements says; ``energy_j`` is of all GPUs and the whole batch, ``frames`` 1 for images."""

    model: str
    gpu: str
    gpus: _Gpus
    ulysses: _Gpus
    ring: _Gpus
    batch: Annotated[int, Meta(ge=1, le=4096)]
    steps: Annotated[int, Meta(ge=1, le=10_000)]
    height: _Side
    width: _Side
    frames: Annotated[int, Meta(ge=1, le=4096)]
    latency_s: _Amount
    energy_j: _Amount | None = None
    cfg: _Gpus | None = None
    tensor: _Gpus | None = None
    pipefusion: _Gpus | None = None
    patch: _Gpus | None = None
    prompt_tokens: Annotated[int, Meta(ge=1, le=1024)] | None = None


REQUIRED = tuple(field.name for field in msgspec.structs.fields(Row) if field.required)


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV of measurements as text, with the line that each stands on (column ``line``).

    An error says that the file cannot be read, lacks a column, or has no rows; rows are judged by `validate`, not here.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="fields too many", restval=None)
            names = list(reader.fieldnames or [])
            rows = [{**row, "line": reader.line_num} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot read {path}: {reason}; give a CSV file of measurements") from error
    missing = [name for name in REQUIRED if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if missing or twice:
        wrong = f"lacks the columns {', '.join(missing)}" if missing else f"has the column {twice[0]!r} twice"
        raise ValueError(f"{path} {wrong}; it must have {', '.join(REQUIRED)}")
    if not rows:
        raise ValueError(f"{path} has no rows below its header")
    return pd.DataFrame(rows, dtype=object)


def validate(
    rows: pd.DataFrame,
    *,
    attention: str = "flash",
    execution: str = "eager",
    dtype: str = "bfloat16",
    leave_out: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Predicted latency (s) and energy (J) beside the measured ones, one row per good row.

    ``rows`` have the columns of `Row`, of which those after ``latency_s`` may be blank or missing, ``line``, and any
    others, which are kept. Guidance is the model's default. With ``leave_out`` each model is predicted by a fit to the
    other models (see `calibration`).

    Returns
    -------
    DataFrame
        The rows, ``predicted_s``, ``predicted_j``, ``latency_error`` and ``energy_error`` (predicted / measured - 1),
        ``bound`` (what most of the time is), ``peak_bytes`` (of one GPU) and ``fits``: whether we think it does; a
        published row ran. Rows whose weights alone do not fit are left out, as moving them is not projected.
        ``attrs["problems"]`` says of each row left out ``line N: reason``.
    """
    ready, problems = cases(rows, attention=attention, execution=execution, dtype=dtype, progress=progress)
    if leave_out and ready:
        table = leave_one_model_out(ready, published_cases())
    else:
        table = pd.DataFrame([case.asked | predict(case, Rates(), Power()) for case in ready])
    table.attrs["problems"] = problems
    return table


def cases(
    rows: pd.DataFrame,
    *,
    attention: str = "flash",
    execution: str = "eager",
    dtype: str = "bfloat16",
    progress: bool = False,
) -> tuple[list[Case], list[str]]:
    """The good rows, counted and taken apart, and of each of the others ``line N: reason``; see `validate`."""
    ready, problems = [], []
    for place, row in enumerate(tqdm(rows.to_dict("records"), desc="validate", unit="row", disable=not progress)):
        try:
            ready.append(_case(_checked(row), attention, execution, dtype))
        except ValueError as error:
            problems.append(f"line {row.get('line', place + 1)}: {error}")
    return ready, problems


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Errors in percent by model and of all together, on one GPU, on several, and on any number.

    ``mdape`` is the median absolute percentage error, ``bias`` the median signed one, ``low`` and ``high`` the 10th and
    90th percentile of the signed one: what a projection of this kind is to be trusted with.
    """
    parts = []
    several = table["gpus"] > 1
    for model, here in [*table.groupby("model", sort=False), ("all models", table)]:
        many = several[here.index]
        parts += [(model, "one GPU", here[~many]), (model, "several GPUs", here[many])]
    parts = [part for part in parts if len(part[2])] + [("all models", "any", table)]
    return pd.DataFrame([{"model": model, "on": on, **_errors(part)} for model, on, part in parts])


def figures(table: pd.DataFrame) -> Sequence[dict[str, Any]]:
    """The summary as plain records, for JSON: an error that no row has is None."""
    rows = summary(table) if len(table) else pd.DataFrame()
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _errors(part: pd.DataFrame) -> dict[str, Any]:
    error, energy = 100 * part["latency_error"], 100 * part["energy_error"]
    return {
        "n": len(part),
        "mdape_latency": float(error.abs().median()),
        "bias_latency": float(error.median()),
        "low_latency": float(error.quantile(0.1)),
        "high_latency": float(error.quantile(0.9)),
        "mdape_energy": float(energy.abs().median()),
        "bias_energy": float(energy.median()),
    }


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the fields of `Row` as numbers, those left blank taken out; an error names the field that is bad."""
    given = {name: str(value).strip() for name, value in row.items() if not pd.isna(value) and str(value).strip()}
    if "fields too many" in given:
        raise ValueError("more fields than the header has columns")
    try:
        checked = msgspec.to_builtins(msgspec.convert(given, Row, strict=False))
    except msgspec.ValidationError as error:
        wanted, _, name = str(error).partition(" - at `$.")
        if name:
            name = name.rstrip("`")
            raise ValueError(f"{name}={given[name]}: {wanted[0].lower()}{wanted[1:].replace('`', '')}") from error
        raise ValueError(f"{wanted.split('`')[1]} is missing") from error
    known = set(Row.__struct_fields__)
    return {name: checked.get(name, value) for name, value in row.items() if name in checked or name not in known}


def _case(asked: dict[str, Any], attention: str, execution: str, dtype: str) -> Case:
    """A row taken apart, ready to be projected with any efficiencies."""
    gpu, spec = get_gpu(asked["gpu"]), get_spec(asked["model"])
    degrees = Degrees(**{name: asked[name] for name in _DEGREES if name in asked})
    request = _request(asked)

    def count(other: Request) -> pd.DataFrame:
        return count_batch(asked["model"], other, dtype=dtype)

    table = whole = count(request)
    _check_physics(asked, whole, gpu, dtype)
    if degrees.gpus != 1:
        table = parallelize(whole, degrees, count=count, spec=spec)
    memory = summarize_memory(table, gpu)
    if memory["weight_bytes"] > gpu.memory_bytes:
        have = f"{gpu.name} has {gpu.memory_bytes / 1e9:.0f} GB"
        raise ValueError(f"{asked['model']} does not fit: {memory['weight_bytes'] / 1e9:.0f} GB of weights, {have}")
    ready = prepare(as_engine(table), attention=attention, execution=execution)
    return Case(asked, merge_equal(columns_of(ready)), gpu, execution, memory)


def _request(asked: Mapping[str, Any]) -> Request:
    spec = get_spec(asked["model"])
    names = ("batch", "steps", "height", "width", "frames", "prompt_tokens")
    given = {name: asked[name] for name in names if name in asked}
    if "frames" not in spec.request and given.pop("frames") != 1:
        raise ValueError(f"frames={asked['frames']}, but {asked['model']} makes images; give 1")
    return spec.resolve(from_mapping(given))


def _check_physics(asked: Mapping[str, Any], table: pd.DataFrame, gpu: Gpu, dtype: str) -> None:
    """Refuse a row that no such GPU can have made: faster than its peak, or with more power than the boards draw."""
    boards, latency_s, energy_j = asked["gpus"], asked["latency_s"], asked.get("energy_j", 0.0)
    flop = int((table["flop"] * table["repeats"]).sum())
    least_s = flop / (boards * gpu.peak(dtype))
    if latency_s < least_s:
        least = f"{flop / 1e12:.3g} TFLOP take {boards} {asked['gpu']} at least {least_s:.3g} s"
        raise ValueError(f"latency_s={latency_s:g} is faster than peak: {least}")
    if energy_j > MOST_POWER * gpu.tdp_w * boards * latency_s:
        drawn = f"{boards} boards of {gpu.tdp_w:g} W draw in {latency_s:g} s"
        raise ValueError(f"energy_j={energy_j:g} is more than {drawn}")


def as_engine(table: pd.DataFrame) -> pd.DataFrame:
    """The table as engines for diffusion transformers run it: attention of the denoiser without a mask.

    diffusers hides the padding of prompts by a mask, which no flash kernel takes; engines cut the padding off and call
    the kernel. Prompts are counted at their full length all the same.

    **Source**: xDiT, ``hunyuan_video_usp_example.py`` (keeps the tokens that the mask leaves, then passes no mask).
    """
    mask_bytes = table["mask_bytes"].where(denoising(table), 0)
    out = table.assign(read_bytes=table["read_bytes"] - mask_bytes, mask_bytes=table["mask_bytes"] - mask_bytes)
    out.attrs = table.attrs
    return out
