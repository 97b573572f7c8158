"""What fewer denoising steps save, and what remains of a generation: schedulers' calls, steps, caches between steps.

All that a generation does is affine in its steps, so two counts of a model say its time at any number of them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec, load
from mmchar.projection.planning.step_caching import cache_steps
from mmchar.projection.roofline import project
from mmchar.projection.uncertainty import time_range
from mmchar.provenance import package_versions
from mmchar.request import Request
from mmchar.study.drawing.look import PART_COLORS, axes, legend_beside, require
from mmchar.study.findings import Findings
from mmchar.study.questions.adaptors import stage_parts
from mmchar.tables.cache import cached_table, source_hash
from mmchar.tables.totals import executions

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # class in diffusers, and what is set besides the betas
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM, Runge-Kutta first": ("PNDMScheduler", {"skip_prk_steps": False}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
}
# Stable Diffusion's. Source: the zoo's stable-diffusion-1.5.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_MODEL = "stable-diffusion-1.5"
Variant = tuple[str, str, int, float | None]  # model, how it is run, calls of its denoiser, guidance (None: its own)
VARIANTS: tuple[Variant, ...] = (
    ("ddpm-celebahq-256", "DDPM, 1,000 steps", 1000, None),
    ("ddpm-celebahq-256", "DDIM, 50 steps", 50, None),
    ("ddpm-celebahq-256", "DDIM, 10 steps", 10, None),
    ("dit-xl-2-256", "DDPM, 250 steps", 250, None),
    ("dit-xl-2-256", "DDIM, 50 steps", 50, None),
    ("dit-xl-2-256", "DDIM, 10 steps", 10, None),
    ("stable-diffusion-1.5", "PNDM, 50 steps", 51, None),
    ("stable-diffusion-1.5", "DPM++, 20 steps", 20, None),
    ("stable-diffusion-1.5", "DDIM, 10 steps", 10, None),
    ("stable-diffusion-1.5", "LCM, 4 steps, unguided", 4, 1.0),
    ("sdxl-base-1.0", "Euler, 50 steps", 50, None),
    ("sdxl-base-1.0", "DDIM, 10 steps", 10, None),
    ("sdxl-base-1.0", "LCM, 4 steps, unguided", 4, 1.0),
    ("sdxl-base-1.0", "turbo, 1 step, unguided", 1, 1.0),
    ("pixart-sigma-1024", "DPM++, 20 steps", 20, None),
    ("pixart-sigma-1024", "distilled, 4 steps, unguided", 4, 1.0),
    ("flux.1-dev", "Euler, 28 steps", 28, None),
    ("flux.1-schnell", "distilled, 4 steps", 4, None),
    ("z-image-turbo", "distilled, 9 steps", 9, None),
)
_COUNTED = (5, 10)  # steps of the two counts


def scheduler_calls(steps: Sequence[int], schedulers: Sequence[str] = tuple(SCHEDULERS)) -> pd.DataFrame:
    """How often Stable Diffusion's pipeline calls its network at so many steps: ``scheduler, steps, calls``.

    The library's pipeline runs with each scheduler, around a scaled-down network. Raises a ValueError for a scheduler
    that is none of `SCHEDULERS`.
    """
    for name in schedulers:
        if name not in SCHEDULERS:
            raise ValueError(f"unknown scheduler {name!r}; choose among {', '.join(SCHEDULERS)}")
    asked = {"schedulers": {name: list(SCHEDULERS[name]) for name in schedulers}, "steps": list(steps)}
    versions = package_versions("torch", "diffusers", "transformers", "pandas")
    code = {"source": source_hash(), "calls": inspect.getsource(_calls), "betas": _BETAS, "model": _MODEL}

    def fresh() -> pd.DataFrame:
        rows = [(name, many, _calls(name, many)) for name in schedulers for many in steps]
        return pd.DataFrame(rows, columns=["scheduler", "steps", "calls"])

    return cached_table({**asked, **code, "versions": versions}, fresh)


def call_costs(name: str, *, gpu: str, guidance: float | None = None, tiny: bool = False) -> pd.DataFrame:
    """Projected seconds of each part of a generation: ``fixed_s``, and ``call_s`` of every call of the denoiser.

    A row per part (a value of `look.PART_COLORS`). ``attrs`` hold the ``model``, its ``steps`` and ``calls`` by
    default, and ``low`` and ``high``, what a time is multiplied by for its range. Raises a ValueError for a model that
    does not denoise in one loop.
    """
    default = get_spec(name, tiny=tiny).request.get("steps")
    if not isinstance(default, int):
        raise ValueError(f"{name} has no single number of denoising steps; choose e.g. sdxl-base-1.0")
    given: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    timed = [project(count(name, tiny=tiny, steps=steps, **given), gpu=gpu) for steps in _COUNTED]
    (low, few), (high, many) = ((_by_part(table), _denoiser_calls(table)) for table in timed)
    each = (high - low) / (many - few)
    out = pd.DataFrame({"fixed_s": low - few * each, "call_s": each})
    out = out.reindex([part for part in PART_COLORS if part in out.index]).rename_axis("part")
    reach, by_step = time_range(timed[-1], 1.0), (many - few) / (_COUNTED[1] - _COUNTED[0])
    usual = {"steps": default, "calls": round(few + by_step * (default - _COUNTED[0]))}
    out.attrs = {"model": name, **usual, "low": reach["low_s"], "high": reach["high_s"]}
    return out


def at_calls(costs: pd.DataFrame, calls: int) -> pd.DataFrame:
    """Seconds at so many calls of the denoiser, from a table of `call_costs`.

    A row per part: ``model, part, calls, time_s, share`` (%); of the whole ``total_s, low_s, high_s``; ``remains`` (%),
    the share of all that is not the denoiser.
    """
    time_s = (costs["fixed_s"] + calls * costs["call_s"]).to_numpy()
    total, own = time_s.sum(), costs.index == "denoiser"
    out = pd.DataFrame({"part": costs.index, "time_s": time_s, "share": 100 * time_s / total})
    whole = {"total_s": total, "low_s": costs.attrs["low"] * total, "high_s": costs.attrs["high"] * total}
    remains = 100 * time_s[~own].sum() / total
    return out.assign(model=costs.attrs["model"], calls=calls, **whole, remains=remains, time_kind="projected")


def half_remains(costs: pd.DataFrame) -> float:
    """The number of calls of the denoiser below which encoders and decoder take more than half; 0 without any."""
    rest = costs.index.isin(["encoder", "decoder"])
    if not rest.any():
        return 0.0
    fixed, call = costs["fixed_s"], costs["call_s"]
    return float((fixed[rest].sum() - fixed[~rest].sum()) / (call[~rest].sum() - call[rest].sum()))


def fewer_calls(variants: Sequence[Variant] = VARIANTS, *, gpu: str, tiny: bool = False) -> pd.DataFrame:
    """`at_calls` of ways to run the same models, with a ``label`` each, and ``gain`` over the first way of a model."""
    parts = []
    for name, how, calls, guidance in variants:
        costs = call_costs(name, gpu=gpu, guidance=guidance, tiny=tiny)
        label = f"{name}: {how}"
        parts.append(at_calls(costs, calls).assign(label=label, half=half_remains(costs), gpu=gpu))
    out = pd.concat(parts, ignore_index=True)
    family = out["model"].str.replace(r"-(?:dev|schnell)$", "", regex=True)  # one network, of which one is distilled
    return out.assign(gain=out["total_s"].groupby(family).transform("first") / out["total_s"])


def curve(name: str, guidance: float | None, calls: Sequence[int], *, gpu: str, tiny: bool = False) -> pd.DataFrame:
    """`at_calls` of one model at several numbers of calls, a row each, with ``guidance``: ``its own`` or ``none``."""
    costs = call_costs(name, gpu=gpu, guidance=guidance, tiny=tiny)
    rows = pd.concat([at_calls(costs, many)[:1] for many in calls], ignore_index=True)
    return rows.assign(guidance="none" if guidance == 1 else "its own")


def cached_gains(table: pd.DataFrame, kind: str, hit_rates: Sequence[float], *, gpu: str) -> pd.DataFrame:
    """What a cache between steps saves at stated hit rates: ``hit_rate, time_s, gain`` (times), ``remains`` (%).

    ``table`` is a counted one; ``remains`` is the share of all that is not the denoiser. Kinds, and what a hit still
    runs: `step_caching`.
    """
    rows = []
    for rate in (0.0, *hit_rates):
        timed = project(cache_steps(table, kind, hit_rate=rate), gpu=gpu)
        total = timed["time_s"] * timed["repeats"]
        denoiser = total[timed["stage"].astype(str).str.startswith("denoise")].sum()
        rows.append((rate, total.sum(), 100 * (1 - denoiser / total.sum())))
    out = pd.DataFrame(rows, columns=["hit_rate", "time_s", "remains"])
    out = out.assign(model=table.attrs["model"], cache=kind, gpu=gpu, time_kind="projected")
    return out.assign(gain=out["time_s"].iloc[0] / out["time_s"])


def remains_by_calls(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of time that is not the denoiser, over how often it is called, a line per model and guidance.

    Columns: ``model``, ``guidance``, ``calls``, ``remains`` (%).
    """
    require(data, "model", "guidance", "calls", "remains")
    ax = axes(ax, width=8.5, height=4.2)
    sns.lineplot(data, x="calls", y="remains", hue="model", style="guidance", markers=True, palette="colorblind", ax=ax)
    ax.axhline(50, color="0.3", lw=1, ls="--")
    ticks = sorted(data["calls"].unique())
    ax.set(xscale="log", ylim=(0, 100), xlabel="calls of the denoiser", ylabel="time outside of it (%, projected)")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    legend_beside(ax)
    return ax


