"""How long the sequences are that attention sees over one generation, and what their similarity matrices take."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmchar.counting import seqlen
from mmchar.models.loading import get_spec
from mmchar.models.specs import ModelSpec
from mmchar.projection.data_sheets import get_gpu
from mmchar.provenance import package_versions
from mmchar.request import Request
from mmchar.study import experiments
from mmchar.study.drawing.length_plots import curves, length_series, matrix
from mmchar.study.drawing.look import axes, legend_below, require
from mmchar.study.drawing.projection_plots import plot_measured_against_counted
from mmchar.study.measured_runs import Run
from mmchar.study.measured_shares import peak_memory
from mmchar.tables.cache import cached_table, source_hash
from mmchar.tracing.attention import ITEM_BYTES

FEW = ("llama-2-7b", "parti-350m", "stable-diffusion-1.5")
DRAWN = (  # denoisers whose lengths are drawn call by call
    ("stable-diffusion-1.5", "denoise"),
    ("stable-diffusion-2.1", "denoise"),
    ("imagen", "denoise_64"),
    ("make-a-video", "denoise_keyframes"),
)
WITHIN = "tokens, longest / shortest of a step"  # of the readings of "up to 4 times" the one that text mentions
_ALL, _LARGEST = "all calls of a step", "largest single call"
_EXPONENTS = {"all cross calls of a step": 2, _ALL: "2 to 4"}  # of the image's side; of everything else 4
_PARTS = {"down": "down", "mid": "middle", "up": "up", "transformer_in": "in"}


def sized_model(name: str, sides: Sequence[int], *, tiny: bool = False) -> ModelSpec:
    """The latent diffusion model whose image size is varied; a ValueError for another kind, or for a side."""
    spec = get_spec(name, tiny=tiny)
    if spec.family != "latent_diffusion":
        raise ValueError(f"size_model={name!r} is {spec.family}; choose a latent diffusion model")
    for side in sides:
        spec.resolve(Request(height=side, width=side))
    return spec


def levels_by_hand(side: int, *, item_bytes: int, levels: int = 4) -> pd.DataFrame:
    """Tokens of each level of a latent U-Net, by hand: ``(side / (8 * 2^level))^2``.

    Columns: ``level``, ``pixels per position``, ``tokens``, ``longer than the next level (x)``,
    ``similarity per head (bytes)``.
    """
    out = pd.DataFrame({"level": range(levels)})
    out["pixels per position"] = 8 * 2 ** out["level"]
    out["tokens"] = (side // out["pixels per position"]) ** 2
    out["longer than the next level (x)"] = out["tokens"] / out["tokens"].shift(-1)
    return out.assign(**{"similarity per head (bytes)": out["tokens"] ** 2 * item_bytes})


def two_routes(tables: Mapping[str, pd.DataFrame], *, tiny: bool = False) -> pd.DataFrame:
    """Whether the closed form of each model that has one equals the lengths that were seen, row by row.

    Columns: ``model``, ``rows, closed form``, ``rows, seen``, ``attention calls`` (of a generation), ``equal``.
    """
    rows = []
    for name, table in tables.items():
        spec, found = get_spec(name, tiny=tiny), _ordered(seqlen.seen(table))
        if seqlen.has_closed_form(spec):
            form, calls = _ordered(_closed_form(spec)), int((found["calls"] * found["repeats"]).sum())
            rows.append((name, len(form), len(found), calls, form.equals(found)))
    return pd.DataFrame(rows, columns=["model", "rows, closed form", "rows, seen", "attention calls", "equal"])


def _closed_form(spec: ModelSpec, **size: int) -> pd.DataFrame:
    """`seqlen.closed_form`, kept on disk: it plans the whole generation once more."""
    versions = package_versions("torch", "diffusers", "transformers", "pandas")
    key = {"closed form": msgspec.to_builtins(spec), "size": size, "source": source_hash(), "versions": versions}
    return cached_table(key, lambda: seqlen.closed_form(spec, Request(**size)))


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(list(rows.columns), ignore_index=True)


def variation(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`seqlen.variation` of every model by stage and attention kind, with ``model`` and ``family`` in front."""
    parts = [seqlen.variation(table).assign(model=name, family=get_spec(name).family) for name, table in tables.items()]
    return pd.concat(parts, ignore_index=True).set_index(["model", "family"]).reset_index()


