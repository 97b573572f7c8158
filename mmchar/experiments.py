"""What several notebooks do with operator tables: choose models, sum, compare eager with fused attention, judge."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmchar.attention import ITEM_BYTES
from mmchar.claims import PAPER
from mmchar.hardware import get_gpu
from mmchar.models import get_spec, zoo_names

if TYPE_CHECKING:
    import pandas as pd

    from mmchar.models import Model
    from mmchar.stages import Stage

DECODE_FAMILIES = (  # most of the generation is one token after the other
    "autoregressive",
    "vision_language",
    "linear_adaptor",
    "vision_cross_attention",
    "early_fusion",
    "autoregressive_image",
    "spoken_answer",
    "speech_translation",
    "encoder_decoder",
)
PARALLEL_FAMILIES = ("parallel_decode", "masked_image_transformer")
DIFFUSION_FAMILIES = (
    "latent_diffusion",
    "cascaded_diffusion",
    "pixel_diffusion",
    "image_embedding_diffusion",
    "diffusion_transformer",
    "audio_diffusion",
    "audio_language_diffusion",
    "video_diffusion",
    "image_to_video",
)
CONVOLUTIONAL = (*(family for family in DIFFUSION_FAMILIES if family != "diffusion_transformer"), "video_cascade")
FAMILY_ORDER = (
    "retrieval",
    "ranking",
    "zero_shot",
    *DECODE_FAMILIES,
    *PARALLEL_FAMILIES,
    "any_to_any",
    "video_transformer",
    *DIFFUSION_FAMILIES,
    "video_cascade",
)


def in_order(models: str, *, among: Sequence[str] = ()) -> list[str]:
    """Names of the models asked for, by family from language models to video diffusion, then by year and size.

    Parameters
    ----------
    models : str
        Zoo names separated by commas, or ``all``.
    among : sequence of str
        What ``all`` stands for; by default the models of the paper that the notebooks reproduce.

    Raises
    ------
    ValueError
        Unknown name.
    """
    names = [name.strip() for name in models.split(",")] if models != "all" else list(among) or zoo_names(PAPER)
    specs = {name: get_spec(name) for name in names}
    order = [*FAMILY_ORDER, *sorted({spec.family for spec in specs.values()} - set(FAMILY_ORDER))]
    size = {name: sum(part.published_params or 0 for part in spec.components.values()) for name, spec in specs.items()}
    return sorted(specs, key=lambda name: (order.index(specs[name].family), specs[name].year, size[name], name))


def diffusion_and_others(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models that denoise images, video or sound, and those that decode tokens, one by one or all at once.

    Models of the paper that make video, and those that are neither, are in none of the two.

    Raises
    ------
    ValueError
        One of the two is empty, so that there is no pair to compare.
    """
    family = {name: get_spec(name).family for name in names}
    diffusion = [name for name in names if family[name] in DIFFUSION_FAMILIES]
    others = [name for name in names if family[name] in (*DECODE_FAMILIES, *PARALLEL_FAMILIES)]
    for found, missing, example in (
        (diffusion, "diffusion model", "stable-diffusion-1.5"),
        (others, "model that decodes tokens", "llama-2-7b"),
    ):
        if not found:
            raise ValueError(f"no pair to compare among {', '.join(names)}: add a {missing}, e.g. {example}")
    return diffusion, others


def with_temporal_attention(names: Sequence[str]) -> list[str]:
    """Those of the models that have attention over frames only, beside one over the positions of a frame.

    Raises
    ------
    ValueError
        None of them has; with those of the zoo that have.
    """
    found = [name for name in names if _has_temporal_attention(name)]
    if not found:
        able = ", ".join(filter(_has_temporal_attention, zoo_names()))
        raise ValueError(f"no temporal attention in {', '.join(names)}; choose among {able}")
    return found


