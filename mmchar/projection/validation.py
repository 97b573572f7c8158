"""Projections beside published measurements: how far off they are, model by model, on one GPU and on several."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.models.loading import get_spec
from mmchar.projection.batches import count_batch
from mmchar.projection.calibration import leave_one_model_out, published_cases
from mmchar.projection.cases import Case, as_engine, predict
from mmchar.projection.columns import columns_of, merge_equal
from mmchar.projection.communication import Interconnect
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.memory_fit import summarize_memory
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import Rates, prepare
from mmchar.request import Request, from_mapping

REQUIRED = (
    *("model", "gpu", "gpus", "ulysses", "ring", "batch", "steps", "height", "width", "frames"),
    "latency_s",
)
LARGEST = {"gpus": 1024, "batch": 4096, "steps": 10_000, "height": 16_384, "width": 16_384, "frames": 4096}
OPTIONAL = ("cfg", "tensor", "pipefusion", "patch", "prompt_tokens")
MOST_POWER = 1.25  # of the board's limit; a few percent above it have been measured, a quarter is an error in the row
_DEGREES = tuple(field.name for field in fields(Degrees))


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV of measurements as text, with the line that each stands on (column ``line``).

    Raises
    ------
    ValueError
        The file cannot be read, lacks a column, or has no rows. Rows are judged by `validate`, not here.
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
    efficiency: Efficiency | None = None,
    interconnect: Interconnect | None = None,
    power: Power | None = None,
    leave_out: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Predicted latency (s) and energy (J) beside the measured ones, one row per good row.

    Parameters
    ----------
    rows : DataFrame
        Columns `REQUIRED`; optional ``energy_j`` (of all GPUs and the whole batch), ``cfg``, ``tensor``,
        ``pipefusion``, ``patch``, ``prompt_tokens``, ``line``, and any others, which are kept. Guidance is the
        model's default; ``frames`` is 1 for images.
    attention, execution, dtype, efficiency, interconnect, power
        Of the projection, the same for all rows.
    leave_out : bool
        Predict each model by a fit to the other models instead (see `calibration`).
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    DataFrame
        The rows, ``predicted_s``, ``predicted_j``, ``latency_error`` and ``energy_error`` (predicted / measured - 1),
        ``bound`` (what most of the time is), ``peak_bytes`` (of one GPU) and ``fits``: whether we think it does; a
        published row ran. Rows whose weights alone do not fit are left out, as moving them is not projected.
        ``attrs["problems"]`` says of each row left out ``line N: reason``.
    """
    rates, drawn = Rates(efficiency or Efficiency(), interconnect or Interconnect()), power or Power()
    ready, problems = cases(rows, attention=attention, execution=execution, dtype=dtype, progress=progress)
    if leave_out and ready:
        table = leave_one_model_out(ready, published_cases())
    else:
        table = pd.DataFrame([case.asked | predict(case, rates, drawn) for case in ready])
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
            ready.append(_case({**row, **_check_row(row)}, attention, execution, dtype))
        except ValueError as error:
            problems.append(f"line {row.get('line', place + 1)}: {error}")
    return ready, problems


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Errors in percent by model and of all together, on one GPU, on several, and on any number.

    ``mdape`` is the median absolute percentage error, ``bias`` the median signed one, ``low`` and ``high`` the 10th and
    90th percentile of the signed one: what a projection of this kind is to be trusted with.
    """
    lines = []
    models = [(model, table["model"] == model) for model in dict.fromkeys(table["model"])]
    for model, here in [*models, ("all models", table["model"].notna())]:
        several = table["gpus"] > 1
        for on, part in (("one GPU", table[here & ~several]), ("several GPUs", table[here & several])):
            if len(part):
                lines.append({"model": model, "on": on, **_errors(part)})
        if model == "all models":
            lines.append({"model": model, "on": "any", **_errors(table)})
    return pd.DataFrame(lines)


def _errors(part: pd.DataFrame) -> dict[str, Any]:
    error = 100 * part["latency_error"]
    energy = 100 * part["energy_error"].dropna()
    return {
        "n": len(part),
        "mdape_latency": float(error.abs().median()),
        "bias_latency": float(error.median()),
        "low_latency": float(error.quantile(0.1)),
        "high_latency": float(error.quantile(0.9)),
        "mdape_energy": float(energy.abs().median()) if len(energy) else math.nan,
        "bias_energy": float(energy.median()) if len(energy) else math.nan,
    }


def _check_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values as numbers; a ValueError names the field that is missing or absurd."""
    if row.get("fields too many") is not None and not _blank(row["fields too many"]):
        raise ValueError("more fields than the header has columns")
    out: dict[str, Any] = {}
    for name in ("model", "gpu"):
        if _blank(row.get(name)):
            raise ValueError(f"{name} is missing")
        out[name] = str(row[name]).strip()
    for name in (*REQUIRED[2:-1], *OPTIONAL):
        if name in OPTIONAL and _blank(row.get(name)):
            continue
        out[name] = _whole(name, row.get(name))
    out["latency_s"] = _positive("latency_s", row.get("latency_s"))
    if not _blank(row.get("energy_j")):
        out["energy_j"] = _positive("energy_j", row["energy_j"])
    return out


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def _number(name: str, value: Any) -> float:
    if _blank(value):
        raise ValueError(f"{name} is missing")
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number") from None


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    most = LARGEST.get(name, LARGEST["gpus"])
    if not (number.is_integer() and 1 <= number <= most):
        raise ValueError(f"{name}={value} is not a whole number from 1 to {most}")
    return int(number)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={value} is not a number above 0")
    return number


