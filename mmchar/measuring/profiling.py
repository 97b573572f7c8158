"""The operator table of one generation, measured: the same rows as counted, with the time that each of them took.

Two separate passes per stage: `timing.measure_time` times whole executions without a profiler, then
`operator_times.profile_once` puts the time of every operator into the row that counting makes of it.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.counting import operator_table as counting
from mmchar.faults import said_by
from mmchar.locks import measuring
from mmchar.measuring.energy import energy_counter
from mmchar.measuring.machine import gpu_state, is_usable, other_cores, torch_settings
from mmchar.measuring.optimization.backends import attention_backend, byte_model
from mmchar.measuring.optimization.execution import apply_levers
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.stage_runs import measure_stage, time_stage, with_any_kernel
from mmchar.measuring.target import Settings, Target, named, of_object
from mmchar.measuring.timing import Measurement
from mmchar.measuring.whole_generation import generation_doubts, generation_facts, rest_row, time_generation
from mmchar.models.specs import Model
from mmchar.provenance import package_versions
from mmchar.tables import shown
from mmchar.tracing.attention import use_backend

_SUMMARIZED = ("median_s", "iqr_s", "samples", "idle_share", "energy_j", "memory", "changed", "speculation")


def measure(
    model: Any,
    *inputs: Any,
    device: str = "cpu",
    dtype: str | None = None,
    attention: str = "flash",
    tiny: bool = False,
    samples: int = 5,
    warmup: int = 1,
    levers: Levers | None = None,
    stages: Sequence[str] | None = None,
    whole: bool | None = None,
    keep_going: bool = False,
    progress: bool = True,
    **call: Any,
) -> pd.DataFrame:
    """The operator table of one generation with measured time, from running every stage on a device.

    ``measure("sdxl-base-1.0", steps=4)``, ``measure(pipe, prompt="a cat")``,
    ``measure(llm, prompt_tokens=512, new_tokens=64)``, ``measure(module, x)``: called as `mmchar.count` is. Inputs of a
    zoo name, a model file or a model from `mmchar.load` are made up; the calls of an object of your own are recorded on
    its device, with their real inputs. One process at a time measures on a device; others wait, and say so on stderr.

    Parameters
    ----------
    device, dtype : str, optional
        ``"cpu"`` or ``"cuda"``, and unless given float32 on a CPU, bfloat16 on a GPU. An object has its own.
    attention : {"flash", "eager", "math", "mem-efficient", "cudnn", "flash-attn"}
        ``"flash"`` lets PyTorch choose among its fused kernels only. A stage with a call that none of them takes (a few
        models attend without a heads dimension) may use the math path too, and says so in ``backend`` and doubts.
        ``"eager"`` is PyTorch's math path (matmul, softmax, matmul) in the model's own dtype, without its up-cast to
        float32, ``"math"`` the same with it. Both scale q and k, guard rows that are masked whole, and leave the heads
        to be merged by a copy: passes over memory that the byte model of eager attention does not have, and a ``clone``
        row per attention. The others are that kernel and no other; ``"flash-attn"`` is the package.
    samples, warmup : int
        Timed executions of each stage, and untimed ones before them.
    levers : Levers, optional
        Compilation, CUDA graphs, quantization and the like; a model that was given is copied before it is changed.
    stages : sequence of str, optional
        Measure only these stages; the networks of others are not built.
    whole : bool, optional
        Time the whole generation too, from end to end, where it takes less than a minute ``samples`` times: what it
        takes beyond its stages is the row of the stage ``pipeline``. Default: of a scaled-down model, without levers.
    keep_going : bool
        Measure the other stages where one fails, and say why it did in ``attrs["failed"]``; raise where all do.

    Returns
    -------
    DataFrame
        Rows, columns and ``attrs`` as in ``data/README.md``. A stage that grows a KV cache is measured at its middle
        step, and its rows stand for all ``repeats`` steps.

    Raises
    ------
    ValueError
        Bad name, request, device, dtype, attention, levers or stages, or a model that does not fit into memory, before
        anything is built; an execution that fails, with its stage.
    """
    settings = Settings(samples, warmup, attention, levers or Levers(), stages, whole, keep_going, progress)
    if isinstance(model, str | Path | Model):
        target = named(model, inputs, call, settings, device=device, dtype=dtype, tiny=tiny)
    else:
        target = of_object(model, inputs, call, settings)
    return shown.whole(_measured(target, settings))


def _measured(target: Target, settings: Settings) -> pd.DataFrame:
    attention, name, before = settings.attention, target.model.spec.name, gpu_state(target.model.device)
    model, changed = apply_levers(target.model, settings.levers, target.plan, own=target.own)
    whole: Measurement | None = None
    failed: dict[str, str] = {}
    with measuring(model.device), attention_backend(attention), other_cores() as others:
        first = _time_first(model, target, settings)
        try:
            whole = _time_whole(target, settings)
        except ValueError as error:
            if not settings.keep_going:
                raise
            failed[counting.OUTSIDE] = said_by(error)
        tables, facts, lost = _measure_stages(model, target, settings, first, changed)
    failed |= lost
    if not tables:
        raise ValueError("; ".join(failed.values()))
    if before and before["other_processes"]:
        says = f"{name}: {before['other_processes']} other processes are on the GPU"
        next(iter(facts.values()))["doubts"].append(says)
    medians_s = {stage: fact["median_s"] for stage, fact in facts.items()}
    attrs: dict[str, Any] = {
        **target.asked,
        "device": model.device,
        "attention": attention,
        "levers": settings.levers.given(),
        "failed": failed,
        **torch_settings(),
        "versions": package_versions("mmchar", "torch", "diffusers", "transformers"),
        "other_cores": others[0],
        "machine": before and {"before": before, "after": gpu_state(model.device)},
        **{key: {stage: fact[key] for stage, fact in facts.items()} for key in next(iter(facts.values()))},
        "generation": whole and generation_facts(whole, medians_s, target.plan),
    }
    if whole:
        attrs["doubts"][counting.OUTSIDE] = generation_doubts(whole, attrs["generation"])
        rest_s = attrs["generation"]["rest_s"] or 0.0
        if rest_s > 0:
            tables.append(rest_row(name, rest_s))
    table = pd.concat(tables, ignore_index=True)
    ran = table.pop("ran")
    table = counting.as_categories(use_backend(table, byte_model(attention)).assign(backend=ran))
    table.attrs = attrs
    return table


def _time_first(model: Model, target: Target, settings: Settings) -> dict[str, Measurement]:
    """On a GPU, the timings of eager stages, all before the first of them is profiled; those that fail have none.

    What is compiled or captured is made once, for timing and profiling, and launches less.
    """
    first: dict[str, Measurement] = {}
    if not model.device.startswith("cuda") or settings.levers.execution != "eager":
        return first
    for stage in target.plan:
        with contextlib.suppress(ValueError):  # it is tried once more, and its reason kept, where it is profiled
            first[stage.name] = time_stage(model, stage, settings)
    return first


def _time_whole(target: Target, settings: Settings) -> Measurement | None:
    """The timing of the whole generation, where it was asked for."""
    work, model, label = target.generation, target.model, f"{target.model.spec.name} generation"
    if work is None:
        return None

    def run() -> Measurement:
        counts = {"samples": settings.samples, "warmup": settings.warmup}
        return time_generation(work, device=model.device, label=label, **counts)

    try:
        return with_any_kernel(settings.attention, run)
    except Exception as error:
        raise ValueError(f"{label} failed on {model.device} in {model.dtype}: {said_by(error)}") from error


def _measure_stages(
    model: Model, target: Target, settings: Settings, first: Mapping[str, Measurement], changed: Mapping[str, Any]
) -> tuple[list[pd.DataFrame], dict[str, dict[str, Any]], dict[str, str]]:
    """Rows and facts of every stage, and why those that failed have none."""
    tables: list[pd.DataFrame] = []
    facts: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    broken = ""
    name, counter = model.spec.name, energy_counter(model.device)
    bar = {"desc": f"measure {name}", "unit": "stage", "file": sys.stderr, "disable": not settings.progress}
    for stage in tqdm(target.plan, **bar):
        if broken:
            failed[stage.name] = f"the GPU was left unusable by {broken}"
            continue
        try:
            table, found = measure_stage(model, stage, settings, counter, first.get(stage.name))
        except Exception as error:  # whatever the libraries raise belongs into the table's attrs
            if not settings.keep_going:
                raise
            failed[stage.name] = said_by(error)
            broken = "" if is_usable(model.device) else stage.name
            continue
        found["changed"] = changed.get(stage.component, {})
        if found["changed"].get("compiled_blocks") == 0:
            says = f"{name} {stage.name}: the library names no repeated block of it, so nothing was compiled"
            found["doubts"].append(says)
        tables.append(table)
        facts[stage.name] = found
    return tables, facts, failed


def summarize_measured(table: pd.DataFrame) -> dict[str, Any]:
    """Totals of a measured generation, in the shape of the shell contract.

    ``time_s`` is the sum over stages of ``median_s * repeats``; ``generation`` is what a whole one took from end to
    end, None where none was timed; ``energy_j`` is a sum too, None where the machine does not tell it of every stage.
    ``peak_bytes`` is the most that any stage allocates beyond what is there when it starts. ``categories`` holds
    seconds of operators, ``value * repeats``, which leaves out Python and idle time of the stages; what runs outside
    of them is Uncounted.
    """
    facts = table.attrs
    repeats = table.groupby("stage", observed=True, sort=False)["repeats"].max()
    rows = [_stage_summary(facts, name, int(repeats[name])) for name in facts["samples"]]
    energies = [row["energy_j"] for row in rows]
    total = (table["time_s"] * table["repeats"]).groupby(table["category"].astype(str)).sum()
    scale = "the scaled-down variant, not the published model; " if facts["tiny"] else ""
    return {
        **{key: facts[key] for key in ("model", "device", "dtype", "attention", "tiny", "levers", "machine")},
        "time_s": sum(row["median_s"] * row["repeats"] for row in rows),
        "energy_j": None if None in energies else sum(row["energy_j"] * row["repeats"] for row in rows),
        "peak_bytes": max((row["memory"]["peak_bytes"] for row in rows if row["memory"]), default=None),
        "stages": rows,
        "generation": facts.get("generation"),
        "categories": {name: float(value) for name, value in total.items()},
        "doubts": [line for lines in facts["doubts"].values() for line in lines],
        "note": f"{scale}random weights; time_s sums median * repeats over the stages, a growing cache is measured at "
        "its middle step; categories hold the operators' own time, without Python and idle time",
    }


def _stage_summary(facts: Mapping[str, Any], name: str, repeats: int) -> dict[str, Any]:
    idle, covered = facts["idle"][name], facts["coverage"][name]
    return {
        "stage": name,
        "repeats": repeats,
        **{key: facts[key][name] for key in _SUMMARIZED},
        "coverage": covered["of_operators"],
        "coverage_of_run": covered["of_run"],
        "launch_bound": idle and idle["launch_bound"],
    }