def all_lengths(tables: Mapping[str, pd.DataFrame], *, item_bytes: int) -> pd.DataFrame:
    """Every distinct attention of every model, with ``calls`` of a whole generation.

    Columns: ``model, stage, attention, q_len, kv_len, batch, heads, calls``, and ``similarity_bytes`` of one call.
    """
    keep = ["model", "stage", "attention", "q_len", "kv_len", "batch", "heads", "calls", "repeats"]
    parts = [seqlen.seen(table).assign(model=name)[keep] for name, table in tables.items()]
    out = pd.concat(parts, ignore_index=True)
    out["similarity_bytes"] = seqlen.similarity_memory(out, item_bytes)
    out["calls"] *= out.pop("repeats")
    return out


def largest_matrices(lengths: pd.DataFrame, *, gpu: str) -> pd.DataFrame:
    """The row of each model whose similarity matrix is largest, and which ``share_of_gpu_memory`` it is."""
    largest = lengths.loc[lengths.groupby("model", sort=False)["similarity_bytes"].idxmax()]
    share = largest["similarity_bytes"] / get_gpu(gpu).memory_bytes
    return largest.assign(share_of_gpu_memory=share).reset_index(drop=True)


def heaviest_stages(lengths: pd.DataFrame) -> list[tuple[str, str]]:
    """Model and stage with the most pairs of queries, ``q_len^2`` over all calls, of each model."""
    pairs = lengths["q_len"] ** 2.0 * lengths["batch"] * lengths["heads"] * lengths["calls"]
    pairs = pairs.groupby([lengths["model"], lengths["stage"]], sort=False).sum()
    return list(pairs.loc[pairs.groupby(level="model", sort=False).idxmax()].index)


def in_a_step(tables: Mapping[str, pd.DataFrame], lengths: pd.DataFrame) -> pd.DataFrame:
    """Lengths of the calls of one step, in order, of the models of `DRAWN`, or of the heaviest stages of others.

    Columns of `seqlen.series`, and ``model``, ``stage``, ``part`` (of a U-Net: down, middle, up).
    """
    wanted = [(name, stage) for name, stage in DRAWN if name in tables] or heaviest_stages(lengths)[-4:]
    parts = [seqlen.series(tables[name], stage).assign(model=name, stage=stage) for name, stage in wanted]
    out = pd.concat(parts, ignore_index=True)
    side = out["module"].str.extract(f"^({'|'.join(_PARTS)})")[0]
    return out.assign(part=side.map(_PARTS).fillna("all"))


def step_panels(series: pd.DataFrame) -> Figure:
    """A panel of `length_series` per model and stage of a table from `in_a_step`."""
    require(series, "model", "stage")
    panels = list(series.groupby(["model", "stage"], sort=False))
    size = {"figsize": (6.8, 2.9 * len(panels)), "layout": "constrained", "squeeze": False}
    figure, axs = plt.subplots(len(panels), 1, **size)
    for ax, ((model, stage), rows) in zip(axs[:, 0], panels, strict=True):
        length_series(rows, ax=ax)
        ax.set_title(f"{model}, {stage}", loc="left", pad=16)
    return figure