def _has_temporal_attention(name: str) -> bool:
    from mmchar.seqlen import closed_form

    spec = get_spec(name)
    return "frames" in spec.request and "temporal" in set(closed_form(spec)["attention"])


def totals(table: "pd.DataFrame", by: Sequence[str]) -> "pd.DataFrame":
    """Totals over repeats: ``by``, then ``calls``, ``flop``, ``bytes`` (read and written) and ``time_s`` (seconds)."""
    sums = table[[*by, "calls", "flop", "time_s"]].assign(bytes=table["read_bytes"] + table["write_bytes"])
    columns = ["calls", "flop", "bytes", "time_s"]
    sums[columns] = sums[columns].mul(table["repeats"], axis=0)
    out = sums.groupby(list(by), observed=True, sort=False)[columns].sum().reset_index()
    return out.astype({name: str for name in by if out[name].dtype == "category"})


def compare_attention(eager: "pd.DataFrame", fused: "pd.DataFrame", by: Sequence[str]) -> "pd.DataFrame":
    """Totals of two tables of the same models side by side, and the gain from the fused kernel.

    Returns
    -------
    DataFrame
        ``by``, ``calls``, ``flop``, ``bytes_eager``, ``bytes_fused``, ``time_eager_s``, ``time_fused_s``,
        ``intensity_eager``, ``intensity_fused`` (FLOP/byte) and ``gain`` (eager time / fused time).
    """
    left, right = (totals(table, by) for table in (eager, fused))
    both = left.merge(right.drop(columns=["calls", "flop"]), on=list(by), suffixes=("_eager", "_fused"), validate="1:1")
    both = both.rename(columns={"time_s_eager": "time_eager_s", "time_s_fused": "time_fused_s"})
    return add_gain(both)


def add_gain(both: "pd.DataFrame") -> "pd.DataFrame":
    """The table of `compare_attention`, or sums of it, with intensities (FLOP/byte) and ``gain``."""
    return both.assign(
        intensity_eager=both["flop"] / both["bytes_eager"],
        intensity_fused=both["flop"] / both["bytes_fused"],
        gain=both["time_eager_s"] / both["time_fused_s"],
    )


def attention_on_sheet(lengths: "pd.DataFrame", *, gpu: str, dtype: str, head_dim: int = 64) -> "pd.DataFrame":
    """What the data sheet alone says of attention cores: no efficiencies, no launches.

    Parameters
    ----------
    lengths : DataFrame
        Columns ``q_len`` and ``kv_len`` (tokens).

    Returns
    -------
    DataFrame
        With ``intensity_eager``, ``intensity_fused`` (FLOP/byte), ``bytes_ratio`` (eager / fused) and ``expected``, the
        gain from a fused kernel: the ratio of the larger of arithmetic and traffic.

    **Source**: FlashAttention, arXiv 2205.14135, Algorithms 0 and 1, for the bytes.
    """
    sheet, item = get_gpu(gpu), ITEM_BYTES[dtype]
    q, kv = lengths["q_len"].astype(float), lengths["kv_len"].astype(float)
    flop = 4 * q * kv * head_dim
    fused = 2 * (q + kv) * head_dim * item
    eager = fused + 4 * q * kv * item
    compute_s, bandwidth = flop / sheet.peak(dtype), sheet.bandwidth_bytes_s
    slow, fast = ((moved / bandwidth).where(moved / bandwidth > compute_s, compute_s) for moved in (eager, fused))
    return lengths.assign(
        intensity_eager=flop / eager, intensity_fused=flop / fused, bytes_ratio=eager / fused, expected=slow / fast
    )


