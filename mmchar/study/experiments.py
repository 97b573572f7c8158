"""What the notebooks do with operator tables: choose models, sum, compare eager with fused attention, read."""

from collections.abc import Sequence

import pandas as pd

from mmchar.counting.seqlen import variation
from mmchar.models.loading import get_spec, zoo_names
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.decode_costs import per_token
from mmchar.tables.totals import executions, totals
from mmchar.tracing.attention import ITEM_BYTES

PAPER = "arXiv 2312.14385"
# In the order of tables and legends: what most of a generation is, and a seaborn palette with the number of the colour
# in it. Families of the same kind share a hue, in different shades.
FAMILIES = {
    "retrieval": ("encode", "dark", 4),
    "ranking": ("encode", "bright", 4),
    "zero_shot": ("encode", "dark", 7),
    "autoregressive": ("decode", "colorblind", 7),
    "vision_language": ("decode", "colorblind", 5),
    "linear_adaptor": ("decode", "dark", 5),
    "vision_cross_attention": ("decode", "bright", 5),
    "early_fusion": ("decode", "bright", 3),
    "autoregressive_image": ("decode", "dark", 3),
    "spoken_answer": ("decode", "dark", 6),
    "speech_translation": ("decode", "bright", 6),
    "encoder_decoder": ("decode", "colorblind", 3),
    "parallel_decode": ("parallel decode", "colorblind", 1),
    "masked_image_transformer": ("parallel decode", "dark", 1),
    "any_to_any": ("any", "colorblind", 6),
    "video_transformer": ("video", "colorblind", 4),
    "latent_diffusion": ("diffusion", "colorblind", 0),
    "cascaded_diffusion": ("diffusion", "colorblind", 9),
    "pixel_diffusion": ("diffusion", "dark", 9),
    "image_embedding_diffusion": ("diffusion", "bright", 9),
    "diffusion_transformer": ("diffusion", "dark", 0),
    "audio_diffusion": ("diffusion", "colorblind", 8),
    "audio_language_diffusion": ("diffusion", "dark", 8),
    "video_diffusion": ("diffusion", "dark", 2),
    "image_to_video": ("diffusion", "bright", 2),
    "video_cascade": ("video", "colorblind", 2),
}
FAMILY_ORDER = tuple(FAMILIES)
DECODE_FAMILIES, PARALLEL_FAMILIES, DIFFUSION_FAMILIES = (
    tuple(name for name, (kind, *_) in FAMILIES.items() if kind == wanted)
    for wanted in ("decode", "parallel decode", "diffusion")
)
CONVOLUTIONAL = (*(family for family in DIFFUSION_FAMILIES if family != "diffusion_transformer"), "video_cascade")

_OTHER_SIZES = {
    "llama-2-7b": ("llama-2-13b", "llama-2-70b"),
    "parti-20b": ("parti-350m", "parti-750m", "parti-3b"),
}


def listed(names: str | Sequence[str]) -> list[str]:
    """Names in a text, separated by commas, or in a list, as papermill's ``-y`` gives it; a ValueError for all else."""
    given = names.split(",") if isinstance(names, str) else names
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{names!r} is no list of names; write them in one text, separated by commas")
    return [name.strip() for name in given]


def in_order(models: str | Sequence[str], *, among: Sequence[str] = ()) -> list[str]:
    """Names of the models asked for, by family from language models to video diffusion, then by year and size.

    ``models`` are zoo names, separated by commas or in a list, or ``all``, which stands for those ``among``; by default
    the models of the paper that the notebooks reproduce. Raises a ValueError for an unknown name.
    """
    names = listed(models)
    if names == ["all"]:
        names = list(among) or zoo_names(PAPER)
    specs = {name: get_spec(name) for name in names}
    order = [*FAMILY_ORDER, *sorted({spec.family for spec in specs.values()} - set(FAMILY_ORDER))]
    size = {name: sum(part.published_params or 0 for part in spec.components.values()) for name, spec in specs.items()}
    return sorted(specs, key=lambda name: (order.index(specs[name].family), specs[name].year, size[name], name))


def one_size_each(names: Sequence[str], *, also: Sequence[str] = ()) -> list[str]:
    """The models without the other sizes of LLaMA-2 and Parti, of which one is among them: a figure stays readable."""
    crowd = {size for name, sizes in _OTHER_SIZES.items() if name in names for size in sizes}
    return [name for name in names if name in also or name not in crowd]


