"""What a fused attention kernel gains: by query length, in diffusion over decoders, over batch and image size."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from mmchar.counting.operator_table import count
from mmchar.locks import alone
from mmchar.measuring.profiling import measure
from mmchar.models.loading import get_spec
from mmchar.projection.roofline import project
from mmchar.request import Request
from mmchar.study import claims
from mmchar.study.drawing.length_plots import matrix
from mmchar.study.drawing.look import require
from mmchar.study.experiments import (
    DIFFUSION_FAMILIES,
    PARALLEL_FAMILIES,
    add_gain,
    attention_on_sheet,
    compare_attention,
    diffusion_and_others,
)

FEW = ("llama-2-7b", "parti-350m", "stable-diffusion-1.5")
SAID = (1.1, 2.5)  # how many times more diffusion gains than transformers. Source: arXiv 2312.14385, abstract
Case = tuple[str, int, int]  # model, image side (pixels), batch
_CASES = {  # query and key lengths of attention that models have
    "decode step": (1, 1024),
    "16 frames": (16, 16),
    "U-Net, lowest level": (64, 64),
    "base decoder": (256, 256),
    "prefill": (512, 512),
    "parallel decode, video": (1536, 1536),
    "U-Net, top level": (4096, 4096),
}
_SITES = ["model", "family", "stage", "attention", "q_len", "kv_len"]
_AMOUNTS = ["flop", "bytes_eager", "bytes_fused", "time_eager_s", "time_fused_s"]
_READINGS = tuple(f"{what}, {host}" for what in ("end to end", "attention") for host in ("eager", "compiled"))


def sweep_cases(
    models: Sequence[str], *, batches: Sequence[int], sides: Sequence[int], tiny: bool = False
) -> list[Case]:
    """The cases of a sweep: every side for models that denoise, its own for any other, each with every batch.

    A few small ones if ``tiny``. Raises a ValueError for a case that a model cannot make.
    """
    cases = [(name, side, batch) for name in models for side in _sides(name, sides) for batch in batches]
    if tiny:
        cases = [("stable-diffusion-1.5", 128, 1), ("stable-diffusion-1.5", 128, 4)]
    for name, side, batch in cases:
        get_spec(name, tiny=tiny).resolve(Request(batch=batch, height=side, width=side))
    return cases


def _sides(name: str, sides: Sequence[int]) -> Sequence[int]:
    spec = get_spec(name)
    return sides if spec.family in DIFFUSION_FAMILIES else [spec.request.get("height", 256)]


def on_sheet(*, gpu: str, dtype: str) -> pd.DataFrame:
    """`experiments.attention_on_sheet` of lengths that models have, named by ``case``; heads are 64 wide."""
    lengths = pd.DataFrame([(case, *pair) for case, pair in _CASES.items()], columns=["case", "q_len", "kv_len"])
    return attention_on_sheet(lengths, gpu=gpu, dtype=dtype)


def sheet_curve(*, gpu: str, dtype: str) -> pd.DataFrame:
    """`experiments.attention_on_sheet` of self attention over powers of two, up to 16,384 tokens."""
    lengths = [2**power for power in range(15)]
    return attention_on_sheet(pd.DataFrame({"q_len": lengths, "kv_len": lengths}), gpu=gpu, dtype=dtype)


def gains(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """Eager beside fused attention by attention site, each with PyTorch's eager host and compiled, projected.

    Columns: those of `experiments.compare_attention` by ``model, family, stage, attention, q_len, kv_len``, and
    ``execution``, ``gpu``, ``time_kind``.
    """
    parts = []
    for name, table in tables.items():
        table = table.assign(family=get_spec(name).family)
        for execution in ("eager", "compiled"):
            eager, flash = (project(table, gpu=gpu, attention=each, execution=execution) for each in ("eager", "flash"))
            parts.append(compare_attention(eager, flash, _SITES).assign(execution=execution))
    return pd.concat(parts, ignore_index=True).assign(gpu=gpu, time_kind="projected")


def by_stage(compared: pd.DataFrame) -> pd.DataFrame:
    """Lengths, intensities and gain of the attention cores of each stage with an eager host, from a table of `gains`.

    Columns: ``model, stage, q_min, q_max, kv_min, kv_max`` (tokens), ``intensity_eager``, ``intensity_fused``
    (FLOP/byte), ``gain``, ``stage_gain`` (of the whole stage), ``time_kind``.
    """
    now, key = compared[compared["execution"] == "eager"], ["model", "stage"]
    cores = now[now["attention"] != ""].groupby(key, sort=False)
    out = cores["q_len"].agg(q_min="min", q_max="max").join(cores["kv_len"].agg(kv_min="min", kv_max="max"))
    out = out.join(add_gain(cores[_AMOUNTS].sum())).drop(columns=_AMOUNTS)
    out["stage_gain"] = add_gain(now.groupby(key, sort=False)[_AMOUNTS].sum())["gain"]
    return out.assign(time_kind="projected").reset_index()


def by_model(compared: pd.DataFrame) -> pd.DataFrame:
    """Gain of attention and end to end, with an eager and with a compiled host, from a table of `gains`.

    A row per ``model`` (the index); columns: ``family``, ``end to end, eager``, ``attention, compiled`` and so on,
    ``time_kind``.
    """
    parts = {"attention": compared[compared["attention"] != ""], "end to end": compared}
    sums = {what: rows.groupby(["execution", "model", "family"], sort=False)[_AMOUNTS] for what, rows in parts.items()}
    found = [add_gain(each.sum())["gain"].unstack("execution").add_prefix(f"{what}, ") for what, each in sums.items()]
    out = found[0].join(found[1]).reset_index("family").assign(time_kind="projected")
    return out.loc[list(compared["model"].unique())]


def by_length(compared: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Gain of every distinct attention of some models with an eager host, from a table of `gains`.

    Columns: ``family, model, stage, attention, q_len``, ``time_kind``, those of `experiments.add_gain`, of which
    ``speedup`` is the gain (times).
    """
    rows = compared[(compared["execution"] == "eager") & (compared["attention"] != "")]
    site = ["family", "model", "stage", "attention", "q_len", "time_kind"]
    sums = rows[rows["model"].isin(models)].groupby(site, sort=False)[_AMOUNTS].sum()
    return add_gain(sums).reset_index().rename(columns={"gain": "speedup"})


