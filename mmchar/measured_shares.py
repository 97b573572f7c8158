"""Measurements at published scale, from ``data/measured`` or made here on a GPU, beside projections of the same stages.

A measurement and a projection are shown side by side as what they are: each names its machine and number type. A run on
a GPU whose data sheet we have is projected on that GPU; one on a CPU, on the GPU that is asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmchar.experiments import compare_attention, totals
from mmchar.hardware import list_gpus
from mmchar.measured import read_measured

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """One measured generation, or some stages of one: what was asked, its operator table, and what its passes found.

    ``facts`` are the table's ``attrs`` per stage (``data/README.md``); ``machine`` is short, ``hardware`` what the
    machine says of itself.
    """

    machine: str
    hardware: str
    asked: dict[str, Any]
    table: "pd.DataFrame"
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
        """Largest IQR / median of a stage."""
        return max(self.facts["iqr_s"][name] / self.facts["median_s"][name] for name in self.stages)

    @property
    def kernel(self) -> str:
        """``flash`` or ``eager``: how a projection assumes the attention of this run."""
        from mmchar.backends import byte_model

        return byte_model(self.asked["attention"])


def measured_runs(
    folder: str | Path, models: Iterable[str] | None = None, *, tiny: bool = False, levers: bool = False
) -> list[Run]:
    """The good points of every machine below a folder such as ``data/measured``; none where there are none.

    Parameters
    ----------
    folder : str or Path
        Holds a folder per machine, each with ``run.json`` or ``points``.
    models : iterable of str, optional
        Only these.
    tiny : bool
        Scaled-down variants instead of published scale.
    levers : bool
        Also runs that are compiled, quantized and so on.
    """
    runs, wanted = [], None if models is None else set(models)
    for place in sorted(Path(folder).glob("*/")):
        points, rows = read_measured(place)
        for point in points[points["status"] == "ok"].to_dict("records"):
            unwanted = wanted is not None and point["model"] not in wanted
            if unwanted or point["tiny"] != tiny or (point["levers"] and not levers):
                continue
            table = rows[rows["id"] == point["id"]].drop(columns="id").reset_index(drop=True)
            asked = {key: point[key] for key in ("model", "request", "dtype", "attention", "tiny", "levers", "device")}
            runs.append(Run(place.name, point["hardware"], asked, table, point["facts"]))
    return runs


def live_runs(
    models: Iterable[str],
    *,
    attention: Sequence[str] = ("flash", "eager"),
    stages: Sequence[str] | None = None,
    device: str | None = None,
    tiny: bool = False,
    samples: int = 5,
) -> list[Run]:
    """Runs made now on this machine's GPU, in bfloat16; none where there is no GPU, unless a device is given."""
    import torch

    from mmchar.profiling import measure
    from mmchar.provenance import provenance

    device = device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        return []
    name = torch.cuda.get_device_name() if device == "cuda" else provenance()["cpu"]
    runs = []
    for model in models:
        for kernel in attention:
            options = {"stages": stages, "device": device, "tiny": tiny, "samples": samples, "progress": False}
            table = measure(model, attention=kernel, **options)  # type: ignore[arg-type]
            asked = {key: table.attrs[key] for key in ("request", "dtype", "attention", "tiny", "levers", "device")}
            runs.append(Run("here", name, {"model": model, **asked}, table, dict(table.attrs)))
    return runs


def project_like(run: Run, *, gpu: str, dtype: str) -> "pd.DataFrame":
    """The projected table of the request and stages of a run, on its own GPU if its data sheet is known.

    For a run on a CPU, or another GPU, it is projected on ``gpu`` in ``dtype``.
    """
    from mmchar.counting import count
    from mmchar.request import from_mapping
    from mmchar.roofline import project

    sheet = sheet_name(run.hardware)
    dtype = run.asked["dtype"] if sheet else dtype
    table = count(run.asked["model"], from_mapping(run.asked["request"]), dtype=dtype, tiny=run.asked["tiny"])
    timed = project(table, gpu=sheet or gpu, attention=run.kernel)
    kept = timed[timed["stage"].isin(run.stages)]
    kept.attrs = timed.attrs
    return kept


def sheet_name(hardware: str) -> str:
    """Our name of the data sheet of a GPU that calls itself ``NVIDIA H200`` or the like; "" for anything else."""
    words = hardware.lower().replace("-", " ").split()
    if "nvidia" not in words:
        return ""
    fitting = [name for name in list_gpus()["name"] if name.split("-")[0] in words or name.replace("-", " ") in words]
    several = [name for name in fitting if name.split("-")[-1] in words]
    return (several or fitting or [""])[-1]


