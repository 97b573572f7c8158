"""The operator table of one generation, measured: the same rows as counted, with the time that each of them took.

Two separate passes per stage: :func:`mmchar.timing.measure_time` times whole executions without a profiler, then
:func:`mmchar.timing.profile_once` puts the time of every operator into the row that counting makes of it.
"""

import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from mmchar import counting
from mmchar.attention import BACKENDS, ITEM_BYTES, use_backend
from mmchar.models import Model, check_device, load
from mmchar.request import Request
from mmchar.stages import Stage, stages
from mmchar.timing import WIDE, Measurement, Profile, Work, measure_time, profile_once

_FACTS = ("samples", "median_s", "iqr_s", "span_s", "coverage", "doubts")
_DISTURBED = 1.5  # operators that took this much longer under the profiler than a whole run without it were not alone
_NO_KERNEL = "No available kernel"  # how PyTorch says that no attention backend allowed takes a call
PROFILED_PASSES = 3  # a row's time is its median over this many profiled executions (fewer if fewer samples are asked)


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
    attention : {"flash", "eager"}
        ``"flash"`` lets PyTorch choose among its fused kernels only. A stage with a call that none of them takes (a few
        models attend without a heads dimension) may use the math path too, and says so in ``backend`` and doubts.
        ``"eager"`` is PyTorch's math path (matmul, softmax, matmul) in the model's own dtype, without its up-cast to
        float32. It scales q and k, guards rows that are masked whole, and leaves the heads to be merged by a copy:
        passes over memory that the byte model of eager attention does not have, and a ``clone`` row per attention.
    tiny : bool
        Measure the scaled-down variant of a named model.
    samples, warmup : int
        Timed executions of each stage, and untimed ones before them.
    progress : bool
        A bar over the stages, on stderr.

    Returns
    -------
    DataFrame
        Columns as in ``data/README.md``. ``time_s`` is the own time of all calls of the row in one execution: on a CPU
        of the operators themselves, on a GPU of their kernels; ``kernels`` is how many those are (0 on a CPU, which
        launches none). ``backend`` says which attention ran. A stage that grows a KV cache is measured at its middle
        step: ``step`` names it, and its rows stand for all ``repeats`` steps. ``attrs`` adds device, attention,
        threads, versions, and per stage: samples (seconds, end to end, without profiler), median_s, iqr_s, span_s
        (seconds with tracer and profiler), coverage, as ``of_operators`` (time in rows / time of all operators) and
        ``of_run`` (time in rows / median; the rest is Python, views, and on a GPU idle time), and doubts, a line for
        each reason not to trust the stage's numbers (none is an empty list).

    Raises
    ------
    ValueError
        Bad name, request, device, dtype or attention, or a model that does not fit into memory, before anything is
        built; an execution that fails, with its stage.
    """
    if attention not in BACKENDS:
        raise ValueError(f"unknown attention {attention!r}; choose one of {', '.join(BACKENDS)}")
    if samples < 1 or warmup < 0:
        raise ValueError(f"samples={samples}, warmup={warmup} is not possible; give at least 1 sample and 0 warm-ups")
    if not isinstance(model, Model):
        model = _load(model, request, device=device, dtype=dtype, attention=attention, tiny=tiny)
    _check_real(model.device)
    full = model.spec.resolve(request)
    parts, facts = [], {}
    with attention_backend(attention):
        for stage in _bar(stages(model.spec, full), model.spec.name, progress):
            timed, profiles = measure_stage(model, stage, samples=samples, warmup=warmup)
            parts.append(_stage_rows(model, stage, profiles))
            facts[stage.name] = _stage_facts(timed, profiles, attention)
    table = pd.concat(parts, ignore_index=True)
    ran = table.pop("ran")
    table = counting.as_categories(use_backend(table, attention).assign(backend=ran))
    table.attrs = {
        **counting.what_was_asked(model, full),
        "device": model.device,
        "attention": attention,
        **_settings(),
        **{key: {name: fact[key] for name, fact in facts.items()} for key in _FACTS},
    }
    return table


def summarize_measured(table: pd.DataFrame) -> dict[str, Any]:
    """Totals of a measured generation, in the shape of the shell contract.

    ``time_s`` is the sum over stages of ``median_s * repeats``; no generation was run from end to end. ``categories``
    holds seconds of operators, ``value * repeats``, which leaves out Python and idle time.
    """
    facts = table.attrs
    repeats = table.groupby("stage", observed=True, sort=False)["repeats"].max()
    rows = []
    for name, samples in facts["samples"].items():
        row = {"stage": name, "repeats": int(repeats[name]), "median_s": facts["median_s"][name]}
        row |= {"iqr_s": facts["iqr_s"][name], "samples": list(samples)}
        covered = facts["coverage"][name]
        rows.append({**row, "coverage": covered["of_operators"], "coverage_of_run": covered["of_run"]})
    total = (table["time_s"] * table["repeats"]).groupby(table["category"].astype(str)).sum()
    scale = "the scaled-down variant, not the published model; " if facts["tiny"] else ""
    return {
        **{key: facts[key] for key in ("model", "device", "dtype", "attention", "tiny")},
        "time_s": sum(row["median_s"] * row["repeats"] for row in rows),
        "stages": rows,
        "categories": {name: float(value) for name, value in total.items()},
        "doubts": [line for lines in facts["doubts"].values() for line in lines],
        "note": f"{scale}random weights; time_s sums median * repeats over the stages, a growing cache is measured at "
        "its middle step; categories hold the operators' own time, without Python and idle time",
    }


def measure_stage(model: Model, stage: Stage, *, samples: int, warmup: int) -> tuple[Measurement, list[Profile]]:
    """The timing of one stage without a profiler, and its profiled executions; a growing stage at its middle step."""
    module, middle = model.components[stage.component], stage.at(middle_step(stage))
    device, name = model.device, f"{model.spec.name} {stage.name}"

    def prepare() -> Work:
        from mmchar import calls

        return calls.prepare(model, middle)

    def run() -> tuple[Measurement, list[Profile]]:
        timed = measure_time(prepare, device=device, samples=samples, warmup=warmup, label=name)
        return timed, [profile_once(module, prepare(), device) for _ in range(min(samples, PROFILED_PASSES))]

    try:
        try:
            return run()
        except RuntimeError as error:
            if _NO_KERNEL not in str(error):
                raise
        with _any_kernel():  # a few models attend without a heads dimension, which only the math path takes
            return run()
    except RuntimeError as error:
        size = ", ".join(f"{key} {value}" for key, value in middle.sizes.items())
        raise ValueError(f"{name} failed on {device} in {model.dtype} ({size}): {_reason(error)}") from error


def middle_step(stage: Stage) -> int:
    """The step that a stage is measured at: the middle of those that a KV cache makes different, else the first."""
    return stage.repeats // 2 if stage.grows else 0


@contextmanager
def attention_backend(attention: str) -> Iterator[None]:
    """PyTorch's attention restricted to what was asked for: fused kernels only, or the math path in the own dtype."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(attention == "eager")  # the CPU obeys it too
    try:
        with sdpa_kernel([SDPBackend.MATH] if attention == "eager" else fused):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _any_kernel() -> Any:
    """Fused kernels where they can, and the math path for what none of them takes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


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


def _load(name: str, request: Request | None, *, device: str, dtype: str | None, attention: str, tiny: bool) -> Model:
    """The model on its device, unless what it needs, counted beforehand, is more than the device has free."""
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    check_device(device, dtype)
    _check_real(device)
    table = counting.count(name, request, dtype=dtype, attention=attention, tiny=tiny)
    weights = sum(table.attrs["params"].values()) * ITEM_BYTES[dtype]
    need, free = weights + int(table["live_bytes"].max()), available_bytes(device)
    if free is not None and need > free:
        smaller = "a smaller request" if tiny else "the tiny variant (--tiny), a smaller request"
        raise ValueError(
            f"{name} needs {need / 1e9:.3g} GB in {dtype} (weights {weights / 1e9:.3g}), but {device} has "
            f"{free / 1e9:.3g} GB free; measure {smaller} or a smaller dtype, or count it, which needs no memory"
        )
    return load(name, device=device, dtype=dtype, tiny=tiny)


def _check_real(device: str) -> None:
    if device.startswith("meta"):
        raise ValueError("device 'meta' runs nothing that could be measured; choose cpu or cuda, or count")


def _bar(plan: tuple[Stage, ...], name: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(plan, desc=f"measure {name}", unit="stage", file=sys.stderr, disable=not progress)


def _stage_rows(model: Model, stage: Stage, profiles: list[Profile]) -> pd.DataFrame:
    if any(one.rows != profiles[0].rows for one in profiles):
        raise ValueError(f"{model.spec.name} {stage.name}: two executions called different operators")
    frame = counting.rows_frame(profiles[0].rows).assign(step=middle_step(stage), repeats=stage.repeats)
    return counting.stage_table(frame, model, stage).assign(
        time_s=[statistics.median(times) for times in zip(*(one.time_s for one in profiles), strict=True)],
        time_kind="measured",
        kernels=profiles[0].kernels,
        ran=profiles[0].ran,
    )


def _stage_facts(timed: Measurement, profiles: list[Profile], attention: str) -> dict[str, Any]:
    in_rows = statistics.median(sum(one.time_s) for one in profiles)
    everything = statistics.median(sum(one.time_s) + one.other_s for one in profiles)
    doubts = [] if timed.spread <= WIDE else [repr(timed)]  # NaN, of a single sample, is a doubt too
    if in_rows > _DISTURBED * timed.median_s:
        doubts.append(f"{timed.label}: its operators took {in_rows / timed.median_s:.1f}x as long under the profiler")
    unfused = profiles[0].ran.count("math") if attention == "flash" else 0
    if unfused:
        doubts.append(f"{timed.label}: no fused kernel takes the attention of {unfused} rows; the math path ran")
    return {
        "samples": list(timed.samples_s),
        "median_s": timed.median_s,
        "iqr_s": timed.iqr_s if timed.n > 1 else None,
        "span_s": statistics.median(one.span_s for one in profiles),
        "coverage": {"of_operators": in_rows / everything, "of_run": in_rows / timed.median_s},
        "doubts": doubts,
    }


def _settings() -> dict[str, Any]:
    import torch

    from mmchar.provenance import package_versions

    return {
        "threads": torch.get_num_threads(),
        "versions": package_versions("mmchar", "torch", "diffusers", "transformers"),
    }


def _reason(error: RuntimeError) -> str:
    text = " ".join(str(error).split())[:200]
    if "memory" in text:
        return f"out of memory; use a smaller request or dtype ({text})"
    return text