def longest_by_step(table: "pd.DataFrame") -> "pd.DataFrame":
    """The longest sequence that attention sees in each step of one model's generation, all stages in order.

    The length of a causal attention is its keys' (what the cache has grown to), of every other its queries'; temporal
    attention, whose sequences are frames, is left out, and so are stages without attention.

    Returns
    -------
    DataFrame
        ``stage``, ``step`` (counted over all stages), ``progress`` (% of all steps) and ``longest`` (tokens). A stage
        whose steps are all alike is given at its first and its last step.
    """
    import pandas as pd

    from mmchar.counting import executions

    rows = table[~table["attention"].isin(["", "temporal"])]
    length = rows["q_len"].where(rows["attention"] != "causal", rows["kv_len"])
    longest = length.groupby([rows["stage"].astype(str), rows["step"]], sort=False).max()
    runs, done, parts = executions(table), 0, []
    for stage, by_step in longest.groupby(level=0, sort=False):
        count, steps = int(runs[stage]), by_step.droplevel(0).sort_index().cummax()
        steps = steps.reindex(range(count) if len(steps) > 2 else sorted({0, count - 1}), method="ffill")
        parts.append(pd.DataFrame({"stage": stage, "step": done + steps.index, "longest": steps.to_numpy()}))
        done += count
    out = pd.concat(parts, ignore_index=True)
    return out.assign(progress=100 * out["step"] / max(done - 1, 1))


def length_readings(table: "pd.DataFrame") -> "pd.Series":
    """How much the sequence length of a denoiser varies, by every reading that we can think of (times).

    Lengths are those of attention over positions in the denoising stages (self, joint, spatial).
    """
    import pandas as pd

    rows = table[table["stage"].astype(str).str.startswith("denoise")]
    rows = rows[rows["attention"].isin(["self", "joint", "spatial"])]
    lengths = sorted({int(length) for length in rows["q_len"]})
    if not lengths:
        raise ValueError("no denoising stage attends over positions; choose a diffusion model")
    outside = rows[~rows["module"].astype(str).str.startswith("mid")]
    within, around = (
        part.groupby(part["stage"].astype(str))["q_len"].agg(lambda each: each.max() / each.min()).max()
        for part in (rows, outside)
    )
    steps = {stage: sorted(set(part["q_len"])) for stage, part in rows.groupby(rows["stage"].astype(str))}
    pairs = [b / a for each in steps.values() for a, b in zip(each, each[1:], strict=False)]
    return pd.Series(
        {
            "tokens, neighbouring levels": max(pairs, default=1.0),
            "tokens, longest / shortest of a step": within,
            "tokens, the same without the middle block": around,
            "side, longest / shortest of a step": within**0.5,
            "tokens, longest / shortest of all stages": lengths[-1] / lengths[0],
            "tokens, from one step to the next": 1.0,
        },
        name="ratio",
    )


def temporal_readings(timed: "pd.DataFrame") -> "pd.DataFrame":
    """Share of temporal attention in percent of temporal and spatial attention time, by what is called attention.

    ``core``: the attention operator; ``core, cross too``: cross attention beside spatial; ``core and copies``: with the
    layout copies around a transformer; ``block``: with the projections; ``module``: the whole transformer, with its
    norms and feed-forward (and, of the spatial one, its cross attention).

    Parameters
    ----------
    timed : DataFrame
        Rows of one model with ``time_s``, projected or measured.

    Returns
    -------
    DataFrame
        One row per reading, named by the index: ``share`` (%) and ``total_s``, the seconds that it is a share of.
    """
    import pandas as pd

    from mmchar.claims import attention_block

    module, kind = timed["module"].astype(str), timed["attention"].astype(str)
    over_time = module.str.contains(r"temp_attentions|transformer_in|temporal_(?:transformer_)?blocks|motion_modules")
    beside = timed["stage"].isin(timed.loc[kind == "temporal", "stage"])  # a prior's blocks are not over space
    over_space = module.str.contains(r"attentions\.|spatial_blocks") & ~over_time
    over_space |= module.str.startswith("transformer_blocks.") & beside
    temporal, spatial, moved = kind == "temporal", kind == "spatial", timed["category"] == "Data movement"
    readings = {
        "core": (temporal, spatial),
        "core, cross too": (temporal, spatial | (kind == "cross") & over_space),
        "core and copies": (temporal | moved & over_time, spatial | moved & over_space),
        "block": (attention_block(timed, "temporal"), attention_block(timed, "spatial")),
        "module": (over_time, over_space),
    }
    time_s = timed["time_s"] * timed["repeats"]
    parts = {name: (time_s[rows].sum(), time_s[rows | other].sum()) for name, (rows, other) in readings.items()}
    found = pd.DataFrame(parts, index=["temporal_s", "total_s"]).T
    return pd.DataFrame({"share": 100 * found["temporal_s"] / found["total_s"], "total_s": found["total_s"]})


