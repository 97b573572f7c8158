"""The operator table of one generation, measured: the same rows as counted, with the time that each of them took.

Two separate passes per stage: :func:`mmchar.timing.measure_time` times whole executions without a profiler, then
:func:`mmchar.timing.profile_once` puts the time of every operator into the row that counting makes of it.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mmchar import counting
from mmchar.attention import ITEM_BYTES, use_backend
from mmchar.backends import attention_backend, byte_model, check_backend, check_shapes
from mmchar.cpu_load import other_cores
from mmchar.energy import energy_counter
from mmchar.execution import (
    apply_levers,
    check_levers,
    choose_stages,
    split_guidance,
)
from mmchar.gpu_state import gpu_state, is_usable
from mmchar.levers import Levers
from mmchar.locks import measuring
from mmchar.models import Model, check_device, get_spec, load
from mmchar.request import Request
from mmchar.speculation import check_speculation
from mmchar.stage_runs import measure_fully, measure_stage, time_stage
from mmchar.stages import Stage
from mmchar.stages import stages as plan_stages
from mmchar.timing import Measurement

__all__ = ["attention_backend", "available_bytes", "measure", "measure_stage", "summarize_measured"]


def measure(
    model: str | Model,
    request: Request | None = None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    attention: str = "flash",
    tiny: bool = False,
    samples: int = 5,
    warmup: int = 1,
    levers: Levers | None = None,
    stages: Sequence[str] | None = None,
    keep_going: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """The operator table of one generation with measured time, from running every stage with random weights.

    Parameters
    ----------
    model : str or Model
        A zoo name, a model file, or a model from :func:`mmchar.load` on a real device, whose device and dtype are used.
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
        has no rows.

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
    levers, own = levers or Levers(), not isinstance(model, Model)
    spec = model.spec if isinstance(model, Model) else get_spec(model, tiny=tiny)
    full = spec.resolve(request)
    plan = _plan(spec.name, plan_stages(spec, full), full, levers, stages)
    if isinstance(model, Model):
        _check_all(attention, levers, device=model.device, dtype=model.dtype)
        if attention not in ("flash", "eager", "math"):
            check_shapes(attention, _rows_of(counting.count(model, request), plan), device=model.device)
    else:
        dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
        check_device(device, dtype)
        _check_all(attention, levers, device=device, dtype=dtype)
        model = _load(model, request, device=device, dtype=dtype, attention=attention, tiny=tiny, plan=plan)
    asked, before = counting.what_was_asked(model, full), gpu_state(model.device)
    model, changed = apply_levers(model, levers, plan, own=own)
    parts, facts, failed = [], {}, {}
    counter = energy_counter(model.device)
    with measuring(model.device), attention_backend(attention), other_cores() as others:
        first = _time_first(model, plan, levers, attention, samples, warmup)
        for stage in _bar(plan, spec.name, progress):
            try:
                table, facts[stage.name] = measure_fully(
                    model, stage, levers, attention, samples, warmup, counter, first.get(stage.name)
                )
            except Exception as error:  # whatever the libraries raise belongs into the table's attrs
                if not keep_going:
                    raise
                failed[stage.name] = one_line(error)
                if not is_usable(model.device):
                    failed |= dict.fromkeys(_names(plan, after=stage), f"the GPU was left unusable by {stage.name}")
                    break
                continue
            facts[stage.name]["changed"] = done = changed.get(stage.component, {})
            if done.get("compiled_blocks") == 0:
                says = f"{spec.name} {stage.name}: the library names no repeated block of it, so nothing was compiled"
                facts[stage.name]["doubts"].append(says)
            parts.append(table)
    if not parts:
        raise ValueError("; ".join(failed.values()))
    if before and before["other_processes"]:
        says = f"{spec.name}: {before['other_processes']} other processes are on the GPU"
        next(iter(facts.values()))["doubts"].append(says)
    table = pd.concat(parts, ignore_index=True)
    ran = table.pop("ran")
    table = counting.as_categories(use_backend(table, byte_model(attention)).assign(backend=ran))
    table.attrs = {
        **asked,
        "device": model.device,
        "attention": attention,
        "levers": levers.given(),
        "failed": failed,
        **_settings(),
        "other_cores": others[0],
        "machine": before and {"before": before, "after": gpu_state(model.device)},
        **{key: {name: fact[key] for name, fact in facts.items()} for key in next(iter(facts.values()))},
    }
    return table


