"""Several GPUs on one image, each with what its neighbours had a step ago: DistriFusion and PipeFusion.

Neighbouring denoising steps are alike, so a GPU may use other patches' activations of the step before and need not
wait for those of this one. Messages then hide behind the whole step. The first steps wait, to have something to use.
"""

import re

import numpy as np
import pandas as pd

from mmchar.projection.communication import message_rows
from mmchar.projection.parallel.token_parts import attends, must_divide, token_bytes, with_lengths
from mmchar.tracing.attention import item_bytes

SYNCHRONOUS_PATCH_STEPS = 4  # DistriFusion, arXiv 2402.19481, section 5.1: warm-up steps with synchronous messages
SYNCHRONOUS_PIPE_STEPS = 1  # xDiT's default of warmup_steps for PipeFusion
_BLOCK = re.compile(r"^(\w+\.\d+)(\.|$)")
_BYTES = ["read_bytes", "write_bytes", "mask_bytes", "live_bytes"]


def displaced_patches(
    rows: pd.DataFrame, image: pd.DataFrame, text: pd.DataFrame | None, many: int, sides: tuple[int, int]
) -> pd.DataFrame:
    """Rows of one denoising stage on one of ``many`` GPUs, each with a strip of the image (DistriFusion).

    A GPU sends, to all others, the keys and values of its strip and its part of each group norm's statistics, and to
    its neighbours the edge rows that convolutions reach over.

    **Source**: DistriFusion, arXiv 2402.19481, section 4 (displaced patch parallelism, sparse operations).
    """
    over_image = attends(rows) & (image["q_len"] > 0)
    must_divide(f"patch={many}", many, image["q_len"][over_image], f"image tokens of {rows['stage'].iloc[0]!r}")
    out = rows.copy()
    for column in ["flop", *_BYTES]:
        out[column] = rows[column] - image[column] + -(-image[column] // many)
    fewer = (rows["q_len"] - image["q_len"] + image["q_len"] // many)[over_image]
    out = with_lengths(out, rows[over_image], q_len=fewer)
    full = over_image & (image["kv_len"] > 0)
    cores = rows[full]
    # k and v of one strip to each of the others
    parts = [_gather(cores, 2 * image["kv_len"][full] // many * token_bytes(cores), many)]
    norms = rows["op"] == "native_group_norm"
    statistics = (rows["write_bytes"] - image["write_bytes"])[norms]  # what a group norm writes besides the image
    parts.append(_gather(rows[norms], statistics, many))
    halo = _halo_bytes(rows, image, sides)
    reach = rows[halo > 0]
    parts.append(message_rows(reach, "send_recv", messages=1, sent_bytes=halo[halo > 0], peers=2, overlap="stage"))
    step = pd.concat([out, *parts], ignore_index=True)
    return _with_warm_up(step.assign(overlap="none"), step, SYNCHRONOUS_PATCH_STEPS)


def pipeline(rows: pd.DataFrame, image: pd.DataFrame, text: pd.DataFrame | None, many: int) -> pd.DataFrame:
    """Rows of one denoising stage on one of ``many`` GPUs, each with a share of the layers (PipeFusion).

    The image goes through in as many patches as there are GPUs; a patch attends to the others' keys and values of the
    step before. Weights are read once per patch. The GPU shown holds the contiguous blocks with most FLOPs (where the
    GPUs do not divide the blocks, some hold one more). In the synchronous first step one GPU works after the other,
    so the rows of that step are those of all blocks: the time a GPU waits, not what it does.

    **Source**: PipeFusion, arXiv 2405.14430, section 4; xDiT's ``num_pipeline_patch`` (the number of GPUs by default).
    """
    over_image = attends(rows) & (image["q_len"] > 0)
    full = over_image & (image["kv_len"] > 0)
    stage, tokens = rows["stage"].iloc[0], image["q_len"][full]
    if tokens.nunique() != 1:
        raise ValueError(f"pipefusion={many}: stage {stage!r} is no chain of equal blocks; use patch for a U-Net")
    must_divide(f"pipefusion={many}", many, tokens, f"image tokens of stage {stage!r}")
    mine = _heaviest_share(rows, many)
    once = image[["flop", *_BYTES]] + (0 if text is None else text[["flop", *_BYTES]])
    out = rows.assign(calls=rows["calls"] * many)
    for column in ("flop", "read_bytes", "write_bytes", "mask_bytes"):
        part = np.minimum(once[column], rows[column])
        out[column] = part + (rows[column] - part) * many
    out = with_lengths(out, rows[over_image], q_len=rows["q_len"][over_image] // many, times=many)
    first = rows[full].iloc[[0]]
    hidden = first["batch"] * first["q_len"] * first["heads"] * first["head_dim"] * item_bytes(first)
    first = first.assign(module="", module_type="", calls=1)
    sent = message_rows(first, "send_recv", messages=many, sent_bytes=hidden, overlap="stage")
    waited = message_rows(first, "send_recv", messages=many - 1, sent_bytes=hidden * (many - 1))
    steady = pd.concat([out[mine], sent], ignore_index=True)
    return _with_warm_up(pd.concat([rows, waited], ignore_index=True), steady, SYNCHRONOUS_PIPE_STEPS)


def _with_warm_up(warm: pd.DataFrame, steady: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The first steps' rows, then those of the rest."""
    repeats = int(steady["repeats"].iloc[0])
    steps = min(steps, repeats)
    parts = [warm.assign(step=0, repeats=steps), steady.assign(step=steps, repeats=repeats - steps)]
    return pd.concat(parts[: 1 + (repeats > steps)], ignore_index=True)


def _gather(sites: pd.DataFrame, own_bytes: pd.Series, many: int) -> pd.DataFrame:
    """An all-gather beside each site: a GPU's own bytes go to all the others, and theirs come in."""
    return message_rows(
        sites, "all_gather", messages=1, sent_bytes=own_bytes * (many - 1), peers=many - 1, overlap="stage"
    )


def _halo_bytes(rows: pd.DataFrame, image: pd.DataFrame, sides: tuple[int, int]) -> pd.Series:
    """Bytes of the edge rows, above and below its strip, that a GPU sends for each convolution of kernel size 3.

    Kernel and height follow from what the row holds: ``[b, i, h, w] -> [b, o, h / s, w / s]`` with ``k x k`` weights.
    """
    conv = (rows["op"] == "convolution") & (image["write_bytes"] > 0)
    out = pd.Series(0, index=rows.index)
    if not conv.any():
        return out
    batch = int(rows["batch"].max())
    each = item_bytes(rows[conv]) * rows["calls"][conv]
    written, read = image["write_bytes"][conv] / each, image["read_bytes"][conv] / each
    reach = rows["flop"][conv] / (2 * written * rows["calls"][conv])  # i * k * k
    weights = (rows["read_bytes"] - image["read_bytes"])[conv] / each
    with_bias = weights % (reach + 1) == 0
    channels = weights / np.where(with_bias, reach + 1, reach)  # o
    pixels = written / channels  # b * h * w / s^2
    ratio = reach * pixels / read  # (k / s)^2
    stride = np.where(ratio == 2.25, 2, 1)
    height = np.rint(np.sqrt(pixels / batch * sides[0] / sides[1])) * stride
    out[conv] = np.where(ratio.isin((9, 2.25)), 2 * image["read_bytes"][conv] // height, 0).astype("int64")
    return out


def _heaviest_share(rows: pd.DataFrame, many: int) -> pd.Series:
    """Rows of the share of blocks, of ceil(blocks / many), that has most FLOPs; and those of no block."""
    block = rows["module"].astype(str).str.extract(_BLOCK)[0]
    names = list(dict.fromkeys(block.dropna()))
    size = -(-len(names) // many)
    if len(names) < many:
        raise ValueError(f"pipefusion={many} is more than the {len(names)} blocks of {rows['stage'].iloc[0]!r}")
    flop = rows["flop"].groupby(block).sum()
    shares = [names[start : start + size] for start in range(0, len(names), size)]
    heaviest = max(shares, key=lambda share: int(flop[share].sum()))
    return block.isna() | block.isin(heaviest)
