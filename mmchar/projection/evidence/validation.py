"""Projections beside published measurements: how far off they are, by model, family, execution and GPU."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mmchar.projection.efficiency_file import EfficiencyFile
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.calibration import leave_out as left_out
from mmchar.projection.evidence.cases import Case, cases, predict, published_cases
from mmchar.projection.roofline import Rates


def validate(
    rows: pd.DataFrame,
    *,
    attention: str = "flash",
    execution: str = "eager",
    dtype: str = "bfloat16",
    leave_out: str | None = None,
    efficiency: EfficiencyFile | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Predicted latency (s) and energy (J) beside the measured ones, one row per good row.

    ``rows`` have the columns of `rows.Row`, ``line``, and any others, which are kept; the options say what rows leave
    out. With ``leave_out``, ``model``, ``family`` or ``gpu``, each of them is predicted by a fit to the others, and to
    the published speeds of others (see `calibration`).

    Returns
    -------
    DataFrame
        The rows with what they left out, ``family, predicted_s, predicted_j``, ``latency_error`` and ``energy_error``
        (predicted / measured - 1), ``bound`` (what most of the time is), ``peak_bytes`` (of one GPU) and ``fits``:
        whether we think it does; a published row ran. Rows whose weights alone do not fit are left out, as moving them
        is not projected. ``attrs["problems"]`` says of each row left out ``line N: reason``.
    """
    ready, problems = cases(rows, attention=attention, execution=execution, dtype=dtype, progress=progress)
    if leave_out and ready:
        table = left_out(ready, published_cases(), by=leave_out, progress=progress)
    else:
        own = efficiency or EfficiencyFile()
        table = predicted(ready, own.rates, own.power)
    table.attrs["problems"] = problems
    return table


def predicted(ready: Sequence[Case], rates: Rates | None = None, power: Power | None = None) -> pd.DataFrame:
    """What was asked and measured of each case, with what the rates say of it (by default those we ship)."""
    rates, power = rates or Rates(), power or Power()
    return pd.DataFrame([case.asked | predict(case, rates, power) for case in ready])


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


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Errors of latency in percent by family, execution and GPU; ``all`` stands for any.

    Columns ``family, execution, gpu, n``, and of the errors as in `summary`: ``mdape, bias, low, high``.
    """
    kinds = []
    for family, same in table.groupby("family"):
        for execution, alike in same.groupby("execution"):
            kinds += [(family, execution, gpu, here) for gpu, here in alike.groupby("gpu")]
            if alike["gpu"].nunique() > 1:
                kinds.append((family, execution, "all", alike))
        if same["execution"].nunique() > 1:
            kinds.append((family, "all", "all", same))
    if table["family"].nunique() > 1:
        kinds.append(("all", "all", "all", table))
    rows = []
    for family, execution, gpu, here in kinds:
        errors = _errors(here)
        latency = {name.removesuffix("_latency"): errors[name] for name in errors if name.endswith("_latency")}
        rows.append({"family": family, "execution": execution, "gpu": gpu, "n": len(here), **latency})
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table of errors as plain records, for JSON: an error that no row has is None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


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
