"""The operator table of one generation, measured: the same rows as counted, with the time that each of them took.

Two separate passes per stage: `timing.measure_time` times whole executions without a profiler, then
`timing.profile_once` puts the time of every operator into the row that counting makes of it.
"""

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from mmchar.counting import operator_table as counting
from mmchar.locks import measuring
from mmchar.measuring.cpu_load import other_cores
from mmchar.measuring.energy import Counter, energy_counter
from mmchar.measuring.gpu_state import gpu_state, is_usable
from mmchar.measuring.optimization.backends import attention_backend, byte_model
from mmchar.measuring.optimization.execution import apply_levers
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.stage_runs import measure_fully, measure_stage, time_stage, with_any_kernel
from mmchar.measuring.target import Settings, Target, available_bytes, named, of_object
from mmchar.measuring.timing import Measurement
from mmchar.measuring.whole_generation import generation_doubts, generation_facts, rest_row, time_generation
from mmchar.models.loading import Model
from mmchar.tracing.attention import use_backend

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

__all__ = ["attention_backend", "available_bytes", "measure", "measure_stage", "summarize_measured"]


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
    ``measure(llm, prompt_tokens=512, new_tokens=64)``, ``measure(module, x)``.

    Parameters
    ----------
    model : str, Model, DiffusionPipeline, PreTrainedModel or Module
        A zoo name, a model file, or a model from `mmchar.load` on a real device, with inputs that are made up;
        or an object of your own, whose calls are recorded on its device with their real inputs. An object's device and
        number type are used.
    *inputs, **call
        What the generation is called with, as for `mmchar.count`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Default: float32 on a CPU, bfloat16 on a GPU.
    attention : {"flash", "eager", "math", "mem-efficient", "cudnn", "flash-attn"}
        ``"flash"`` lets PyTorch choose among its fused kernels only. A stage with a call that none of them takes (a few
        models attend without a heads dimension) may use the math path too, and says so in ``backend`` and doubts.
        ``"eager"`` is PyTorch's math path (matmul, softmax, matmul) in the model's own dtype, without its up-cast to
        float32, ``"math"`` the same with it. Both scale q and k, guard rows that are masked whole, and leave the heads
        to be merged by a copy: passes over memory that the byte model of eager attention does not have, and a ``clone``
        row per attention. The others are that kernel and no other; ``"flash-attn"`` is the package.
    tiny : bool
        Measure the scaled-down variant of a named model.
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
    progress : bool
        A bar over the stages, on stderr.

    Returns
    -------
    DataFrame
        Columns as in ``data/README.md``. ``time_s`` is the own time of all calls of the row in one execution: on a CPU
        of the operators themselves, on a GPU of their kernels; ``kernels`` is how many those are (0 on a CPU, which
        launches none). ``backend`` says which attention ran. A stage that grows a KV cache is measured at its middle
        step: ``step`` names it, and its rows stand for all ``repeats`` steps. A stage that is compiled, captured or
        quantized has a row per kernel name (``module_type`` is ``kernel``), without FLOPs, bytes and lengths. Rows
        beside those of the counted table: ``views and allocations``, and ``unattributed kernels`` for what no operator
        and no name explains.

        ``attrs`` adds device, attention, levers, threads, versions, other_cores (how many cores other
        processes kept busy, in the mean), machine (of a GPU: clocks, power limit, driver, other processes, before and
        after), and per stage: samples (seconds, end to end, without profiler), median_s,
        iqr_s, span_s (seconds with tracer and profiler), coverage, as ``of_operators`` (time in known rows / time of
        all operators) and ``of_run`` (time in known rows / median; the rest is Python, and on a GPU idle time),
        idle_share and idle (None on a CPU), memory, energy_j (joules of one execution, None where the machine does not
        tell), changed (what the levers changed, in counts), compiled (graphs and graph breaks), speculation, and
        doubts, a line for each reason not to trust the numbers (none is an empty list). ``failed`` says by stage why it
        has no rows. ``generation`` has the samples of the whole generation, median_s and iqr_s, sum_of_stages_s
        (``median_s * repeats`` of all stages) and rest_s, the difference; None where none was timed.

    Raises
    ------
    ValueError
        Bad name, request, device, dtype, attention, levers or stages, or a model that does not fit into memory, before
        anything is built; an execution that fails, with its stage.

    Notes
    -----
    One process measures on a device at a time; others wait, and say so on stderr.
    """
    if samples < 1 or warmup < 0:
        raise ValueError(f"samples={samples}, warmup={warmup} is not possible; give at least 1 sample and 0 warm-ups")
    settings = Settings(attention, levers or Levers(), stages, whole)
    if isinstance(model, str | Path | Model):
        target = named(model, inputs, call, settings, device=device, dtype=dtype, tiny=tiny)
    else:
        target = of_object(model, inputs, call, settings)
    return _measured(target, settings, samples, warmup, keep_going, progress)


def _measured(
    target: Target, settings: Settings, samples: int, warmup: int, keep_going: bool, progress: bool
) -> pd.DataFrame:
    """Every stage of a target measured, one process at a time."""
    levers, attention, name = settings.levers, settings.attention, target.model.spec.name
    before, timed, failed = gpu_state(target.model.device), None, {}
    model, changed = apply_levers(target.model, levers, target.plan, own=target.own)
    with measuring(model.device), attention_backend(attention), other_cores() as others:
        first = _time_first(model, target.plan, levers, attention, samples, warmup)
        try:
            timed = _time_whole(target, attention, samples, warmup)
        except ValueError as error:
            if not keep_going:
                raise
            failed[counting.OUTSIDE] = one_line(error)
        stages = _bar(target.plan, name, progress)
        passes = _Passes(levers, attention, samples, warmup, energy_counter(model.device))
        parts, facts, lost = _measure_stages(model, stages, passes, first, keep_going)
    failed |= lost
    if not parts:
        raise ValueError("; ".join(failed.values()))
    for stage in target.plan:
        done = changed.get(stage.component, {})
        if stage.name in facts:
            facts[stage.name]["changed"] = done
        if stage.name in facts and done.get("compiled_blocks") == 0:
            says = f"{name} {stage.name}: the library names no repeated block of it, so nothing was compiled"
            facts[stage.name]["doubts"].append(says)
    if before and before["other_processes"]:
        says = f"{name}: {before['other_processes']} other processes are on the GPU"
        next(iter(facts.values()))["doubts"].append(says)
    medians_s = {stage: fact["median_s"] for stage, fact in facts.items()}
    attrs = {
        **target.asked,
        "device": model.device,
        "attention": attention,
        "levers": levers.given(),
        "failed": failed,
        **_settings(),
        "other_cores": others[0],
        "machine": before and {"before": before, "after": gpu_state(model.device)},
        **{key: {stage: fact[key] for stage, fact in facts.items()} for key in next(iter(facts.values()))},
        "generation": timed and generation_facts(timed, medians_s, target.plan),
    }
    return _table(parts, attrs, name, timed)


class _Passes(NamedTuple):
    """How every stage is measured."""

    levers: Levers
    attention: str
    samples: int
    warmup: int
    counter: Counter | None


def _measure_stages(
    model: Model, stages: "Iterable[Stage]", passes: _Passes, first: dict[str, Measurement], keep_going: bool
) -> tuple[list[pd.DataFrame], dict[str, Any], dict[str, str]]:
    """Rows and facts of every stage, and why those that failed have none."""
    parts: list[pd.DataFrame] = []
    facts: dict[str, Any] = {}
    failed: dict[str, str] = {}
    broken = ""
    for stage in stages:
        if broken:
            failed[stage.name] = f"the GPU was left unusable by {broken}"
            continue
        try:
            table, facts[stage.name] = measure_fully(model, stage, *passes, first.get(stage.name))
        except Exception as error:  # whatever the libraries raise belongs into the table's attrs
            if not keep_going:
                raise
            failed[stage.name] = one_line(error)
            broken = "" if is_usable(model.device) else stage.name
            continue
        parts.append(table)
    return parts, facts, failed


def _table(parts: list[pd.DataFrame], attrs: dict[str, Any], name: str, timed: Measurement | None) -> pd.DataFrame:
    """The rows of all stages, with what they leave of a whole generation."""
    if timed:
        rest_s = attrs["generation"]["rest_s"]
        parts = [*parts, rest_row(name, rest_s)] if rest_s and rest_s > 0 else parts
        attrs["doubts"][counting.OUTSIDE] = generation_doubts(timed, attrs["generation"])
    table = pd.concat(parts, ignore_index=True)
    ran = table.pop("ran")
    table = counting.as_categories(use_backend(table, byte_model(attrs["attention"])).assign(backend=ran))
    table.attrs = attrs
    return table


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
    rows = []
    for name, samples in facts["samples"].items():
        row = {"stage": name, "repeats": int(repeats[name]), "median_s": facts["median_s"][name]}
        row |= {"iqr_s": facts["iqr_s"][name], "samples": list(samples)}
        covered = facts["coverage"][name]
        row |= {"coverage": covered["of_operators"], "coverage_of_run": covered["of_run"]}
        row |= {key: facts[key][name] for key in ("idle_share", "energy_j", "memory", "changed", "speculation")}
        row["launch_bound"] = facts["idle"][name] and facts["idle"][name]["launch_bound"]
        rows.append(row)
    total = (table["time_s"] * table["repeats"]).groupby(table["category"].astype(str)).sum()
    scale = "the scaled-down variant, not the published model; " if facts["tiny"] else ""
    return {
        **{key: facts[key] for key in ("model", "device", "dtype", "attention", "tiny", "levers", "machine")},
        "time_s": sum(row["median_s"] * row["repeats"] for row in rows),
        "energy_j": _total([row["energy_j"] for row in rows], [row["repeats"] for row in rows]),
        "peak_bytes": max((row["memory"]["peak_bytes"] for row in rows if row["memory"]), default=None),
        "stages": rows,
        "generation": facts.get("generation"),
        "categories": {name: float(value) for name, value in total.items()},
        "doubts": [line for lines in facts["doubts"].values() for line in lines],
        "note": f"{scale}random weights; time_s sums median * repeats over the stages, a growing cache is measured at "
        "its middle step; categories hold the operators' own time, without Python and idle time",
    }


def _time_first(
    model: Model, plan: "Sequence[Stage]", levers: Levers, attention: str, samples: int, warmup: int
) -> dict[str, Measurement]:
    """On a GPU, the timings of eager stages, all before the first of them is profiled; those that fail have none.

    What is compiled or captured is made once, for timing and profiling, and launches less.
    """
    if not model.device.startswith("cuda") or levers.execution != "eager":
        return {}
    first = {}
    for stage in plan:
        with contextlib.suppress(ValueError):  # it is tried once more, and its reason kept, where it is profiled
            first[stage.name] = time_stage(model, stage, levers, attention, samples=samples, warmup=warmup)
    return first


def _total(values: list[float | None], repeats: list[int]) -> float | None:
    """Sum of ``value * repeats``; None where a value is missing."""
    known = [value * many for value, many in zip(values, repeats, strict=True) if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _time_whole(target: Target, attention: str, samples: int, warmup: int) -> Measurement | None:
    """The timing of the whole generation, where it was asked for."""
    work, model = target.generation, target.model
    if work is None:
        return None
    label = f"{model.spec.name} generation"

    def run() -> Measurement:
        return time_generation(work, device=model.device, samples=samples, warmup=warmup, label=label)

    try:
        return with_any_kernel(attention, run)
    except Exception as error:
        raise ValueError(f"{label} failed on {model.device} in {model.dtype}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, on one line, with its type where it is none of ours."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _bar(plan: "tuple[Stage, ...]", name: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(plan, desc=f"measure {name}", unit="stage", file=sys.stderr, disable=not progress)


def _settings() -> dict[str, Any]:
    import torch

    from mmchar.provenance import package_versions

    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return {
        "threads": torch.get_num_threads(),
        "allow_tf32": tf32,
        "versions": package_versions("mmchar", "torch", "diffusers", "transformers"),
    }
