"""How a generation changes with what is asked for: image size, tokens, beams, tasks, guidance, batch and steps."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import count
from mmchar.counting.seqlen import similarity_memory
from mmchar.models.loading import get_spec
from mmchar.projection.decode_costs import is_per_token, per_token, token_rows, weight_bytes
from mmchar.projection.roofline import project
from mmchar.provenance import REFERENCE
from mmchar.request import Request
from mmchar.study.drawing.length_plots import Panels
from mmchar.study.experiments import per_unit_s
from mmchar.study.questions.still_true import parts
from mmchar.tables.totals import executions
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
_LENGTHS = REFERENCE / "lengths_by_task.csv"
ENDS = ("min", "mean", "max")


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


def lengths_by_task() -> pd.DataFrame:
    """Lengths of what the second paper's tasks (arXiv 2410.00215) read and write, as far as a source was found.

    A row for each task, data set and ``field`` of a request: ``min, mean, max`` in its ``unit``, of which
    ``units_per_one`` make one of the field. ``kind`` is ``counted`` (by us, in the data set), ``second-hand``, or ``not
    found``, where all that is blank. ``source`` says whose.
    """
    return pd.read_csv(_LENGTHS)


def task_requests(lengths: pd.DataFrame) -> pd.DataFrame:
    """The requests that lengths stand for: ``task, model, end, request`` (fields, whole numbers), ``kind``.

    ``task`` names model and data set; ``end`` is ``min``, ``mean`` or ``max``, one row for each that a source has, or
    ``zoo`` where no length was found: the model's own request.
    """
    found = []
    named = lengths.assign(dataset=lengths["dataset"].fillna(""))
    for (task, model, data), rows in named.groupby(["task", "model", "dataset"], sort=False):
        case = {"task": f"{task} {model}" + f", {data}" * bool(data), "model": model, "kind": rows["kind"].iloc[0]}
        known = rows.dropna(subset=["field"])
        ends = [end for end in ENDS if len(known) and known[end].notna().all()]
        for end in ends or ["zoo"]:
            asked = known[end] / known["units_per_one"] if ends else known["mean"][:0]
            request = {field: max(2, round(value)) for field, value in zip(known["field"], asked, strict=False)}
            found.append({**case, "end": end, "request": request})
    return pd.DataFrame(found)


def times_by_task(requests: pd.DataFrame, *, gpu: str, dtype: str = "bfloat16", tiny: bool = False) -> pd.DataFrame:
    """Projected times of requests from `task_requests`, which it adds columns to.

    ``first_s`` until the first token is known (of a model that writes none: until all is done), ``generation_s``, and
    ``decode_share`` (%), that of networks that run once per token. ``gpu``, ``time_kind``.
    """
    rows = []
    for model, request in zip(requests["model"], requests["request"], strict=True):
        timed = project(count(model, Request(**request), dtype=dtype, tiny=tiny), gpu=gpu, attention="flash")
        rows.append(_times(timed))
    said = requests["request"].map(lambda request: ", ".join(f"{name} {value}" for name, value in request.items()))
    out = requests.assign(request=said).join(pd.DataFrame(rows, index=requests.index))
    return out.assign(gpu=gpu, time_kind="projected")


def _times(timed: pd.DataFrame) -> dict[str, float]:
    stage, time_s = timed["stage"].astype(str), timed["time_s"] * timed["repeats"]
    order = [name for name in dict.fromkeys(stage) if name != "pipeline"]
    until = next((index for index, name in enumerate(order) if is_per_token(name)), len(order))
    decode_s = time_s[per_token(timed)].sum()
    return {
        "first_s": float(time_s[stage.isin(order[:until])].sum()),
        "generation_s": float(time_s.sum()),
        "decode_share": float(100 * decode_s / time_s.sum()),
    }


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
