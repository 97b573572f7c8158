"""The work of a configuration, counted once and in few rows, however many measurements are of it.

Networks repeat their blocks. Modules that do the same in every count that a configuration is made of (at other batches,
at other sizes, which say what GPUs can share) become one, with the number of them in a column ``alike``; a few hundred
rows then stand for thousands, and what follows takes that much less time.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from tqdm import tqdm

from mmchar.counting.operator_table import OUTSIDE, count
from mmchar.models.loading import get_spec
from mmchar.projection.columns import Columns, columns_of, denoising, merge_equal
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.parallel.token_parts import resized, same_rows
from mmchar.projection.roofline import prepare
from mmchar.projection.scaling import BY_BATCH, count_batch
from mmchar.projection.summary import weights_of
from mmchar.projection.uncertainty import family_of
from mmchar.request import Request
from mmchar.tables.totals import executions

WHOLE = "whole"
LOOP = "denoising loop"  # the denoiser's steps with what runs between the networks: scheduler, guidance


@dataclass(frozen=True)
class Configuration:
    """What a measurement is of, apart from the GPU; ``part`` is a stage, `LOOP` or `WHOLE`.

    ``engine``: as engines for diffusion transformers run it, see `as_engine`.
    """

    model: str
    request: Request
    degrees: Degrees = Degrees()
    dtype: str = "bfloat16"
    attention: str = "flash"
    execution: str = "eager"
    part: str = WHOLE
    engine: bool = False


@dataclass(frozen=True)
class Work:
    """What one GPU does: columns for a projection, FLOP of all GPUs, executions of the part, bytes of one GPU."""

    columns: Columns
    flop: int
    executions: int
    weight_bytes: int
    peak_bytes: int
    family: str


def works(asked: Iterable[Configuration], *, progress: bool = False) -> dict[Configuration, Work | ValueError]:
    """The work of each configuration; of one that the model or the degrees do not allow the error that says why.

    Configurations that differ in nothing but the batch are worked out together.
    """
    lots: dict[Configuration, list[Configuration]] = {}
    for each in dict.fromkeys(asked):
        alone = replace(each, request=replace(each.request, batch=1))
        lots.setdefault(alone if _by_sequence(each.degrees) else each, []).append(each)
    found: dict[Configuration, Work | ValueError] = {}
    with tqdm(total=sum(map(len, lots.values())), desc="count", unit="size", disable=not progress) as bar:
        for alone, together in lots.items():
            try:
                found |= zip(together, _works(alone, [each.request.batch or 1 for each in together]), strict=True)
            except ValueError as error:
                found |= dict.fromkeys(together, error)
            bar.update(len(together))
    return found


def _works(alone: Configuration, batches: list[int]) -> list[Work]:
    """The work of a configuration at each of the batches, in one table with a column ``lot``."""
    counted, spec = _counts(alone, batches), get_spec(alone.model)
    table = whole = counted(alone.request)
    chosen = part_rows(whole, alone.part)
    if alone.degrees.gpus != 1:
        table = parallelize(whole, alone.degrees, count=counted, spec=spec)
    weight_bytes = sum(weights_of(table).values())
    live_bytes = table.groupby("lot")["live_bytes"].max()
    table = table[part_rows(table, alone.part)].reset_index(drop=True)
    table.attrs = {"dtype": alone.dtype}  # pandas copies them, deeply, with every step
    ready = prepare(as_engine(table) if alone.engine else table, attention=alone.attention, execution=alone.execution)
    columns = columns_of(ready.assign(repeats=ready["repeats"] * ready["alike"]))
    return [
        Work(
            columns=merge_equal(_some(columns, (ready["lot"] == lot).to_numpy())),
            flop=int((own["flop"] * own["repeats"] * own["alike"]).sum()),
            executions=int(executions(own[own["stage"] != OUTSIDE]).sum()),
            weight_bytes=weight_bytes,
            peak_bytes=weight_bytes + int(live_bytes[lot]),
            family=family_of(whole, alone.part),
        )
        for lot, own in whole[chosen].groupby("lot")
    ]


def _some(columns: Columns, rows: np.ndarray) -> Columns:
    return replace(columns, **{name: value[rows] for name, value in vars(columns).items() if name != "dtypes"})


def part_rows(table: pd.DataFrame, part: str) -> pd.Series:
    """Which rows are of a part; an error names the stages that there are."""
    stage = table["stage"].astype(str)
    if part == WHOLE:
        return pd.Series(True, index=table.index)
    if part == LOOP:
        chosen = denoising(table)
        return chosen | (stage == OUTSIDE) if chosen.any() else _no_part(table, "denoise")
    chosen = stage.str.fullmatch(rf"{re.escape(part)}(_\d+)?(_variant_\d+)?")
    return chosen if chosen.any() else _no_part(table, part)


def _no_part(table: pd.DataFrame, part: str) -> pd.Series:
    stages = ", ".join(dict.fromkeys(table["stage"].astype(str)))
    raise ValueError(f"stage={part}: {table.attrs['model']} has no such stage; its stages are {stages}")


def as_engine(table: pd.DataFrame) -> pd.DataFrame:
    """The table as engines for diffusion transformers run it: attention of the denoiser without a mask.

    diffusers hides the padding of prompts by a mask, which no flash kernel takes; engines cut the padding off and call
    the kernel. Prompts are counted at their full length all the same.

    **Source**: xDiT, ``hunyuan_video_usp_example.py`` (keeps the tokens that the mask leaves, then passes no mask).
    """
    mask_bytes = table["mask_bytes"].where(denoising(table), 0)
    out = table.assign(read_bytes=table["read_bytes"] - mask_bytes, mask_bytes=table["mask_bytes"] - mask_bytes)
    out.attrs = table.attrs
    return out


def _by_sequence(degrees: Degrees) -> bool:
    """Whether nothing but sequences is shared; all else tells modules apart, so none may stand for another."""
    return degrees.ulysses * degrees.ring == degrees.gpus


def _counts(alone: Configuration, batches: list[int]) -> Callable[[Request], pd.DataFrame]:
    """How the requests that a configuration is made of are counted, at all batches."""
    if not _by_sequence(alone.degrees):
        return lambda request: count_batch(alone.model, request, dtype=alone.dtype).assign(alike=1, lot=0)
    tables = _alike(alone.model, alone.request, alone.dtype, max(batches) > 1, alone.degrees.gpus != 1)
    return lambda request: _at_batches(*tables[replace(request, batch=1)], batches)


@lru_cache(maxsize=64)
def _alike(
    model: str, request: Request, dtype: str, batched: bool, shared: bool
) -> dict[Request, tuple[pd.DataFrame, pd.DataFrame]]:
    """Tables of one and of two of a request, and of what else sharing it asks for, with alike modules as one."""
    requests, spec = [request], get_spec(model)
    one = count(model, request, dtype=dtype)
    if shared:
        joint = (one["attention"] == "joint")[denoising(one)].any()
        fields = ("height", *(["prompt_tokens"] if joint else []))
        others = [resized(spec, request, name) for name in fields if getattr(request, name) is not None]
        requests += [other for other in others if other is not None]
    batches = (1, 2) if batched else (1, 1)
    pairs = [[count(model, replace(each, batch=many), dtype=dtype) for many in batches] for each in requests]
    return dict(zip(requests, merge_alike(pairs), strict=True))


def merge_alike(pairs: list[list[pd.DataFrame]]) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Pairs of counts of one model, with one of the modules that do the same in all of them; ``alike`` says how many.

    All have the rows of the first table, matched by `same_rows`. A row that the second of a pair lacks is that of the
    first there, one that both lack is that of the first table: it does not grow.
    """
    base = pairs[0][0]
    whole = []
    for one, two in pairs:
        one = _matched(base, one)
        whole.append((one, _matched(one, two)))
    tables = [table for pair in whole for table in pair]
    numbers = [name for name in base.columns if base[name].dtype.kind == "i"]
    texts = [name for name in base.columns if base[name].dtype == "category" and name not in ("model", "module")]
    parts = [base[texts].apply(lambda column: column.cat.codes), *(table[numbers] for table in tables)]
    _, does = np.unique(np.column_stack(parts).astype("int64"), axis=0, return_inverse=True)
    module = base.groupby(["stage", "component", "module"], observed=True, sort=False).ngroup().to_numpy()
    order = np.argsort(module, kind="stable")
    ends = np.flatnonzero(np.diff(module[order])) + 1
    kinds: dict[bytes, int] = {}
    kind = [kinds.setdefault(does.ravel()[rows].tobytes(), first) for first, rows in enumerate(np.split(order, ends))]
    alike = np.bincount(kind, minlength=len(kind))[module]
    merged = iter([table.assign(alike=alike)[alike > 0].reset_index(drop=True) for table in tables])
    return list(zip(merged, merged, strict=True))


def _matched(base: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The base's rows with the numbers of another count of the model, where that has them."""
    found = same_rows(base, other)
    numbers = [name for name in base.columns if base[name].dtype.kind == "i"]
    there = (found >= 0)[:, None]
    values = np.where(there, other[numbers].to_numpy()[found], base[numbers].to_numpy())
    return base.assign(**dict(zip(numbers, values.T, strict=True)))


def _at_batches(one: pd.DataFrame, two: pd.DataFrame, batches: list[int]) -> pd.DataFrame:
    """The tables of several batches below each other, numbered in ``lot``, each as of a model of its own."""
    gain = two[BY_BATCH].to_numpy() - one[BY_BATCH].to_numpy()
    values = np.concatenate([one[BY_BATCH].to_numpy() + gain * (batch - 1) for batch in batches])
    lot = np.repeat(np.arange(len(batches)), len(one))
    out = one.iloc[np.tile(np.arange(len(one)), len(batches))].reset_index(drop=True)
    own = pd.Categorical.from_codes(lot, [f"{one.attrs['model']} {number}" for number in range(len(batches))])
    out = out.assign(lot=lot, model=own, **dict(zip(BY_BATCH, values.T, strict=True)))
    out.attrs = one.attrs
    return out
