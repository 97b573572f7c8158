"""How much of every operator row grows with the image and how much with the prompt, by counting a second size.

A row's FLOPs, bytes and lengths are a constant (weights, the embedding of the time step) plus a part that grows with
the tokens of the image and one that grows with those of the prompt. Two counts that differ in one size give the part
that grows with it, exactly and for every architecture, without knowing what its modules are called. GPUs that share a
sequence divide these parts; the rest each of them does whole.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mmchar.request import Request, from_mapping
from mmchar.tracing.attention import item_bytes

if TYPE_CHECKING:
    from mmchar.models.specs import ModelSpec

GROWING = ("flop", "read_bytes", "write_bytes", "mask_bytes", "live_bytes", "q_len", "kv_len")
_SITE = ("stage", "step", "module", "op", "attention", "dtype")
Count = Callable[[Request], pd.DataFrame]  # of another request of the same model


def image_part(table: pd.DataFrame, spec: "ModelSpec", request: Request, count: Count) -> pd.DataFrame:
    """The part of each row that grows with the image: what it loses when the image is half as high, twice over.

    ``table`` was counted for ``request``, which has all its fields set.
    """
    if request.height is None:
        raise ValueError(f"{spec.name} has no image to share among GPUs; use tensor parallelism")
    other = resized(spec, request, "height")
    if other is None:
        raise ValueError(f"{spec.name} makes images of one size only, so what grows with the image is not known")
    return _growing_part(table, count(other), size=request.height, other_size=other.height)


def text_part(table: pd.DataFrame, spec: "ModelSpec", request: Request, count: Count) -> pd.DataFrame | None:
    """The part of each row that grows with the prompt, all its tokens; None where the model fixes the prompt's length.

    Where the denoiser sees more tokens than the prompt has (those of a second encoder), the part is scaled to all of
    them; they are what joint attention holds besides the image.
    """
    if request.prompt_tokens is None:
        return None
    other = resized(spec, request, "prompt_tokens")
    if other is None:
        return None
    return _growing_part(table, count(other), size=request.prompt_tokens, other_size=other.prompt_tokens)


def same_rows(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Where in another count of the same model each row of the table stands, by its call site; -1 if nowhere.

    A row that only one of them has (a table of positions that is kept for one size) must be one without FLOPs.
    """
    if _same_sites(table, other):
        return np.arange(len(table))
    found = _sites(other).get_indexer(_sites(table))
    alone = np.setdiff1d(np.arange(len(other)), found)
    if table["flop"].to_numpy()[found < 0].any() or other["flop"].to_numpy()[alone].any():
        raise ValueError(f"two counts of {table['model'].iloc[0]} call different operators; cannot compare them")
    return found


def attends(rows: pd.DataFrame) -> pd.Series:
    """Which rows are attention cores with lengths."""
    return (rows["category"] == "Attention") & (rows["q_len"] > 0)


def must_divide(degree: str, many: int, sizes: pd.Series, what: str) -> None:
    """Raise a ValueError if ``many`` GPUs do not divide one of the sizes."""
    for size in sorted(set(sizes)):
        if size % many:
            raise ValueError(f"{degree} does not divide the {size} {what}")


def with_lengths(
    table: pd.DataFrame,
    cores: pd.DataFrame,
    *,
    q_len: pd.Series,
    kv_len: pd.Series | None = None,
    heads: pd.Series | None = None,
    times: int = 1,
) -> pd.DataFrame:
    """The table with fewer queries, keys or heads in some of its attention rows, each called ``times`` as often.

    ``cores`` are the rows to change, as they were: their index says which rows of the table they are.
    """
    kv = cores["kv_len"] if kv_len is None else kv_len
    heads = cores["heads"] if heads is None else heads
    calls = cores["calls"] * times
    pairs = cores["batch"] * cores["heads"] * cores["calls"] * cores["q_len"] * cores["kv_len"]
    many = cores["batch"] * heads * calls
    mask = cores["mask_bytes"] * kv // cores["kv_len"] * times
    width = many * cores["head_dim"] * item_bytes(cores)  # bytes of one token in all calls
    changed = {
        "q_len": q_len,
        "kv_len": kv,
        "heads": heads,
        "calls": calls,
        "flop": cores["flop"] // pairs * many * q_len * kv,
        "mask_bytes": mask,
        "read_bytes": width * (q_len + 2 * kv) + mask,
        "write_bytes": width * q_len,
    }
    out = table.copy()
    out.loc[cores.index, list(changed)] = pd.DataFrame(changed)
    return out


def token_bytes(cores: pd.DataFrame) -> pd.Series:
    """Bytes of one token's queries, keys or values in all calls of each attention row."""
    return cores["batch"] * cores["heads"] * cores["head_dim"] * cores["calls"] * item_bytes(cores)


def _growing_part(table: pd.DataFrame, other: pd.DataFrame, *, size: int, other_size: int) -> pd.DataFrame:
    """The part of each row that is proportional to a size, in the units of the columns `GROWING`.

    ``value = constant + part``, and the same rows counted at ``other_size`` hold ``constant + part * other / size``.
    Attention cores are not affine in the size; of their rows only the lengths mean anything.
    """
    columns = list(GROWING)
    found = same_rows(table, other)
    gain = table[columns].to_numpy() - other[columns].to_numpy()[found]
    gain[found < 0] = 0
    part = gain * size // (size - other_size)
    # a mask of all queries by all keys grows faster than the image; all of it belongs to the image
    return pd.DataFrame(np.clip(part, 0, table[columns].to_numpy()), columns=columns, index=table.index)


def _same_sites(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two tables have the same call sites in the same order, as two sizes of one model often do."""
    if len(table) != len(other):
        return False
    names = ((np.asarray(each[column], dtype=object) for each in (table, other)) for column in _SITE)
    return all(np.array_equal(one, two) for one, two in names)


def _sites(table: pd.DataFrame) -> pd.MultiIndex:
    """What names a row: its call site, and which of the rows of that site it is."""
    site = table[list(_SITE)].astype(str)
    return pd.MultiIndex.from_frame(site.assign(nth=site.groupby(list(_SITE), sort=False).cumcount()))


def resized(spec: "ModelSpec", request: Request, field: str) -> Request | None:
    """The request with half or twice the size, whichever the model takes."""
    size = getattr(request, field)
    for other in (size // 2, 2 * size) if size % 2 == 0 else (2 * size,):
        try:
            return spec.resolve(from_mapping({**request.given(), field: other}))
        except ValueError:
            continue
    return None
