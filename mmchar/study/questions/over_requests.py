"""How a generation changes with what is asked for: image size, tokens, beams, tasks, guidance, batch and steps."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import count, executions
from mmchar.counting.seqlen import similarity_memory
from mmchar.models.loading import get_spec
from mmchar.projection.decode_costs import token_rows, weight_bytes
from mmchar.projection.roofline import project
from mmchar.request import Request
from mmchar.study.drawing.length_plots import Panels
from mmchar.study.experiments import per_unit_s
from mmchar.study.questions.still_true import parts
from mmchar.tracing.attention import ITEM_BYTES, use_backend

# For `length_plots.size_panels`: the label of a y axis, its scale, and the columns that it shows.
WORK: Panels = {
    "FLOP of all steps (10^12)": (1e-12, {"attention_flop": "attention cores", "convolution_flop": "convolution"}),
    "projected time of all steps (s)": (
        1,
        {
            "attention_eager_s": "attention cores, eager",
            "attention_fused_s": "attention cores, fused",
            "convolution_s": "convolution",
        },
    ),
}
MEMORY: Panels = {
    "memory beside the weights (GB)": (
        1e-9,
        {
            "step_eager_bytes": "denoising step, eager attention",
            "similarity_bytes": "its largest similarity matrix",
            "step_bytes": "denoising step, fused attention",
            "decoder_bytes": "image decoder",
        },
    ),
}
# The tasks of the second paper (arXiv 2410.00215): text, image, speech, history and action in and out.
TASKS = {
    "T-T codellama-34b": "codellama-34b",
    "IT-T chameleon-7b": "chameleon-7b",
    "T-I chameleon-7b-t2i": "chameleon-7b-t2i",
    "S-S seamless": "seamless-m4t-v2-large",
    "S-T seamless": "seamless-m4t-v2-large-s2tt",
    "T-S seamless": "seamless-m4t-v2-large-t2st",
    "T-T seamless": "seamless-m4t-v2-large-t2tt",
    "H-A hstu": "hstu-24l-1024-8k",
}
_TOKENS = {"prefill": "prompt", "decode": "each generated token"}


def by_size(
    names: Iterable[str], sides: Iterable[int], *, gpu: str, dtype: str = "bfloat16", tiny: bool = False
) -> pd.DataFrame:
    """Attention cores beside convolution in denoising, and memory, over the side of a square image.

    Columns: ``model``, ``side`` (pixels); of all denoising steps ``attention_flop``, ``convolution_flop``,
    ``attention_eager_s``, ``attention_fused_s``, ``convolution_s`` (projected); of one step, in bytes beside the
    weights, ``similarity_bytes`` (the largest matrix that eager attention writes), ``step_bytes`` and
    ``step_eager_bytes`` (the most that is alive), and ``decoder_bytes``, of the image decoder with fused attention.
    """
    rows = []
    for name in names:
        for side in sides:
            table = count(name, Request(height=side, width=side), dtype=dtype, tiny=tiny)
            rows.append({"model": name, "side": side, **_work(table, gpu), **_memory(table)})
    return pd.DataFrame(rows).assign(gpu=gpu, time_kind="projected")


def _work(table: pd.DataFrame, gpu: str) -> dict[str, float]:
    eager, fused = (project(table, gpu=gpu, attention=kernel) for kernel in ("eager", "flash"))
    return {
        "attention_flop": _in_steps(fused, "Attention", "flop"),
        "convolution_flop": _in_steps(fused, "Convolution", "flop"),
        "attention_eager_s": _in_steps(eager, "Attention", "time_s"),
        "attention_fused_s": _in_steps(fused, "Attention", "time_s"),
        "convolution_s": _in_steps(fused, "Convolution", "time_s"),
    }


def _in_steps(timed: pd.DataFrame, category: str, column: str) -> float:
    rows = timed[timed["stage"].astype(str).str.startswith("denoise") & (timed["category"] == category)]
    return float((rows[column].astype(float) * rows["repeats"]).sum())


def _memory(table: pd.DataFrame) -> dict[str, int]:
    step, decoder = (table["stage"].astype(str).str.startswith(name) for name in ("denoise", "decode_image"))
    eager = use_backend(table, "eager")
    return {
        "similarity_bytes": int(similarity_memory(table[step], ITEM_BYTES[table.attrs["dtype"]]).max()),
        "step_bytes": int(table.loc[step, "live_bytes"].max()),
        "step_eager_bytes": int(eager.loc[step, "live_bytes"].max()),
        "decoder_bytes": int(table.loc[decoder, "live_bytes"].max()),
    }


def timeline(table: pd.DataFrame) -> pd.DataFrame:
    """Memory of a generation, call by call, with fused and with eager attention: what `plots.memory_timeline` draws."""
    eager = use_backend(table, "eager")["live_bytes"]
    return table[["model", "stage", "live_bytes"]].assign(live_eager_bytes=eager)


def crossover(data: pd.DataFrame, x: str, rising: str, other: str) -> float:
    """Where ``rising`` passes ``other``, by straight lines through the logarithms; NaN if it does not."""
    ratio = np.log(data[rising].to_numpy(float) / data[other].to_numpy(float))
    last = np.flatnonzero((ratio[:-1] < 0) & (ratio[1:] >= 0))
    if not len(last):
        return float("nan")
    start, places = last[-1], np.log(data[x].to_numpy(float))
    return float(np.exp(np.interp(0, ratio[start : start + 2], places[start : start + 2])))


def crossovers(sizes: pd.DataFrame) -> pd.DataFrame:
    """Sides (pixels) from which attention cores are more than convolution, by model. The table is one of `by_size`.

    Columns: ``model``, ``FLOP`` (counted), ``eager`` and ``fused`` (projected time).
    """
    pairs = {"FLOP": ("attention_flop", "convolution_flop")}
    pairs |= {kernel: (f"attention_{kernel}_s", "convolution_s") for kernel in ("eager", "fused")}
    rows = []
    for model, part in sizes.groupby("model", sort=False):
        rows.append({"model": model, **{name: crossover(part, "side", *pair) for name, pair in pairs.items()}})
    return pd.DataFrame(rows)


def weight_use(tables: Mapping[str, pd.DataFrame], *, least: float = 10) -> pd.DataFrame:
    """How often one generation reads each weight of its main stages, and for how many positions a read is used.

    Columns: ``model``, ``family``, ``stage`` (its variants together), ``reads`` (executions) and ``uses``
    (multiply-adds per weight and read, in linear layers and convolutions: positions of all samples). A row for each
    stage that has ``least`` percent of the FLOPs, encoders and decoders of images left out.
    """
    found = []
    for name, table in tables.items():
        rows = table[(parts(table) == "denoiser, language model") & (table["m"] > 0) & (table["flop"] > 0)]
        rows = rows[rows["category"].isin(["Linear", "Convolution"])]
        stage, flop = rows["stage"].astype(str), rows["flop"].astype(float) * rows["repeats"]
        base = stage.str.replace(r"_variant_\d+", "", regex=True)
        sums = pd.DataFrame({"flop": flop, "once": flop / rows["m"]}).groupby(base, sort=False).sum()
        runs = executions(table).rename(index=str)[stage.unique()]
        reads = runs.groupby(runs.index.str.replace(r"_variant_\d+", "", regex=True)).sum()
        main = sums[sums["flop"] / sums["flop"].sum() >= least / 100]
        found += [(name, get_spec(name).family, at, reads[at], row.flop / row.once) for at, row in main.iterrows()]
    return pd.DataFrame(found, columns=["model", "family", "stage", "reads", "uses"])


def traffic_by_token(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Bytes that each decoding step moves, for tables by a label: ``case, token, what, value`` (bytes), a row for each.

    ``what`` is ``weights``, ``cache, read by attention`` and, of a beam search, ``cache, moved to its beams``: after a
    step all keys and values of self and cross attention are copied to the beams that go on.
    """
    found = []
    for case, table in tables.items():
        rows = token_rows(table)
        steps, cores = int(executions(rows)["decode"]), rows[rows["attention"] != ""]
        query = cores[["batch", "heads", "q_len", "head_dim", "calls"]].prod(axis=1) * ITEM_BYTES[table.attrs["dtype"]]
        cache = cores["read_bytes"] - cores["mask_bytes"] - query
        same = cores["repeats"] == steps
        read = cache[~same].groupby(cores["step"]).sum() + cache[same].sum()
        what = {"weights": (weight_bytes(rows) * rows["repeats"]).sum() / steps, "cache, read by attention": read}
        what |= {"cache, moved to its beams": 2 * read} if table.attrs["request"].get("beams", 1) > 1 else {}
        found += [pd.DataFrame({"case": case, "token": read.index + 1, "what": k, "value": v}) for k, v in what.items()]
    return pd.concat(found, ignore_index=True)