def diffusion_and_others(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The models that denoise images, video or sound, and those that decode tokens, one by one or all at once.

    Models of the paper that make video, and those that are neither, are in none of the two. Raises a ValueError where
    one of the two is empty, so that there is no pair to compare.
    """
    kind = {name: FAMILIES[get_spec(name).family][0] for name in names}
    diffusion = [name for name in names if kind[name] == "diffusion"]
    others = [name for name in names if kind[name] in ("decode", "parallel decode")]
    if not (diffusion and others):
        denoiser, decoder = "diffusion model, e.g. stable-diffusion-1.5", "model that decodes tokens, e.g. llama-2-7b"
        missing = decoder if diffusion else denoiser
        raise ValueError(f"no pair to compare among {', '.join(names)}: add a {missing}")
    return diffusion, others


def per_unit_s(timed: pd.DataFrame) -> float:
    """Seconds per token of a model that decodes token by token, per image (of a batch, one) of any other."""
    total = timed["time_s"] * timed["repeats"]
    if (timed["stage"] == "decode").any():
        return float(total[per_token(timed)].sum() / executions(timed)["decode"])
    return float(total.sum() / timed.attrs["request"].get("batch", 1))


def compare_attention(eager: pd.DataFrame, fused: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Totals of two tables of the same models side by side, and the gain from the fused kernel.

    Columns: ``by``, ``calls``, ``flop``, ``bytes_eager``, ``bytes_fused``, ``time_eager_s``, ``time_fused_s``, and
    those of `add_gain`.
    """
    left, right = (totals(table, by) for table in (eager, fused))
    both = left.merge(right.drop(columns=["calls", "flop"]), on=list(by), suffixes=("_eager", "_fused"), validate="1:1")
    return add_gain(both.rename(columns={"time_s_eager": "time_eager_s", "time_s_fused": "time_fused_s"}))


def add_gain(both: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare_attention`, or sums of it, with intensities (FLOP/byte) and ``gain`` (eager / fused)."""
    return both.assign(
        intensity_eager=both["flop"] / both["bytes_eager"],
        intensity_fused=both["flop"] / both["bytes_fused"],
        gain=both["time_eager_s"] / both["time_fused_s"],
    )


def attention_on_sheet(lengths: pd.DataFrame, *, gpu: str, dtype: str, head_dim: int = 64) -> pd.DataFrame:
    """What the data sheet alone says of attention cores of ``q_len`` and ``kv_len`` tokens: no launches.

    Adds ``intensity_eager``, ``intensity_fused`` (FLOP/byte), ``bytes_ratio`` (eager / fused) and ``expected``, the
    gain from a fused kernel: the ratio of the larger of arithmetic and traffic.

    **Source**: FlashAttention, arXiv 2205.14135, Algorithms 0 and 1, for the bytes.
    """
    sheet, item = get_gpu(gpu), ITEM_BYTES[dtype]
    q, kv = lengths["q_len"].astype(float), lengths["kv_len"].astype(float)
    flop = 4 * q * kv * head_dim
    fused = 2 * (q + kv) * head_dim * item
    eager = fused + 4 * q * kv * item
    compute_s = flop / sheet.peak(dtype)
    slow, fast = ((moved / sheet.bandwidth_bytes_s).clip(lower=compute_s) for moved in (eager, fused))
    return lengths.assign(
        intensity_eager=flop / eager, intensity_fused=flop / fused, bytes_ratio=eager / fused, expected=slow / fast
    )


def longest_by_step(table: pd.DataFrame) -> pd.DataFrame:
    """The longest sequence that attention sees in each step of one model's generation, all stages in order.

    The length of a causal attention is its keys' (what the cache has grown to), of every other its queries'; temporal
    attention, whose sequences are frames, is left out, and so are stages without attention. Columns: ``stage``,
    ``step`` (counted over all stages), ``progress`` (% of all steps) and ``longest`` (tokens). A stage whose steps are
    all alike is given at its first and its last step.
    """
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


def length_readings(table: pd.DataFrame) -> pd.Series:
    """How much the sequence length of a denoiser varies, by every reading that we can think of (times).

    Lengths are those of attention over positions in the denoising stages (self, joint, spatial).
    """
    rows = table[table["stage"].astype(str).str.startswith("denoise")]
    rows = rows[rows["attention"].isin(["self", "joint", "spatial"])]
    if rows.empty:
        raise ValueError("no denoising stage attends over positions; choose a diffusion model")
    outside = rows[~rows["module"].astype(str).str.startswith("mid")]
    step, around, whole = variation(rows, ["stage"]), variation(outside, ["stage"]), variation(rows, ["model"])
    within = step["ratio"].max()
    return pd.Series(
        {
            "tokens, neighbouring levels": step["neighbours"].max(),
            "tokens, longest / shortest of a step": within,
            "tokens, the same without the middle block": around["ratio"].max(),
            "side, longest / shortest of a step": within**0.5,
            "tokens, longest / shortest of all stages": whole["ratio"].max(),
            "tokens, from one step to the next": 1.0,
        },
        name="ratio",
    )