def _request(asked: Mapping[str, Any]) -> Request:
    spec = get_spec(asked["model"])
    given = {
        name: asked[name] for name in ("batch", "steps", "height", "width", "frames", "prompt_tokens") if name in asked
    }
    if "frames" not in spec.request and given.pop("frames") != 1:
        raise ValueError(f"frames={asked['frames']}, but {asked['model']} makes images; give 1")
    return spec.resolve(from_mapping(given))


def _case(asked: dict[str, Any], attention: str, execution: str, dtype: str) -> Case:
    """A row taken apart, ready to be projected with any efficiencies."""
    gpu = get_gpu(asked["gpu"])
    degrees = Degrees(**{name: asked[name] for name in _DEGREES if name in asked})
    request, spec = _request(asked), get_spec(asked["model"])

    def count(other: Request) -> pd.DataFrame:
        return count_batch(asked["model"], other, dtype=dtype)

    table = whole = count(request)
    _check_physics(asked, whole, gpu.peak(dtype), gpu.tdp_w)
    if degrees.gpus != 1:
        table = parallelize(whole, degrees, count=count, spec=spec)
    memory = summarize_memory(table, gpu)
    if memory["weight_bytes"] > gpu.memory_bytes:
        have = f"{gpu.name} has {gpu.memory_bytes / 1e9:.0f} GB"
        raise ValueError(f"{asked['model']} does not fit: {memory['weight_bytes'] / 1e9:.0f} GB of weights, {have}")
    ready = prepare(as_engine(table), attention=attention, execution=execution)
    return Case(asked, merge_equal(columns_of(ready)), gpu, execution, memory)


def _check_physics(asked: Mapping[str, Any], table: pd.DataFrame, peak_flop_s: float, tdp_w: float) -> None:
    """Refuse a row that no such GPU can have made: faster than its peak, or with more power than the boards draw."""
    boards, latency_s = asked["gpus"], asked["latency_s"]
    flop = int((table["flop"] * table["repeats"]).sum())
    if latency_s < flop / (boards * peak_flop_s):
        least = f"{flop / 1e12:.3g} TFLOP take {boards} {asked['gpu']} at least {flop / (boards * peak_flop_s):.3g} s"
        raise ValueError(f"latency_s={latency_s:g} is faster than peak: {least}")
    most_j = MOST_POWER * tdp_w * boards * latency_s
    if asked.get("energy_j", 0.0) > most_j:
        raise ValueError(
            f"energy_j={asked['energy_j']:g} is more than {boards} boards of {tdp_w:g} W draw in {latency_s:g} s"
        )


def figures(table: pd.DataFrame) -> Sequence[dict[str, Any]]:
    """The summary as plain records, for JSON: an error that no row has is None."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in (summary(table).to_dict("records") if len(table) else [])
    ]