def summarize_measured(table: pd.DataFrame) -> dict[str, Any]:
    """Totals of a measured generation, in the shape of the shell contract.

    ``time_s`` is the sum over stages of ``median_s * repeats``; no generation was run from end to end; ``energy_j``
    likewise, None where the machine does not tell it of every stage. ``peak_bytes`` is the most that any stage
    allocates beyond what is there when it starts. ``categories`` holds seconds of operators, ``value * repeats``, which
    leaves out Python and idle time.
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
        "categories": {name: float(value) for name, value in total.items()},
        "doubts": [line for lines in facts["doubts"].values() for line in lines],
        "note": f"{scale}random weights; time_s sums median * repeats over the stages, a growing cache is measured at "
        "its middle step; categories hold the operators' own time, without Python and idle time",
    }


def _time_first(
    model: Model, plan: Sequence[Stage], levers: Levers, attention: str, samples: int, warmup: int
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


def _names(plan: Sequence[Stage], *, after: Stage) -> list[str]:
    names = [stage.name for stage in plan]
    return names[names.index(after.name) + 1 :]


def _total(values: list[float | None], repeats: list[int]) -> float | None:
    """Sum of ``value * repeats``; None where a value is missing."""
    known = [value * many for value, many in zip(values, repeats, strict=True) if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _plan(
    name: str, plan: Sequence[Stage], request: Request, levers: Levers, names: Sequence[str] | None
) -> tuple[Stage, ...]:
    chosen = choose_stages(plan, names, model=name)
    if levers.cfg == "split":
        chosen = split_guidance(chosen, request, model=name)
    check_speculation(levers, chosen, model=name)
    return chosen


def _check_all(attention: str, levers: Levers, *, device: str, dtype: str) -> None:
    _check_real(device)
    check_backend(attention, device=device, dtype=dtype)
    check_levers(levers, device=device)


def one_line(error: BaseException) -> str:
    """What an error says, on one line, with its type where it is none of ours."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def available_bytes(device: str) -> int | None:
    """Bytes that a new model may take on the device now; None where this machine does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024  # the file says kB and means KiB
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _load(
    name: str,
    request: Request | None,
    *,
    device: str,
    dtype: str,
    attention: str,
    tiny: bool,
    plan: Sequence[Stage],
) -> Model:
    """The model on its device, unless what it needs, counted beforehand, is more than the device has free."""
    table = counting.count(name, request, dtype=dtype, attention=byte_model(attention), tiny=tiny)
    check_shapes(attention, _rows_of(table, plan), device=device)
    roles = {stage.component for stage in plan}
    weights = sum(many for role, many in table.attrs["params"].items() if role in roles) * ITEM_BYTES[dtype]
    need, free = weights + int(_rows_of(table, plan)["live_bytes"].max()), available_bytes(device)
    if free is not None and need > free:
        smaller = "a smaller request" if tiny else "the tiny variant (--tiny), a smaller request"
        raise ValueError(
            f"{name} needs {need / 1e9:.3g} GB in {dtype} (weights {weights / 1e9:.3g}), but {device} has "
            f"{free / 1e9:.3g} GB free; measure {smaller} or a smaller dtype, or count it, which needs no memory"
        )
    return load(name, device=device, dtype=dtype, tiny=tiny, roles=roles)


def _rows_of(table: pd.DataFrame, plan: Sequence[Stage]) -> pd.DataFrame:
    return table[table["stage"].isin([stage.name for stage in plan])]


def _check_real(device: str) -> None:
    if device.startswith("meta"):
        raise ValueError("device 'meta' runs nothing that could be measured; choose cpu or cuda, or count")


def _bar(plan: tuple[Stage, ...], name: str, progress: bool) -> Any:
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