def over_steps(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`experiments.longest_by_step` of every model."""
    parts = [experiments.longest_by_step(table).assign(model=name) for name, table in tables.items()]
    return pd.concat(parts, ignore_index=True)


def step_curves(steps: pd.DataFrame) -> Axes:
    """The longest sequence of each step over the generation, a line per model; the table is one of `over_steps`."""
    names: dict[str, Any] = {
        "xlabel": "steps done, of those with attention (%)",
        "ylabel": "longest sequence in the step (tokens)",
    }
    ax = axes(None, width=6.4, height=4.6)
    curves(steps, x="progress", y="longest", hue="model", base=None, ax=ax, **names)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.set_title("Sequence length over one generation, all stages in order", fontsize=10)
    legend_below(ax, ncols=3)
    return ax


def growth(steps: pd.DataFrame) -> pd.DataFrame:
    """By how many tokens the longest sequence grows from step to step, of a table of `over_steps`.

    A row for each way of decoding that there is: ``way``, ``expected``, ``least``, ``most``, ``good``.
    """
    rows = []
    for way, want in (("parallel_decode", 0), ("decode", 1)):
        part = steps[steps["stage"].str.fullmatch(f"{way}(_base|_superres)?")]
        rise = part.groupby(["model", "stage"])["longest"].diff().dropna()
        if len(rise):
            rows.append((way, want, rise.min(), rise.max(), bool((rise == want).all())))
    return pd.DataFrame(rows, columns=["way", "expected", "least", "most", "good"])


def by_side(spec: ModelSpec, sides: Sequence[int]) -> pd.DataFrame:
    """Self-attention calls of one denoising step by length and image side.

    Columns: ``q_len`` (tokens), ``calls``, ``side`` (pixels), ``share`` (% of the calls at that side).
    """
    parts = []
    for side in sides:
        form = _denoising(spec, side)
        calls = form[form["attention"] == "self"].groupby("q_len")["calls"].sum()
        parts.append(calls.reset_index().assign(side=side))
    out = pd.concat(parts, ignore_index=True)
    return out.assign(share=100 * out["calls"] / out.groupby("side")["calls"].transform("sum"))


def _denoising(spec: ModelSpec, side: int) -> pd.DataFrame:
    form = _closed_form(spec, height=int(side), width=int(side))
    return form[form["stage"] == "denoise"]


def similarity_by_side(spec: ModelSpec, sides: Sequence[int], *, item_bytes: int) -> pd.DataFrame:
    """Bytes of the similarity matrices of one denoising step by image side: ``what``, ``side`` (pixels), ``bytes``.

    ``what`` is the largest single call, or the sum over all calls, over those of self or of cross attention.
    """
    parts = []
    for side in sides:
        form = _denoising(spec, side)
        one = seqlen.similarity_memory(form, item_bytes)
        every = one * form["calls"]
        kinds = {f"all {kind} calls of a step": every[form["attention"] == kind].sum() for kind in ("self", "cross")}
        found = {**kinds, _ALL: every.sum(), _LARGEST: one.max()}
        parts += [(what, side, int(size)) for what, size in found.items()]
    return pd.DataFrame(parts, columns=["what", "side", "bytes"])


def exponents(memory: pd.DataFrame) -> pd.DataFrame:
    """Powers of the side that bytes grow with, by a straight line through the logarithms, beside what is expected.

    Columns: ``what``, ``exponent of the image side``, ``expected`` (a number, or "2 to 4"), ``good``.
    """
    rows = []
    for what, part in memory.groupby("what", sort=False):
        power = float(np.polyfit(np.log(part["side"]), np.log(part["bytes"].astype(float)), 1)[0])
        want = _EXPONENTS.get(str(what), 4)
        rows.append((what, power, want, abs(power - want) < 0.01 if isinstance(want, int) else 2 < power < 4))
    return pd.DataFrame(rows, columns=["what", "exponent of the image side", "expected", "good"])


def with_guides(memory: pd.DataFrame, *, gpu: str, dtype: str) -> pd.DataFrame:
    """A table of `similarity_by_side` with one head of the outermost level by closed form, and the GPU's memory."""
    sides = memory["side"].unique()
    head = [seqlen.level_similarity_bytes(int(s), int(s), level=0, item_bytes=ITEM_BYTES[dtype]) for s in sides]
    guides = {"closed form: one head, outermost level": head, f"memory of {gpu} (guide)": get_gpu(gpu).memory_bytes}
    parts = [pd.DataFrame({"what": what, "side": sides, "bytes": size}) for what, size in guides.items()]
    return pd.concat([memory, *parts], ignore_index=True)


def memory_curves(memory: pd.DataFrame, *, title: str = "") -> Axes:
    """Gigabytes of similarity matrices over the image side, of a table from `with_guides`."""
    shown = memory[memory["what"] != _ALL].assign(gb=memory["bytes"] / 1e9)
    names: dict[str, Any] = {"xlabel": "image side (pixels)", "ylabel": "similarity matrices (GB)"}
    ax = axes(None, width=6.4, height=4.8)
    curves(shown, x="side", y="gb", hue="what", dashed="guide", ax=ax, **names)
    ax.set_yscale("log", base=10)
    ax.set_title(title, fontsize=10)
    legend_below(ax, ncols=2)
    return ax


def step_memory(runs: Sequence[Run]) -> pd.DataFrame:
    """`measured_shares.peak_memory` of denoising stages, and ``over``, measured over counted bytes."""
    peaks = peak_memory(runs)
    peaks = peaks[peaks["stage"].str.startswith("denoise")]
    return peaks.assign(over=peaks["measured_bytes"] / peaks["counted_bytes"])


def time_by_length(shares: pd.DataFrame) -> Axes:
    """Share of attention time by length, a row per run; the table is one of `measured_shares.beside` by ``q_len``."""
    shown = shares.assign(run=shares["run"].str.replace(": ", ":\n"))
    ax = axes(None, width=6.8, height=1.6 + 0.45 * shown["run"].nunique())
    matrix(shown, row="run", column="q_len", value="share", digits=0, unit="% of attention time", ax=ax)
    ax.set_xlabel("query length (tokens)")
    return ax


def memory_beside_count(peaks: pd.DataFrame) -> Axes:
    """Measured over counted megabytes of a denoising step; the table is one of `step_memory`."""
    shown = peaks.assign(counted=peaks["counted_bytes"] / 1e6, measured=peaks["measured_bytes"] / 1e6)
    look: dict[str, Any] = {"hue": "model", "style": "kernel", "unit": "MB"}
    ax = plot_measured_against_counted(shown, counted="counted", measured="measured", **look)
    ax.set_title("Most memory of one denoising step at published scale", fontsize=10)
    return ax


def readings(tables: Mapping[str, pd.DataFrame], lengths: pd.DataFrame) -> pd.DataFrame:
    """`experiments.length_readings` of each model that denoises positions: a row per reading, a column per model."""
    own = lengths["stage"].str.startswith("denoise") & lengths["attention"].isin(["self", "joint", "spatial"])
    found = {name: experiments.length_readings(tables[name]) for name in lengths.loc[own, "model"].unique()}
    return pd.DataFrame(found).rename_axis("reading")


def agrees_with_four(read: pd.DataFrame) -> pd.Series:
    """Whether the largest ratio of each reading is the paper's 4, within a half."""
    return (read.max(axis=1) - 4).abs() < 0.5


def learned(read: pd.DataFrame, powers: pd.DataFrame, largest: pd.DataFrame) -> str:
    """What came out, as a list in Markdown, from `readings`, `exponents` and `largest_matrices`."""
    four = "; ".join(read.index[agrees_with_four(read)]) or "none"
    within = "no denoiser among these models"
    if not read.empty:
        within = f"{read.loc[WITHIN].min():.0f} to {read.loc[WITHIN].max():.0f} times"
    said = ", ".join(f"{power:.2f} ({what})" for what, power in powers.iloc[:, :2].itertuples(index=False))
    top = largest.loc[largest["similarity_bytes"].idxmax()]
    shape = f"{top['q_len']:,} x {top['kv_len']:,}, batch {top['batch']}, {top['heads']} heads"
    takes = f"{top['similarity_bytes'] / 1e9:.3g} GB, {top['share_of_gpu_memory']:.2f} times the memory of the GPU"
    return f"""- "Up to 4 times" is what this reading gives: **{four}**.
- Longest over shortest within a step: {within}.
- Exponent of the image side: {said}.
- Largest similarity matrix of one call: {takes} ({top["model"]}, {top["stage"]}: {shape})."""