def gain_by_hits(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Speed-up of a whole generation by a cache between steps, over its hit rate, a line per model and kind of cache.

    Columns: ``model``, ``cache``, ``hit_rate`` (0 to 1), ``gain`` (times).
    """
    require(data, "model", "cache", "hit_rate", "gain")
    ax = axes(ax, width=8.5, height=4.2)
    shown = data.assign(percent=100 * data["hit_rate"])
    sns.lineplot(shown, x="percent", y="gain", hue="model", style="cache", markers=True, palette="colorblind", ax=ax)
    ax.set(xlabel="steps that hit the cache (%, stated)", ylabel="speed-up of the generation (x, projected)")
    legend_beside(ax)
    return ax


def check_calls(found: Findings, called: pd.DataFrame) -> None:
    """Hold the calls of `scheduler_calls` against what each solver's method says: ``a n + b`` for ``n`` steps."""
    more = {"PNDM": (1, 1), "PNDM, Runge-Kutta first": (1, 9), "Heun": (2, -1), "DPM2": (2, -1)}
    a, b = (called["scheduler"].map(lambda name, at=at: more.get(name, (1, 0))[at]) for at in (0, 1))
    good = called["calls"] == a * called["steps"] + b
    got = f"{good.sum()} of {len(good)}"
    found.check("schedulers' calls", expected="as expected", got=got, good=bool(good.all()))


def check_gains(found: Findings, whole: pd.DataFrame, gains: pd.DataFrame) -> None:
    """Hold gains and what remains, of `fewer_calls` (a row per label) and `cached_gains`, against what was expected."""
    want: dict[tuple[str, str], tuple[float, float]] = {  # of a label, a column: the value, and how far it may be off
        ("ddpm-celebahq-256: DDIM, 50 steps", "gain"): (20, 1),
        ("ddpm-celebahq-256: DDIM, 10 steps", "gain"): (100, 5),
        ("stable-diffusion-1.5: PNDM, 50 steps", "half"): (1.6, 0.5),
        ("flux.1-schnell: distilled, 4 steps", "remains"): (10, 10),
        ("stable-diffusion-1.5: LCM, 4 steps, unguided", "half"): (3.1, 0.5),
        ("stable-diffusion-1.5: LCM, 4 steps, unguided", "gain"): (15, 3),
    }
    here = whole.set_index("label")
    rows = [(", ".join(key), *at, here.at[key]) for key, at in want.items() if key[0] in here.index]
    half = gains[(gains["hit_rate"] == 0.5) & (gains["cache"] == "teacache")]
    rows += [(f"{row.model}, half of the steps cached, gain", 2, 0.2, row.gain) for row in half.itertuples()]
    for name, at, by, got in rows:
        found.check(name, expected=f"{at} ± {by}", got=f"{got:.3g}", good=abs(got - at) <= by)


def learned(whole: pd.DataFrame) -> str:
    """What a table of `fewer_calls` (a row per label and GPU) says, as a list in Markdown."""
    fastest = whole[whole["gain"] > 1.01].drop_duplicates(["model", "gpu"], keep="last")
    says = "- **{0.label}** on {0.gpu}: {0.total_s:.3g} s ({0.low_s:.3g} to {0.high_s:.3g}), {0.gain:.1f}x as fast;"
    lines = [f"{says.format(row)} {row.remains:.0f} % is not the denoiser." for row in fastest.itertuples()]
    most = whole.loc[whole.groupby("model")["half"].idxmax()].sort_values("half", ascending=False)
    half = ", ".join(f"{row.half:.1f} ({row.model}, {row.gpu})" for row in most.itertuples() if row.half > 0)
    lines.append(f"- Encoders and decoder take half of the time below so many calls, at most: {half}.")
    return "\n".join(["## What we learned", "", *lines])


def _calls(name: str, steps: int) -> int:
    cls, more = SCHEDULERS[name]
    model = load(_MODEL, device="meta", dtype="bfloat16", tiny=True)
    scheduler = {"scheduler": {"class": cls, "config": {**_BETAS, **more}}}
    made = msgspec.structs.replace(model.spec.pipeline, schedulers=scheduler)
    model = replace(model, spec=msgspec.structs.replace(model.spec, pipeline=made))
    return _denoiser_calls(count(model, Request(steps=steps)))


def _denoiser_calls(table: pd.DataFrame) -> int:
    runs = executions(table)
    return int(runs[runs.index.astype(str).str.startswith("denoise")].sum())


def _by_part(timed: pd.DataFrame) -> "pd.Series[float]":
    return (timed["time_s"] * timed["repeats"]).groupby(stage_parts(timed)).sum()
