"""Attention: its kinds, the backends that compute it, and what each backend reads and writes.

Sources: FlashAttention, arXiv 2205.14135, Algorithm 0 (standard attention) and Algorithm 1 (flash); PyTorch's
documentation of ``scaled_dot_product_attention`` (no flash kernel with a mask).
"""

import re
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from math import prod

import numpy as np
import pandas as pd

BACKENDS = ("flash", "eager")
FLASH_MAX_HEAD_DIM = 256  # flash-attention README, "head dimensions up to 256"
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

_TEMPORAL = re.compile(r"temp|motion|(^|\.)transformer_in(\.|$)")
_CROSS = re.compile(r"attn2|cross_?attn|cross_?attention|encoder_attn|EncDecAttention")
_SELF = re.compile(r"attn1|self_?attn|SelfAttention|spatial")


def item_bytes(rows: pd.DataFrame) -> pd.Series:
    """Bytes of one number of each row's numeric type."""
    return rows["dtype"].astype(str).map(ITEM_BYTES).astype("int64")


def attention_flop(
    q_len: int, kv_len: int, *, batch: int, heads: int, head_dim: int, value_dim: int | None = None
) -> int:
    """FLOP of one attention core, softmax(Q K^T) V, counted in full also where a causal mask applies.

    ``[b, h, q, d] @ [b, h, d, k]`` and ``[b, h, q, k] @ [b, h, k, dv]``: 2 FLOP per multiply-add.
    """
    return 2 * batch * heads * q_len * kv_len * (head_dim + (head_dim if value_dim is None else value_dim))


def core_sizes(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> tuple[int, int, int, int, int]:
    """``(batch, heads, q_len, kv_len, head_dim)`` of an attention core on ``(…, heads, tokens, head_dim)`` each.

    A batch or heads of 1 serve all of the other's, on either side, as in torch's own attention; of key heads that are
    shared by groups of query heads, the queries' count. Without a dimension for heads there is one.
    """
    outer = [max(sizes) for sizes in zip_longest(q[-3::-1], k[-3::-1], v[-3::-1], fillvalue=1)]  # heads first
    heads = outer.pop(0) if max(len(q), len(k)) > 3 else 1
    return prod(outer), heads, q[-2], k[-2], q[-1]


def similarity_bytes(q_len: int, kv_len: int, *, batch: int, heads: int, item_bytes: int) -> int:
    """Bytes of the similarity matrix S = Q K^T, ``(batch, heads, q_len, kv_len)``, which flash never writes.

    For an image of side L a U-Net's self attention has q_len = kv_len ~ L^2, hence O(L^4).
    """
    return batch * heads * q_len * kv_len * item_bytes


def kernels_per_call(backend: str, has_mask: bool) -> int:
    """Kernel launches of one attention core: one if fused; matmul, softmax, matmul (and the mask's add) if not."""
    if backend in ("eager", "math"):
        return 4 if has_mask else 3
    return 1


def flash_eligible(*, has_mask: bool, head_dim: int) -> bool:
    """Whether a flash kernel can serve the call; with a mask PyTorch falls to its memory-efficient kernel."""
    return not has_mask and head_dim <= FLASH_MAX_HEAD_DIM


def attention_kind(
    module: str, *, q_len: int, kv_len: int, causal: bool = False, joint: bool = False, cross: bool | None = None
) -> str:
    """Kind of one attention call, from what it attends to, else by its module's path, checked against its shapes.

    ``joint`` says that the keys hold image and text tokens together (see `token_sources`). ``cross`` says whether the
    keys come from elsewhere, where that is known, and overrides the name: a second ``attn2`` that looks at its own
    tokens is self attention. Where name and shapes disagree (a self attention with q_len < kv_len, of a decoder) the
    shapes decide, with a warning.
    """
    if joint:
        kind = "joint"
    elif cross:
        kind = "cross"
    elif _TEMPORAL.search(module):
        kind = "temporal"
    elif cross is None and _CROSS.search(module):
        kind = "cross"
    elif causal:
        kind = "causal"
    elif _SELF.search(module):
        kind = "self"
    else:
        kind = "self" if q_len == kv_len else "cross"
    fits = {"causal": q_len <= kv_len, "joint": q_len <= kv_len, "cross": True}.get(kind, q_len == kv_len)
    if fits:
        return kind
    seen = "causal" if q_len < kv_len else "cross"
    warnings.warn(
        f"attention in {module!r} is {kind} by its name, but q_len={q_len} and kv_len={kv_len} say {seen}", stacklevel=2
    )
    return seen


def use_backend(table: pd.DataFrame, backend: str) -> pd.DataFrame:
    """The table with its attention rows computed by ``"flash"`` or ``"eager"``: backend, bytes and live memory.

    Flash rows that are not eligible (masked, or head_dim above 256) are named ``mem-efficient``: fused all the same.
    FLOPs do not change. Applying it twice, or back and forth, is safe.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    out = pd.DataFrame(table)  # without attrs, which pandas would copy, deeply, with every column
    core = ((out["category"] == "Attention") & (out["q_len"] > 0)).to_numpy()
    names = out["backend"].astype(str)
    rows = out[core]
    masked = rows["mask_bytes"] > 0
    was_eager = names[core].isin(("eager", "math"))
    turns = (backend == "eager") * 1 - was_eager * 1
    item = item_bytes(rows)
    similarity = rows["batch"] * rows["heads"] * rows["q_len"] * rows["kv_len"] * item
    # S and P = softmax(S) are written and read (Algorithm 0); adding a mask reads and writes S once more
    passes = masked.map({True: 3, False: 2}).astype("int64")
    moved, held = turns * rows["calls"] * passes * similarity, turns * 2 * similarity
    for name, more in (("read_bytes", moved), ("write_bytes", moved), ("live_bytes", held)):
        values = out[name].to_numpy().copy()
        values[core] += more.to_numpy()
        out[name] = values
    fused = np.where(masked | (rows["head_dim"] > FLASH_MAX_HEAD_DIM), "mem-efficient", "flash")
    names[core] = "eager" if backend == "eager" else fused
    out["backend"] = names
    out.attrs = table.attrs
    return out