def measure_one_stage(model: "Model", stage: "Stage", *, attention: str, samples: int = 3) -> "pd.DataFrame":
    """The operator rows of one stage of a model on a real device, with measured time (seconds of one execution)."""
    from mmchar.counting import rows_frame, stage_table
    from mmchar.profiling import attention_backend, measure_stage

    with attention_backend(attention):
        timed, profiles = measure_stage(model, stage, samples=samples, warmup=1)
    times = [statistics.median(each) for each in zip(*(one.time_s for one in profiles), strict=True)]
    table = stage_table(rows_frame(profiles[0].rows), model, stage).assign(time_s=times, time_kind="measured")
    table.attrs = {"median_s": timed.median_s, "samples": list(timed.samples_s), "attention": attention}
    return table


def measure_cores(sites: "pd.DataFrame", *, samples: int = 3) -> "pd.DataFrame":
    """Attention cores of these shapes measured on this CPU in float32, on random numbers, one call each.

    Parameters
    ----------
    sites : DataFrame
        Columns ``batch``, ``heads``, ``q_len``, ``kv_len`` and ``head_dim``.
    samples : int
        Timed calls, after one that is not.

    Returns
    -------
    DataFrame
        With ``eager_s`` and ``fused_s``, medians in seconds of one call, ``copy_s``, of copying q to the layout of the
        other axis (as pseudo-3D models do around temporal attention), and ``spread``, the largest IQR / median.
    """
    rows = [_measure_core(shape, samples) for shape in sites[list(_SHAPE)].itertuples(index=False, name=None)]
    eager, fused, copy = zip(*rows, strict=True)
    return sites.assign(
        eager_s=[one.median_s for one in eager],
        fused_s=[one.median_s for one in fused],
        copy_s=[one.median_s for one in copy],
        spread=[max(one.spread for one in row) for row in rows],
        time_kind="measured",
    )


_SHAPE = ("batch", "heads", "q_len", "kv_len", "head_dim")


def _measure_core(shape: tuple[int, ...], samples: int) -> tuple[Any, Any, Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    from mmchar.profiling import attention_backend
    from mmchar.timing import measure_time

    batch, heads, q_len, kv_len, head_dim = shape
    q = torch.randn(batch, heads, q_len, head_dim)
    k, v = (torch.randn(batch, heads, kv_len, head_dim) for _ in range(2))
    tokens = torch.randn(batch, q_len, heads * head_dim)  # [positions, frames, width] -> [frames, positions, width]
    work = {"eager": lambda: attend(q, k, v), "flash": lambda: attend(q, k, v)}
    found = []
    for kernel, call in work.items():
        with attention_backend(kernel):
            found.append(measure_time(lambda call=call: call, samples=samples, label=kernel))  # type: ignore[misc]
    copy = measure_time(lambda: lambda: tokens.transpose(0, 1).contiguous(), samples=samples, label="copy")
    return found[0], found[1], copy


def verdict(name: str, *, expected: Any, got: Any, good: bool, claim: str = "") -> dict[str, Any]:
    """One line of a notebook's table of checks; ``claim`` is an id of ``data/reference/claims.csv``, if it has one."""
    row = {"name": name, "expected": expected, "got": got, "verdict": "agrees" if good else "differs"}
    return {"claim": claim, **row} if claim else row
