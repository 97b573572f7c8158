"""Measured runs for the notebooks: of campaigns in ``data/measured``, and made now on this machine's GPU."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.measuring.optimization.backends import byte_model
from mmchar.request import Request
from mmchar.runs.campaign.measured import MEASURED, read_measured

_ASKED = ("request", "dtype", "attention", "tiny", "levers", "device")


@dataclass(frozen=True)
class Run:
    """One measured generation, or some stages of one: what was asked, its operator table, and what its passes found.

    ``facts`` are the table's ``attrs`` per stage (``data/README.md``); ``machine`` is short, ``hardware`` what the
    machine says of itself.
    """

    machine: str
    hardware: str
    asked: dict[str, Any]
    table: pd.DataFrame
    facts: dict[str, Any]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that were measured."""
        return tuple(self.facts["median_s"])

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds of each stage, without any profiler: ``median * repeats``."""
        repeats = self.table.groupby(self.table["stage"].astype(str))["repeats"].max()
        return {name: seconds * int(repeats[name]) for name, seconds in self.facts["median_s"].items()}

    @property
    def main_stage(self) -> str:
        """The stage that takes longest."""
        return max(self.stage_s, key=lambda name: self.stage_s[name])

    @property
    def samples(self) -> int:
        """Timed executions of the stage that has the fewest."""
        return min(len(each) for each in self.facts["samples"].values())

    @property
    def spread(self) -> float:
        """Largest IQR / median of a stage; NaN where one was timed only once."""
        iqr_s, median_s = (pd.Series(self.facts[name], dtype=float) for name in ("iqr_s", "median_s"))
        return float((iqr_s / median_s).max(skipna=False))

    @property
    def kernel(self) -> str:
        """``flash`` or ``eager``: how a projection assumes the attention of this run."""
        return byte_model(self.asked["attention"])

    def counted(self, dtype: str | None = None) -> pd.DataFrame:
        """The counted table of the same whole generation, in its own number type unless another is given."""
        asked = self.asked
        return count(asked["model"], Request(**asked["request"]), dtype=dtype or asked["dtype"], tiny=asked["tiny"])


def read_runs(
    folder: str | Path, models: Iterable[str] | None = None, *, tiny: bool = False, levers: bool = False
) -> list[Run]:
    """The good points of every machine below a folder such as ``data/measured``; none where there are none.

    The folder holds one per machine, each with ``run.json`` or ``points``. Runs are of some models, or all; ``tiny``:
    of scaled-down variants instead of published scale; ``levers``: also those that are compiled, quantized and so on.
    """
    runs = []
    wanted = None if models is None else list(models)
    for place in sorted(Path(folder).glob("*/")):
        points, rows = read_measured(place)
        points = points[points["status"].isin(MEASURED) & (points["tiny"] == tiny)]
        if wanted is not None:
            points = points[points["model"].isin(wanted)]
        for point in points.to_dict("records"):
            if levers or not point["levers"]:
                table = rows[rows["id"] == point["id"]].drop(columns="id").reset_index(drop=True)
                asked = {key: point[key] for key in ("model", *_ASKED)}
                runs.append(Run(place.name, point["hardware"], asked, table, point["facts"]))
    return runs


def runs_at_hand(folder: str | Path, models: Iterable[str], *, tiny: bool = False, samples: int = 5) -> list[Run]:
    """Committed runs of the models, and those that this machine's GPU has none of, measured now in all their stages."""
    names, gpu = list(models), _gpu_name()
    runs = read_runs(folder, names, tiny=tiny)
    known = {run.asked["model"] for run in runs if run.hardware == gpu}
    return runs + live_runs([name for name in names if name not in known], tiny=tiny, samples=samples)


def live_runs(
    models: Iterable[str],
    *,
    attention: Sequence[str] = ("flash", "eager"),
    stages: Sequence[str] | None = None,
    device: str | None = None,
    tiny: bool = False,
    samples: int = 5,
) -> list[Run]:
    """Runs made now on this machine's GPU, in bfloat16; none where there is no GPU, unless a device is given.

    A run that this machine cannot make, for want of memory or of a kernel, is left out with a warning.
    """
    gpu = _gpu_name()
    device = device or ("cuda" if gpu else None)
    if device is None:
        return []
    from mmchar.measuring.profiling import measure
    from mmchar.provenance import processor

    hardware = gpu if device == "cuda" else processor()
    options: dict[str, Any] = {"stages": stages, "device": device, "tiny": tiny, "samples": samples, "progress": False}
    runs = []
    for model in models:
        for kernel in attention:
            try:
                table = measure(model, attention=kernel, **options)
            except (ValueError, RuntimeError) as error:  # does not fit, or ran out of memory
                warnings.warn(f"{model}, {kernel}, is not measured here: {error}", stacklevel=2)
                continue
            asked = {"model": model, **{key: table.attrs[key] for key in _ASKED}}
            runs.append(Run("here", hardware, asked, table, dict(table.attrs)))
    return runs


def about(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: machine, model, stages, setting, samples, largest IQR / median (%), seconds, doubts.

    ``other_cores`` is how many cores other processes kept busy meanwhile, in the mean; NaN where nobody looked.
    """
    rows = []
    for run in runs:
        row = {"machine": run.machine, "hardware": run.hardware, "stages": " ".join(run.stages), "samples": run.samples}
        row |= {key: run.asked[key] for key in ("model", "dtype", "attention")}
        row["levers"] = ", ".join(f"{name} {value}" for name, value in run.asked["levers"].items())
        row |= {"spread_percent": 100 * run.spread, "time_s": sum(run.stage_s.values())}
        row |= {"other_cores": run.facts.get("other_cores"), "doubts": sum(map(len, run.facts["doubts"].values()))}
        rows.append(row)
    columns = "machine hardware model stages dtype attention levers samples spread_percent time_s other_cores doubts"
    return pd.DataFrame(rows, columns=columns.split())


def _gpu_name() -> str:
    """What this machine's GPU calls itself; "" without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
