"""Measurements of others beside what a projection says of them."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mmchar.models.loading import get_spec
from mmchar.projection.columns import Columns
from mmchar.projection.data_sheets import Gpu, get_gpu, list_gpus
from mmchar.projection.energy_model import BOUNDS, Power, row_energy_j
from mmchar.projection.evidence.rows import DEGREES, SIZES, UNITS, checked, part_of, seconds
from mmchar.projection.evidence.work import LOOP, WHOLE, Configuration, Work, works
from mmchar.projection.parallel.layout import Degrees
from mmchar.projection.roofline import EXECUTIONS, Rates, row_times
from mmchar.provenance import REFERENCE
from mmchar.request import Request, from_mapping

MOST_POWER = 1.25  # of the board's limit; a few percent above it have been measured, a quarter is an error in the row


@dataclass(frozen=True)
class Case:
    """One measurement of others: what was asked for and measured, the work it stands for, and where it ran."""

    asked: dict[str, Any]
    columns: Columns
    gpu: Gpu
    execution: str
    memory: dict[str, Any]


def predict(case: Case, rates: Rates, power: Power) -> dict[str, Any]:
    """Seconds and joules of a case, their errors (predicted / measured - 1), and what most of the time is bound by."""
    columns, asked = case.columns, case.asked
    device_s, wait_s, bound = row_times(columns, case.gpu, rates, execution=case.execution)
    time_s = device_s + wait_s
    attention_flop = np.where(columns.fused, columns.flop, 0)
    each_j = row_energy_j(time_s, bound, attention_flop, case.gpu, power)
    total_s = float((time_s * columns.repeats).sum())
    total_j = float((each_j * columns.repeats).sum()) * asked["gpus"]
    by_bound = np.bincount(bound, time_s * columns.repeats, minlength=len(BOUNDS))
    return {
        "predicted_s": total_s,
        "predicted_j": total_j,
        "latency_error": total_s / asked["latency_s"] - 1,
        "energy_error": total_j / asked["energy_j"] - 1 if "energy_j" in asked else math.nan,
        "bound": BOUNDS[int(by_bound.argmax())],
        **{name: case.memory[name] for name in ("peak_bytes", "fits") if name in case.memory},
    }


def cases(
    rows: pd.DataFrame,
    *,
    attention: str = "flash",
    execution: str = "eager",
    dtype: str = "bfloat16",
    engine: bool = True,
    progress: bool = False,
) -> tuple[list[Case], list[str]]:
    """The good rows, counted and taken apart, and of each of the others ``line N: reason``; see `validate`.

    With ``engine`` denoisers run as engines run them (`work.as_engine`).
    """
    usual = {"attention": attention, "execution": execution, "dtype": dtype}
    asked: list[tuple[int, dict[str, Any], Configuration]] = []
    ready: list[Case] = []
    problems: list[tuple[int, ValueError]] = []
    for place, row in enumerate(rows.to_dict("records")):
        line = int(row.get("line", place + 1))
        try:
            good = checked(row)
            asked.append((line, usual | good, _configuration(usual | good, engine)))
        except ValueError as error:
            problems.append((line, error))
    found = works((each for _, _, each in asked), progress=progress)
    for line, row, configuration in asked:
        try:
            ready.append(_case(row, configuration, found[configuration]))
        except ValueError as error:
            problems.append((line, error))
    problems.sort(key=lambda one: one[0])
    return ready, [f"line {line}: {error}" for line, error in problems]


def _configuration(asked: Mapping[str, Any], engine: bool) -> Configuration:
    get_gpu(asked["gpu"])
    degrees = Degrees(**{name: asked[name] for name in DEGREES if name in asked})
    how = {name: asked[name] for name in ("dtype", "attention", "execution")}
    return Configuration(asked["model"], _request(asked), degrees, part=part_of(asked), engine=engine, **how)


def _case(asked: dict[str, Any], configuration: Configuration, found: Work | ValueError) -> Case:
    """A checked row taken apart, ready to be projected with any efficiencies.

    What is ``asked`` of the case says all: sizes, ``part``, ``latency_s`` (of the part, in the whole generation).
    """
    if isinstance(found, ValueError):
        raise found
    gpu, request, part = get_gpu(asked["gpu"]), configuration.request, configuration.part
    latency_s = seconds(asked, executions=_times(found, request, part), batch=request.batch or 1)
    sizes = {name: value for name, value in request.given().items() if name in SIZES[:5]}
    about = {"gpus": configuration.degrees.gpus, "latency_s": latency_s, "family": found.family, "part": part}
    full = {**sizes, **asked, **about}
    _check_physics(full, found, gpu)
    if found.weight_bytes > gpu.memory_bytes:
        have = f"{gpu.name} has {gpu.memory_bytes / 1e9:.0f} GB"
        raise ValueError(f"{asked['model']} does not fit: {found.weight_bytes / 1e9:.0f} GB of weights, {have}")
    memory = {"peak_bytes": found.peak_bytes, "fits": found.peak_bytes <= gpu.memory_bytes}
    return Case(full, found.columns, gpu, configuration.execution, memory)


def published_speeds(models: Collection[str] | None = None) -> pd.DataFrame:
    """Rows of ``data/reference/published_speeds.csv`` that a projection can express, of some models or of all.

    Left out are quantized weights, engines other than PyTorch, and what the page does not say enough about.
    """
    rows = pd.read_csv(REFERENCE / "published_speeds.csv", dtype=str, keep_default_na=False)
    rows = rows.assign(line=range(2, len(rows) + 2))
    able = rows["execution"].isin(EXECUTIONS) & (rows["weights"] == "") & (rows["tf32"] != "true")
    able &= rows["gpu"].isin(list_gpus()["name"]) & rows["unit"].isin(UNITS)
    if models is not None:
        able &= rows["model"].isin(list(models))
    return rows[able].reset_index(drop=True)


def published_cases(
    models: Collection[str] | None = None, *, everything: bool = False, progress: bool = False
) -> list[Case]:
    """The published speeds as cases, as their authors' libraries run them.

    Without ``everything`` only those that a projection is to be judged by: a locked clock, or a board whose sheet we do
    not have (``fitted`` = no), is another GPU. Raises ValueError for a row that cannot be used: the file is ours.
    """
    rows = published_speeds(models)
    rows = rows if everything else rows[rows["fitted"] != "no"]
    ready, problems = cases(rows, engine=False, progress=progress)
    if problems:
        raise ValueError(f"published_speeds.csv, {problems[0]}")
    return ready


def _times(found: Work, request: Request, part: str) -> int:
    """Executions of a part; of a denoiser its steps, however many calls one takes (guidance in two, two denoisers).

    Of a whole generation the tokens that it makes.
    """
    if part == WHOLE:
        return request.new_tokens or found.executions
    if part != LOOP and not part.startswith("denoise"):
        return found.executions
    steps = request.steps if isinstance(request.steps, tuple) else (request.steps or found.executions,)
    return found.executions // max(1, round(found.executions / sum(steps)))


def _request(asked: Mapping[str, Any]) -> Request:
    spec = get_spec(asked["model"])
    given = {name: asked[name] for name in SIZES if name in asked}
    if "frames" not in spec.request and given.pop("frames", 1) != 1:
        raise ValueError(f"frames={asked['frames']}, but {asked['model']} makes images; give 1")
    return spec.resolve(from_mapping(given))


def _check_physics(asked: Mapping[str, Any], found: Work, gpu: Gpu) -> None:
    """Refuse a row that no such GPU can have made: faster than its peak, or with more power than the boards draw."""
    boards, latency_s, energy_j = asked["gpus"], asked["latency_s"], asked.get("energy_j", 0.0)
    dtype = asked["dtype"]
    least_s = found.flop / (boards * gpu.peak(dtype, tf32=dtype == "float32"))
    if latency_s < least_s:
        least = f"{found.flop / 1e12:.3g} TFLOP take {boards} {asked['gpu']} at least {least_s:.3g} s"
        raise ValueError(f"latency_s={latency_s:.4g} is faster than peak: {least}")
    if energy_j > MOST_POWER * gpu.tdp_w * boards * latency_s:
        drawn = f"{boards} boards of {gpu.tdp_w:g} W draw in {latency_s:g} s"
        raise ValueError(f"energy_j={energy_j:g} is more than {drawn}")
