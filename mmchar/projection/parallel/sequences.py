"""One sequence on several GPUs, as in xDiT: each holds a share of the denoiser's tokens and all of its weights.

Ulysses turns shares of tokens into shares of heads around each attention core; a ring passes keys and values on while
it attends.

**Source**: DeepSpeed-Ulysses, arXiv 2309.14509, section 3.3; Ring Attention, arXiv 2310.01889; USP, arXiv 2405.07719,
and its code (yunchang: ``comm/all_to_all.py``, ``ring/utils.py``); xDiT, arXiv 2411.01738, and its code
(``long_ctx_attention``: how text tokens join).
"""

import numpy as np
import pandas as pd

from mmchar.projection.communication import extra_rows, message_rows
from mmchar.projection.parallel.linear_attention import linear_products, share_linear
from mmchar.projection.parallel.token_parts import attends, must_divide, token_bytes, with_lengths
from mmchar.tracing.attention import item_bytes

_SHRINKING = ("flop", "read_bytes", "write_bytes", "mask_bytes", "live_bytes")


def share_sequence(
    rows: pd.DataFrame,
    image: pd.DataFrame,
    text: pd.DataFrame | None,
    *,
    ulysses: int,
    ring: int,
    sides: tuple[int, int],
) -> pd.DataFrame:
    """Rows of one denoising stage as one of the GPUs that share its sequence runs them.

    Text tokens that attend together with the image are shared as well where the GPUs divide them, as xDiT does, and
    are otherwise on every GPU whole. ``image`` and ``text`` are the parts of the rows that grow with the image and with
    the prompt, see `token_parts`; ``sides`` are height and width of the image in pixels.
    """
    many = ulysses * ring
    over_image = attends(rows) & (image["q_len"] > 0)
    full = over_image & (image["kv_len"] > 0)
    linear = bool(linear_products(rows, image).any())
    if not linear:
        _check(rows, full, image["q_len"], ulysses, ring)
    joint_text = (rows["q_len"] - image["q_len"]).where(full, 0)
    grows = text is not None and bool((text["q_len"][full & (joint_text > 0)] > 0).all())  # not an empty prompt's
    splits = grows and joint_text.max() > 0 and (joint_text % many == 0).all()
    out = rows.copy()
    for column in _SHRINKING:
        part = image[column] + text[column] if text is not None and splits else image[column]
        part = np.minimum(part, rows[column])
        out[column] = rows[column] - part + -(-part // many)
    crossed = over_image & ~full  # queries of the image, keys of the text, which every GPU has
    out = with_lengths(out, rows[crossed], q_len=rows["q_len"][crossed] // many)
    if linear:
        return share_linear(out, rows, image, ulysses=ulysses, ring=ring, sides=sides)
    return _share_cores(out, rows[full], joint_text[full] * int(not splits), ulysses, ring)


def _share_cores(out: pd.DataFrame, cores: pd.DataFrame, whole_text: pd.Series, u: int, ring: int) -> pd.DataFrame:
    """The cores of self and joint attention over heads / U, in R steps of a ring, with what is sent around them.

    ``whole_text`` tokens are on every GPU: their queries go through the all-to-all with the image's, so that each
    core sees them U times, while their keys join one step of the ring (xDiT's ``joint_strategy``).
    """
    width = token_bytes(cores)
    shared = cores["q_len"] - whole_text
    heads = cores["heads"] // u
    q_len, kv_len = shared // ring + u * whole_text, shared // ring
    parts = [with_lengths(out, cores, q_len=q_len, kv_len=kv_len + whole_text, heads=heads)]
    local = shared // (u * ring)  # [b, tokens / N, h, d] before the all-to-all
    if u > 1:
        q_and_out, k_and_v = 2 * (local + whole_text) * width, 2 * local * width
        sent = (q_and_out + k_and_v) * (u - 1) // u
        parts.append(message_rows(cores, "all_to_all", messages=4, sent_bytes=sent, peers=u - 1))
        # before and after each, the tensor is laid out anew: [b, t, h, d] -> [u, t, b, h / u, d]
        parts.append(
            extra_rows(cores, "clone", "Data movement", calls=8 * cores["calls"], moved=2 * (q_and_out + k_and_v))
        )
    if ring > 1:
        later = with_lengths(cores, cores, q_len=q_len, kv_len=kv_len, heads=heads, times=ring - 1)
        parts.append(later.assign(live_bytes=0))
        sent = 2 * kv_len * width // u * (ring - 1)
        parts.append(message_rows(cores, "send_recv", messages=ring - 1, sent_bytes=sent, overlap="attention"))
        parts += _merge_rows(cores, q_len * width // u, ring)
    return pd.concat(parts).sort_index(kind="stable")  # each beside its module


def _merge_rows(cores: pd.DataFrame, out_bytes: pd.Series, ring: int) -> list[pd.DataFrame]:
    """What joins a ring's partial outputs by their log-sum-exp: in float32, one pointwise operator after the other.

    Per step after the first: out - block, its product with a sigmoid, and out minus that, each of two float32 tensors
    into one; and five operators on the log-sum-exp, which has no head_dim. Per step one cast to float32, once one back.
    """
    calls, merges = cores["calls"], ring - 1
    wide = out_bytes // item_bytes(cores) * 4
    steps = wide * merges
    big = extra_rows(cores, "sub", "Elementwise", calls=3 * merges * calls, moved=3 * steps)
    big = big.assign(read_bytes=2 * big["read_bytes"])
    small_bytes = 5 * steps // cores["head_dim"]
    small = extra_rows(cores, "sigmoid", "Elementwise", calls=5 * merges * calls, moved=small_bytes)
    cast = extra_rows(cores, "_to_copy", "Data movement", calls=(ring + 1) * calls, moved=out_bytes * ring + wide)
    return [big, small, cast.assign(write_bytes=wide * ring + out_bytes)]


def _check(rows: pd.DataFrame, full: pd.Series, tokens: pd.Series, ulysses: int, ring: int) -> None:
    stage = rows["stage"].iloc[0]
    if tokens[full].nunique() != 1:
        raise ValueError(f"stage {stage!r} does not attend over the image as one sequence; share it with patch")
    if rows["attention"].isin(("temporal", "spatial")).any():
        raise ValueError(f"stage {stage!r} attends over space and time apart; its sequence cannot be shared as one")
    must_divide(f"ulysses={ulysses}", ulysses, rows["heads"][full], f"heads of stage {stage!r}")
    many = ulysses * ring
    must_divide(f"ulysses x ring = {many}", many, tokens[full], f"image tokens of stage {stage!r}")
