"""Linear attention (SANA) on several GPUs that share a sequence, as xDiT runs it.

Ulysses turns shares of tokens into shares of heads around it, as for any attention; what comes back is in float32. A
ring passes keys and values on, although the products of one share, ``v k^T`` of ``head_dim + 1`` by ``head_dim``, would
do: in each step a GPU multiplies the keys and values that it holds, applies the product to its own queries, and adds
up. So a ring saves none of the products. The last GPU of the ring computes in all steps, the others wait for it.
Messages are longer than the products that could hide them, so they count in full.

Convolutions of a mix feed-forward reach over the edge of a share; neighbours send each other a row of tokens (assumed,
as in DistriFusion).

**Source**: SANA, arXiv 2410.10629, section 2.3; xDiT, ``core/long_ctx_attention``: ``ring/ring_flash_attn.py``
(``xdit_sana_ring_flash_attn_forward``) and ``hybrid/attn_layer.py`` (``xFuserSanaLinearLongContextAttention``).
"""

import numpy as np
import pandas as pd

from mmchar.projection.communication import extra_rows, message_rows
from mmchar.projection.parallel.token_parts import attends, must_divide
from mmchar.tracing.attention import ITEM_BYTES, item_bytes

_WIDE = ITEM_BYTES["float32"]  # bytes of a number in the products and of what they give


def linear_products(rows: pd.DataFrame, image: pd.DataFrame) -> pd.Series:
    """Which rows are the products of linear attention over the image: ``[v 1]^T k``, and that by q.

    Both have ``batch x heads x (head_dim + 1)`` rows, tokens on one side and ``head_dim`` on the other; written-out
    softmax attention has as many rows as there are tokens.
    """
    products = (rows["category"] == "Attention") & (rows["op"] == "bmm") & (image["flop"] > 0)
    tokens, depth = rows[["n", "k"]].max(axis=1), rows[["n", "k"]].min(axis=1)
    return products & (rows["m"] % tokens.clip(lower=1) != 0) & (rows["m"] % (depth + 1) == 0)


def share_linear(
    out: pd.DataFrame, rows: pd.DataFrame, image: pd.DataFrame, *, ulysses: int, ring: int, sides: tuple[int, int]
) -> pd.DataFrame:
    """Rows of a stage whose tokens are shared already, with its linear attention and what is sent around it.

    ``sides`` are height and width of the image in pixels.
    """
    products = rows[linear_products(rows, image)]
    state, applied = products[products["k"] > products["n"]], products[products["n"] > products["k"]]
    depth, tokens = state["n"], state["k"]
    batch = rows.groupby("model", observed=True)["batch"].transform("max")[state.index]
    heads = state["m"] // (depth + 1) // batch
    must_divide(f"ulysses={ulysses}", ulysses, heads, f"heads of stage {rows['stage'].iloc[0]!r}")
    must_divide(f"ulysses x ring = {ulysses * ring}", ulysses * ring, tokens, "image tokens")
    each = int(item_bytes(rows[attends(rows)]).max())
    local = state["calls"] * batch * heads * depth * (tokens // (ulysses * ring)) * each  # bytes of one GPU's keys
    parts = [_products(out, state, applied, ulysses, ring), _edges(rows, image, int(tokens.max()), sides)]
    if ulysses > 1:
        moved = 3 * local + local // each * _WIDE
        sent = moved * (ulysses - 1) // ulysses
        parts.append(message_rows(state, "all_to_all", messages=4, sent_bytes=sent, peers=ulysses - 1))
        parts.append(extra_rows(state, "clone", "Data movement", calls=8 * state["calls"], moved=2 * moved))
    if ring > 1:
        passed = local + local * (depth + 1) // depth  # keys, and values with a column of ones
        parts.append(message_rows(state, "send_recv", messages=2 * (ring - 1), sent_bytes=passed * (ring - 1)))
        parts += _later_steps(state, applied, passed, each, ulysses, ring)
    return pd.concat(parts).sort_index(kind="stable")


def _products(out: pd.DataFrame, state: pd.DataFrame, applied: pd.DataFrame, ulysses: int, ring: int) -> pd.DataFrame:
    """The products over a share of the heads, in as many parts as the ring has steps."""
    out = out.copy()
    for rows, tokens in ((state, "k"), (applied, "n")):
        for column in ("flop", "read_bytes", "write_bytes"):
            out.loc[rows.index, column] = rows[column] // ulysses
        out.loc[rows.index, "calls"] = rows["calls"] * ring
        out.loc[rows.index, tokens] = rows[tokens] // ring
    return out


def _later_steps(
    state: pd.DataFrame, applied: pd.DataFrame, passed: pd.Series, each: int, ulysses: int, ring: int
) -> list[pd.DataFrame]:
    """Casts to float32 of the keys and values that come in, and the sum of what the steps give."""
    later = ring - 1
    cast = extra_rows(state, "_to_copy", "Data movement", calls=2 * later * state["calls"], moved=later * passed)
    given = applied["write_bytes"] // (ulysses * ring) * later
    added = extra_rows(applied, "add", "Elementwise", calls=later * applied["calls"], moved=given)
    return [cast.assign(write_bytes=cast["write_bytes"] // each * _WIDE), added.assign(read_bytes=2 * given)]


def _edges(rows: pd.DataFrame, image: pd.DataFrame, tokens: int, sides: tuple[int, int]) -> pd.DataFrame:
    """What neighbours send for convolutions of each channel alone: a row of tokens above and one below."""
    convolutions = rows[(rows["op"] == "convolution") & (rows["n"] == 1) & (rows["k"] > 1)]
    high = max(1, round(np.sqrt(tokens * sides[0] / sides[1])))
    edge = 2 * image["read_bytes"][convolutions.index] // high
    return message_rows(convolutions, "send_recv", messages=1, sent_bytes=edge, peers=2)