def beside(runs: Sequence[Run], *, by: str, gpu: str, dtype: str, cores: bool = False) -> "pd.DataFrame":
    """Seconds and shares of the main stage of each run by a column of the operator table, measured and projected.

    Parameters
    ----------
    by : str
        E.g. ``category``, or ``q_len``.
    gpu, dtype
        What a run that was not made on a known GPU is projected on.
    cores : bool
        Attention cores only.

    Returns
    -------
    DataFrame
        ``case`` (model, stage, kernel), ``run`` (the case, and what it was made with), ``machine``, ``dtype``,
        ``time_kind``, ``by``, ``value`` (s of all executions), ``share`` (% of the run); empty without runs.
    """
    import pandas as pd

    parts = [pd.DataFrame(columns=["case", "run", "machine", "dtype", "time_kind", by, "value", "share"])]
    for run in runs:
        timed = project_like(run, gpu=gpu, dtype=dtype)
        case = f"{run.asked['model']} {run.main_stage}, {run.kernel}"
        made = (("measured", run.table, run.machine, run.asked["dtype"], f", {run.samples} samples"),)
        made += (("projected", timed, timed.attrs["gpu"], timed.attrs["dtype"], ""),)  # type: ignore[assignment]
        for kind, table, machine, number, many in made:
            rows = table[table["stage"].astype(str) == run.main_stage]
            rows = rows[rows["attention"].astype(str) != ""] if cores else rows
            sums = totals(rows, [by])[[by, "time_s"]].rename(columns={"time_s": "value"})
            label = f"{case}: {kind}, {machine}, {number}{many}"
            sums["share"] = 100 * sums["value"] / sums["value"].sum()
            parts.append(sums.assign(case=case, run=label, machine=machine, dtype=number, time_kind=kind))
    return pd.concat(parts[1:] or parts, ignore_index=True)[parts[0].columns]


def attention_gains(runs: Sequence[Run], *, gpu: str, dtype: str) -> "pd.DataFrame":
    """Gain of attention cores from fused kernels, of every pair of an eager and a fused run, measured and projected.

    Returns
    -------
    DataFrame
        As `mmchar.experiments.compare_attention` by ``stage, attention, q_len``, and ``model``, ``family``,
        ``machine``, ``dtype``, ``samples``, ``spread``, ``time_kind``, ``stage_gain`` (of the whole stage); empty
        without pairs.
    """
    import pandas as pd

    from mmchar.models import get_spec

    parts = [pd.DataFrame(columns=["model", "stage", "attention", "q_len", "gain", "stage_gain", "time_kind"])]
    for eager, fused in _pairs(runs):
        spec = get_spec(eager.asked["model"])
        same = {"model": spec.name, "family": spec.family, "samples": min(eager.samples, fused.samples)}
        tables = [project_like(run, gpu=gpu, dtype=dtype) for run in (eager, fused)]
        whole = [totals(table, ["stage"]).set_index("stage")["time_s"] for table in tables]
        on = {"machine": tables[0].attrs["gpu"], "dtype": tables[0].attrs["dtype"], "spread": None}
        parts.append(_gains(tables, whole).assign(**same, **on, time_kind="projected"))
        seconds = [pd.Series(run.stage_s) for run in (eager, fused)]
        on = {"machine": eager.machine, "dtype": eager.asked["dtype"], "spread": max(eager.spread, fused.spread)}
        measured = _gains([eager.table, fused.table], seconds)
        parts.append(measured.assign(**same, **on, time_kind="measured"))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def about(runs: Sequence[Run]) -> "pd.DataFrame":
    """One row per run: machine, model, stages, setting, samples, largest IQR / median (%), seconds, doubts."""
    import pandas as pd

    columns = [
        "machine",
        "hardware",
        "model",
        "stages",
        "dtype",
        "attention",
        "levers",
        "samples",
        "spread_percent",
        "time_s",
        "doubts",
    ]
    rows = []
    for run in runs:
        asked, many = run.asked, sum(len(lines) for lines in run.facts["doubts"].values())
        levers = ", ".join(f"{name} {value}" for name, value in asked["levers"].items())
        setting = (asked["model"], " ".join(run.stages), asked["dtype"], asked["attention"], levers)
        found = (run.samples, 100 * run.spread, sum(run.stage_s.values()), many)
        rows.append((run.machine, run.hardware, *setting, *found))
    return pd.DataFrame(rows, columns=columns)


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """An eager and a fused run each of the same machine, model, request, number type and stages."""

    def same(run: Run) -> tuple[Any, ...]:
        asked = run.asked
        return run.machine, asked["model"], str(asked["request"]), asked["dtype"], run.stages, str(asked["levers"])

    eager = {same(run): run for run in runs if run.asked["attention"] == "eager"}
    fused = [run for run in runs if run.asked["attention"] == "flash" and same(run) in eager]
    return [(eager[same(run)], run) for run in fused]


def _gains(tables: "Sequence[pd.DataFrame]", whole: "Sequence[pd.Series]") -> "pd.DataFrame":
    cores = [table[table["attention"].astype(str) != ""] for table in tables]
    found = compare_attention(cores[0], cores[1], ["stage", "attention", "q_len"])
    return found.assign(stage_gain=found["stage"].map(whole[0] / whole[1]))