def lengths_by_task(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Lengths that self-attention sees: ``task, what, shortest, median, longest`` (tokens), ``calls``; tables by task.

    ``what`` is the prompt, each generated token (its length is that of the cache), or what runs around them: encoders,
    and decoders of images and sound.
    """
    found = []
    for table in tables.values():
        rows = table[~table["attention"].isin(["", "cross"])]
        what = rows["stage"].astype(str).str.replace(r"_variant_\d+", "", regex=True).map(_TOKENS)
        lengths = (
            rows["q_len"].where(rows["attention"] != "causal", rows["kv_len"]).repeat(rows["calls"] * rows["repeats"])
        )
        kinds = what.fillna("encoders, image and sound").reindex(lengths.index)
        each = lengths.groupby(kinds).agg(["min", "median", "max", "size"])
        found.append(
            each.set_axis(["shortest", "median", "longest", "calls"], axis=1).rename_axis("what").reset_index()
        )
    return pd.concat(found, keys=tables, names=["task", None]).reset_index("task").reset_index(drop=True)


def asked_again(
    names: Iterable[str], changes: Iterable[Mapping[str, Any]], *, gpu: str, dtype: str = "bfloat16", tiny: bool = False
) -> pd.DataFrame:
    """Projected seconds per image of each model for each change of its request: fields of a `mmchar.Request`.

    Columns: ``model``, ``case`` (the model, guided or not), ``batch``, ``steps``, ``value`` (s/image), ``gpu``,
    ``time_kind``. Raises a ValueError for a field or a value that a model does not take.
    """
    rows = []
    for name, change in product(names, list(changes)):
        table = count(name, Request(**change), dtype=dtype, tiny=tiny)
        asked, timed = table.attrs["request"], project(table, gpu=gpu, attention="flash")
        case = f"{name}, {'guided' if asked.get('guidance', 1) > 1 else 'not guided'}"
        rows.append((name, case, asked["batch"], asked["steps"], per_unit_s(timed)))
    columns = ["model", "case", "batch", "steps", "value"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates().assign(gpu=gpu, time_kind="projected")