def pairs(found: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Gain of every diffusion model over that of every model that decodes, from a table of `by_model`.

    Columns: ``reading``, ``diffusion``, ``transformer``, ``ratio`` (times).
    """
    diffusion, others = diffusion_and_others(models)
    rows = [
        (reading, one, other, found.at[one, reading] / found.at[other, reading])
        for reading in _READINGS
        for one in diffusion
        for other in others
    ]
    return pd.DataFrame(rows, columns=["reading", "diffusion", "transformer", "ratio"])


def pair_panels(ratios: pd.DataFrame, *, title: str = "") -> Figure:
    """A matrix of ratios per reading of a table of `pairs`; what the paper says is framed."""
    require(ratios, "reading", "diffusion", "transformer", "ratio")
    readings = list(ratios.groupby("reading", sort=False))
    size = {"figsize": (6.8, 1.3 + len(readings) * (0.6 + 0.4 * ratios["diffusion"].nunique()))}
    figure, axs = plt.subplots(len(readings), 1, layout="constrained", sharex=True, squeeze=False, **size)
    names: dict[str, Any] = {"row": "diffusion", "column": "transformer", "value": "ratio", "unit": "ratio (x)"}
    for ax, (reading, part) in zip(axs[:, 0], readings, strict=True):
        matrix(part, **names, band=SAID, ax=ax)
        ax.set_title(f"{reading} host", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def sweep(cases: Sequence[Case], *, gpu: str, dtype: str, tiny: bool = False, progress: bool = False) -> pd.DataFrame:
    """Projected gain from fused attention in each case, with an eager host.

    Columns: ``model``, ``case``, ``batch``, ``end to end`` and ``attention`` (times), ``time_kind``.
    """
    rows = []
    for name, side, batch in tqdm(cases, desc="sweep", disable=not progress):
        table = count(name, Request(batch=batch, height=side, width=side), dtype=dtype, tiny=tiny)
        eager, flash = (project(table, gpu=gpu, attention=kernel) for kernel in ("eager", "flash"))
        both = [claims.speedup_by_model(flash, eager, attention_only=only).iloc[0] for only in (False, True)]
        rows.append((name, f"{name}, {side} px", batch, *both))
    out = pd.DataFrame(rows, columns=["model", "case", "batch", "end to end", "attention"])
    return out.assign(time_kind="projected")


def sweep_panels(table: pd.DataFrame, *, title: str = "") -> Figure:
    """The gains of a table of `sweep` over batch and image size: end to end, and of attention below it."""
    require(table, "case", "batch", "end to end", "attention")
    size = {"figsize": (6.4, 1.6 + 0.9 * table["case"].nunique()), "layout": "constrained", "sharex": True}
    figure, axs = plt.subplots(2, 1, **size)
    for ax, column in zip(axs, ("end to end", "attention"), strict=True):
        matrix(table, row="case", column="batch", value=column, unit="eager / fused (x)", ax=ax)
        ax.set_title(column, fontsize=10)
    axs[1].set_xlabel("batch (images)")
    figure.suptitle(title, fontsize=11)
    return figure


@alone()
def measured_gains(side: int, *, samples: int, progress: bool = False) -> pd.DataFrame:
    """Gain of attention cores of two scaled-down models, a U-Net (images of ``side``) and a decoder, measured here.

    Columns: ``model, stage, attention, q_len``, those of `experiments.compare_attention` (``speedup`` is the gain),
    ``stage_gain`` (of the whole stage), ``family``, ``time_kind``, ``scale``, ``machine``.
    """
    asked = {"stable-diffusion-1.5": Request(steps=1, height=side, width=side), "parti-350m": None}
    parts = []
    for name, request in asked.items():
        options: dict[str, Any] = {"tiny": True, "samples": samples, "progress": progress}
        eager, flash = (measure(name, request, attention=kernel, **options) for kernel in ("eager", "flash"))
        part = compare_attention(eager, flash, ["model", "stage", "attention", "q_len"])
        eager_s, fused_s = (part["stage"].map(table.attrs["median_s"]) for table in (eager, flash))
        parts.append(part.assign(stage_gain=eager_s / fused_s, family=get_spec(name).family))
    out = pd.concat(parts, ignore_index=True).rename(columns={"gain": "speedup"})
    return out[out["attention"] != ""].assign(time_kind="measured", scale="scaled down", machine="this CPU")


def analogy(stages: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """What the analogy says of intensity and launches, from tables of `by_stage` and `by_model`.

    Columns: ``name``, ``expected``, ``got``, ``good``; what none of the models can show is left out.
    """
    fused = stages.set_index("stage")["intensity_fused"]
    decode, denoise = fused[fused.index == "decode"].max(), fused[fused.index.str.startswith("denoise")].max()
    single = models[models["family"] == "encoder_decoder"]["attention, compiled"].min()
    rows = [
        ("FLOP/byte of decode, fused", "at most 8", decode, decode <= 8),  # 8 heads of LLaMA-2 70B share their keys
        ("denoising over decode (x)", "> 30", denoise / decode, denoise > 30 * decode),
        ("decode without launches (x)", "< 1.2", single, single < 1.2),
    ]
    return pd.DataFrame(rows, columns=["name", "expected", "got", "good"]).dropna(subset="got")


def learned(models: pd.DataFrame, measured: pd.DataFrame, shown: Sequence[str]) -> str:
    """What came out, as a list in Markdown, from tables of `by_model` and `measured_gains`."""
    diffusion, others = diffusion_and_others(shown)
    many, one = models.loc[diffusion], models.loc[others]
    one = one[~one["family"].isin(PARALLEL_FAMILIES)]
    wanted = {"many": (many, "eager"), "one": (one, "eager"), "compiled": (one, "compiled")}
    gained = {what: _span(rows[f"attention, {host}"]) for what, (rows, host) in wanted.items()}
    first = measured[measured["stage"] == "decode"].iloc[0]
    last = measured[(measured["stage"] == "denoise") & (measured["attention"] == "self")].iloc[0]
    return f"""- Diffusion, projected: attention gains {gained["many"]}, all {_span(many["end to end, eager"])}.
- Models with a decode: attention gains {gained["one"]}, {gained["compiled"]} compiled.
- Measured on this CPU, scaled down: decode {first["speedup"]:.2f}x at {first["q_len"]} query,
  denoising {last["speedup"]:.2f}x at {last["q_len"]}."""


def _span(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}x" if len(values) else "none here"
