"""One generation on several GPUs: what one of them does, and what it sends to the others.

Sequence parallelism as in xDiT: each GPU holds a share of the denoiser's tokens and all of its weights. Ulysses turns
shares of tokens into shares of heads around each attention core; a ring passes keys and values on while it attends.
Text encoders and image decoders run whole on each GPU. Rows shrink by the parts of `token_parts`; conditioning and
weights do not shrink.

**Source**: DeepSpeed-Ulysses, arXiv 2309.14509, section 3.3; Ring Attention, arXiv 2310.01889; USP, arXiv 2405.07719,
and its code (yunchang: ``comm/all_to_all.py``, ``ring/utils.py``); xDiT, arXiv 2411.01738, and its code
(``long_ctx_attention``: how text tokens join).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mmchar.attention import ITEM_BYTES
from mmchar.communication import extra_rows, message_rows
from mmchar.patch_parallel import displaced_patches, pipeline
from mmchar.request import Request, from_mapping
from mmchar.tensor_parallel import split_weights
from mmchar.token_parts import Count, image_part, text_part

if TYPE_CHECKING:
    from mmchar.models import ModelSpec

SHRINKING = ["flop", "read_bytes", "write_bytes", "mask_bytes", "live_bytes"]


@dataclass(frozen=True)
class Degrees:
    """How many GPUs share what; the degrees multiply to ``gpus``.

    Parameters
    ----------
    gpus : int, optional
        All of them; by default the product of the degrees.
    ulysses, ring : int
        GPUs that share the tokens of a sequence, around attention by heads, or passing keys on.
    cfg : int
        2: the two halves of classifier-free guidance run at the same time.
    tensor : int
        GPUs that share each layer's weights (language models; Megatron).
    pipefusion : int
        GPUs that share the layers of the denoiser, patches of the image in a pipeline (PipeFusion).
    patch : int
        GPUs that share the image, with neighbours' activations of the step before (DistriFusion).

    Raises
    ------
    ValueError
        A degree is no whole number above 0, they do not multiply to ``gpus``, or they exclude each other.
    """

    gpus: int | None = None
    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    tensor: int = 1
    pipefusion: int = 1
    patch: int = 1

    def __post_init__(self) -> None:
        product, said = 1, []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name}={value!r} is not a whole number of 1 or more")
            if field.name != "gpus":
                product *= value
                said.append(f"{field.name} {value}")
        if self.gpus is None:
            object.__setattr__(self, "gpus", product)
        elif self.gpus != product:
            given = " x ".join(part for part in said if not part.endswith(" 1")) or "no degree above 1"
            raise ValueError(
                f"gpus={self.gpus}, but {given} makes {product}; give degrees that multiply to {self.gpus}"
            )
        if self.cfg > 2:
            raise ValueError(f"cfg={self.cfg}: guidance has two halves; give 1 or 2")
        shared = [name for name in ("tensor", "pipefusion", "patch") if getattr(self, name) > 1]
        if self.ulysses * self.ring > 1:
            shared.append("ulysses or ring")
        if len(shared) > 1:
            raise ValueError(f"{' and '.join(shared)} do not go together here; only cfg combines with another")

    @property
    def sequence(self) -> int:
        """GPUs that share one sequence."""
        return self.ulysses * self.ring


def parallelize(
    table: pd.DataFrame,
    degrees: Degrees | None = None,
    *,
    count: Callable[[Request], pd.DataFrame] | None = None,
    spec: "ModelSpec | None" = None,
    **each: int,
) -> pd.DataFrame:
    """The table of what one of several GPUs does, with Communication rows of what it sends and receives, in bytes.

    Parameters
    ----------
    table : DataFrame
        A counted operator table with flash attention.
    degrees : Degrees, optional
        Or give its fields by name: ``parallelize(table, gpus=8, ulysses=4, ring=2)``.
    count : callable, optional
        Counts another request of the same model; by default `mmchar.count` on the model the table names.
    spec : ModelSpec, optional
        The model's description; by default the zoo's.

    Returns
    -------
    DataFrame
        The columns of the operator table; ``overlap``, what a message may hide behind: ``none``, ``attention`` (of the
        same module) or ``stage``; and ``peers``, the GPUs that it goes to at once.
        ``attrs`` holds ``gpus`` and ``params``, those of one GPU.

    Raises
    ------
    ValueError
        Degrees that do not multiply to ``gpus``, or do not divide heads or tokens, or do not fit the model.
    """
    degrees = degrees or Degrees(**each)
    if spec is None or count is None:
        spec, count = _the_tables_own(table)
    plain = table.assign(overlap="none", peers=0, backend=table["backend"].astype(str))
    plain = plain.astype(dict.fromkeys(("op", "category", "attention"), str))
    request = spec.resolve(from_mapping(table.attrs["request"]))
    params = dict(table.attrs["params"])
    if degrees.tensor > 1:
        plain, params = split_weights(plain, request, degrees.tensor, params)
    if degrees.cfg > 1:
        plain, request = _one_half_of_guidance(plain, spec, request, count)
    if degrees.sequence > 1:
        plain = _by_stage(
            plain, spec, request, count, lambda rows, image, text: share_sequence(rows, image, text, degrees)
        )
    if degrees.patch > 1:
        sides = (request.height, request.width)
        plain = _by_stage(
            plain,
            spec,
            request,
            count,
            lambda rows, image, text: displaced_patches(rows, image, text, degrees.patch, sides),
        )
    if degrees.pipefusion > 1:
        many = degrees.pipefusion
        plain = _by_stage(plain, spec, request, count, lambda rows, image, text: pipeline(rows, image, text, many))
        params = {name: -(-n // many) if name in denoisers(plain) else n for name, n in params.items()}
    if degrees.cfg > 1:
        plain = _exchange_predictions(plain)
    out = plain.reset_index(drop=True).astype(dict.fromkeys(("op", "category", "attention", "overlap"), "category"))
    shared = {f.name: getattr(degrees, f.name) for f in fields(degrees) if getattr(degrees, f.name) != 1}
    out.attrs = {**table.attrs, "params": params, "gpus": degrees.gpus, "degrees": shared}
    return out


def denoisers(table: pd.DataFrame) -> list[str]:
    """Components that denoise, whose work is shared."""
    stage = table["stage"].astype(str)
    return sorted(set(table["component"].astype(str)[stage.str.startswith("denoise")]))


def share_sequence(
    rows: pd.DataFrame, image: pd.DataFrame, text: pd.DataFrame | None, degrees: Degrees
) -> pd.DataFrame:
    """Rows of one denoising stage as one of the GPUs that share its sequence runs them.

    Text tokens that attend together with the image are shared as well where the GPUs divide them, as xDiT does, and
    are otherwise on every GPU whole.
    """
    many = degrees.sequence
    core = (rows["category"] == "Attention") & (rows["q_len"] > 0)
    tokens = image["q_len"].where(core, 0)
    over_image = core & (tokens > 0)
    keys = image["kv_len"].where(core, 0)
    full = over_image & (keys > 0)
    _check_sequence(rows, full, tokens, degrees)
    joint_text = (rows["q_len"] - tokens).where(full, 0)
    splits = text is not None and joint_text.max() > 0 and (joint_text % many == 0).all()
    out = rows.copy()
    for column in SHRINKING:
        part = image[column] if text is None or not splits else image[column] + text[column]
        part = np.minimum(part, rows[column])
        out[column] = rows[column] - part + -(-part // many)
    crossed = over_image & ~full  # queries of the image, keys of the text, which every GPU has
    out = _with_lengths(out, rows, crossed, rows["q_len"] // many, rows["heads"])
    return _share_cores(
        out, rows[full], tokens[full], joint_text[full] if not splits else 0 * joint_text[full], degrees
    )


def _share_cores(
    out: pd.DataFrame, cores: pd.DataFrame, tokens: pd.Series, whole_text: pd.Series, degrees: Degrees
) -> pd.DataFrame:
    """The cores of self and joint attention over heads / U, in R steps of a ring, with what is sent around them.

    ``whole_text`` tokens are on every GPU: their queries go through the all-to-all with the image's, so that each
    core sees them U times, while their keys join one step of the ring (xDiT's ``joint_strategy``).
    """
    u, ring = degrees.ulysses, degrees.ring
    item = cores["dtype"].astype(str).map(ITEM_BYTES).astype("int64")
    width = cores["batch"] * cores["heads"] * cores["head_dim"] * item * cores["calls"]  # bytes of a token, all calls
    shared = cores["q_len"] - whole_text
    heads = cores["heads"] // u
    q_len, kv_len = shared // ring + u * whole_text, shared // ring
    first = _with_lengths(out, cores, cores.index, q_len, heads, kv_len + whole_text)
    parts = [first.drop(index=cores.index), first.loc[cores.index]]
    local_q = shared // degrees.sequence + whole_text  # [b, tokens / N, h, d] before the all-to-all
    if u > 1:
        q_and_out, k_and_v = 2 * local_q * width, 2 * (shared // degrees.sequence) * width
        sent = (q_and_out + k_and_v) * (u - 1) // u
        parts.append(message_rows(cores, "all_to_all", messages=4, sent_bytes=sent, peers=u - 1))
        # before and after each, the tensor is laid out anew: [b, t, h, d] -> [u, t, b, h / u, d]
        parts.append(
            extra_rows(cores, "clone", "Data movement", calls=8 * cores["calls"], moved=2 * (q_and_out + k_and_v))
        )
    if ring > 1:
        later = _with_lengths(cores, cores, cores.index, q_len, heads, kv_len, times=ring - 1)
        parts.append(later.assign(mask_bytes=0, live_bytes=0))
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
    item = cores["dtype"].astype(str).map(ITEM_BYTES).astype("int64")
    wide = out_bytes // item * 4
    steps = wide * merges
    big = extra_rows(cores, "sub", "Elementwise", calls=3 * merges * calls, moved=3 * steps)
    big = big.assign(read_bytes=2 * big["read_bytes"])
    small_bytes = 5 * steps // cores["head_dim"]
    small = extra_rows(cores, "sigmoid", "Elementwise", calls=5 * merges * calls, moved=small_bytes)
    cast = extra_rows(cores, "_to_copy", "Data movement", calls=(ring + 1) * calls, moved=out_bytes * ring + wide)
    return [big, small, cast.assign(write_bytes=wide * ring + out_bytes)]


def _with_lengths(
    out: pd.DataFrame,
    cores: pd.DataFrame,
    where: pd.Series | pd.Index,
    q_len: pd.Series,
    heads: pd.Series,
    kv_len: pd.Series | None = None,
    times: int = 1,
) -> pd.DataFrame:
    """``out`` with other lengths in some attention rows, and the FLOPs and bytes that follow from them."""
    out, c = out.copy(), cores.loc[where]
    q, h, kv = q_len.loc[where], heads.loc[where], (c["kv_len"] if kv_len is None else kv_len.loc[where])
    item = c["dtype"].astype(str).map(ITEM_BYTES).astype("int64")
    calls = c["calls"] * times
    rows = c["batch"] * h * calls
    out.loc[where, "q_len"], out.loc[where, "kv_len"], out.loc[where, "heads"] = q, kv, h
    out.loc[where, "calls"] = calls
    pairs_were = c["batch"] * c["heads"] * c["calls"] * c["q_len"] * c["kv_len"]
    out.loc[where, "flop"] = c["flop"] // pairs_were * rows * q * kv
    mask = c["mask_bytes"] * kv // c["kv_len"]
    out.loc[where, "mask_bytes"] = mask
    out.loc[where, "read_bytes"] = rows * (q + 2 * kv) * c["head_dim"] * item + mask
    out.loc[where, "write_bytes"] = rows * q * c["head_dim"] * item
    return out


def _check_sequence(rows: pd.DataFrame, full: pd.Series, tokens: pd.Series, degrees: Degrees) -> None:
    stage = rows["stage"].iloc[0]
    if tokens[full].nunique() != 1:
        raise ValueError(f"stage {stage!r} does not attend over the image as one sequence; share it with patch")
    if rows["attention"].isin(("temporal", "spatial")).any():
        raise ValueError(f"stage {stage!r} attends over space and time apart; its sequence cannot be shared as one")
    for heads in sorted(set(rows["heads"][full])):
        if heads % degrees.ulysses:
            raise ValueError(f"ulysses={degrees.ulysses} does not divide the {heads} heads of stage {stage!r}")
    length = int(tokens[full].iloc[0])
    if length % degrees.sequence:
        many = f"ulysses x ring = {degrees.sequence}"
        raise ValueError(f"{many} does not divide the {length} image tokens of stage {stage!r}")


def _by_stage(
    table: pd.DataFrame, spec: "ModelSpec", request: Request, count: Count, share: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    """The table with each denoising stage replaced by ``share(rows, image part, text part)``."""
    mine = table["stage"].astype(str).str.startswith("denoise")
    if not mine.any():
        raise ValueError(f"{spec.name} denoises nothing whose tokens GPUs could share; use tensor parallelism")
    names = list(dict.fromkeys(table["stage"][mine]))

    def only_denoising(other: Request) -> pd.DataFrame:
        counted = count(other)
        return counted[counted["stage"].isin(names)].reset_index(drop=True)

    rows = table[mine].reset_index(drop=True)
    image = image_part(rows, spec, request, only_denoising)
    text = text_part(rows, spec, request, only_denoising) if (rows["attention"] == "joint").any() else None
    parts = []
    for name in names:
        here = rows.index[rows["stage"] == name]
        image_here = image.loc[here].reset_index(drop=True)
        text_here = None if text is None else _all_text(rows.loc[here], image.loc[here], text.loc[here])
        parts.append(share(rows.loc[here].reset_index(drop=True), image_here, text_here))
    before = table.index < table.index[mine][0]
    return pd.concat([table[before & ~mine], *parts, table[~before & ~mine]], ignore_index=True)


def _all_text(rows: pd.DataFrame, image: pd.DataFrame, text: pd.DataFrame) -> pd.DataFrame:
    """The part that grows with the prompt, scaled to all text tokens of joint attention (a second encoder's too)."""
    joint = rows.index[(rows["attention"] == "joint") & (image["q_len"] > 0)]
    if joint.empty or not (grows := int(text.loc[joint[0], "q_len"])):
        return text.reset_index(drop=True)
    seen = int(rows.loc[joint[0], "q_len"] - image.loc[joint[0], "q_len"])
    return (text * seen // grows).reset_index(drop=True)


def _one_half_of_guidance(
    table: pd.DataFrame, spec: "ModelSpec", request: Request, count: Count
) -> tuple[pd.DataFrame, Request]:
    """The table with denoising as without guidance: each GPU, or group of them, runs one of the two halves."""
    if not request.guided:
        raise ValueError(f"cfg=2 needs guidance above 1; {spec.name} runs with {request.guidance}")
    alone = replace(request, guidance=1.0)
    half = count(alone)
    half = half[half["stage"].astype(str).str.startswith("denoise")]
    mine = table["stage"].astype(str).str.startswith("denoise")
    work = [int((part["flop"] * part["repeats"]).sum()) for part in (table[mine], half)]
    if not mine.any() or work[0] != 2 * work[1]:
        raise ValueError(f"cfg=2: guidance of {spec.name} is not two equal halves")
    half = half.assign(overlap="none", peers=0).astype(dict.fromkeys(("op", "category", "attention", "backend"), str))
    before = table.index < table.index[mine][0]
    return pd.concat([table[before & ~mine], half, table[~before & ~mine]], ignore_index=True), alone


def _exchange_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what the two halves of guidance send each other after each step: what the denoiser predicts.

    A prediction has the size of what the last product or convolution of the stage wrote.
    """
    products = table["stage"].astype(str).str.startswith("denoise") & table["category"].isin(("Linear", "Convolution"))
    last = table[products].groupby(["stage", "step"], observed=True, sort=False).tail(1).assign(calls=1)
    sent = message_rows(last, "all_gather", messages=1, sent_bytes=last["write_bytes"])
    return pd.concat([table, sent], ignore_index=True)


def _the_tables_own(table: pd.DataFrame) -> tuple["ModelSpec", Count]:
    from mmchar.counting import count
    from mmchar.models import get_spec

    asked = table.attrs
    spec = get_spec(asked["model"], tiny=asked["tiny"])
    return spec, lambda request: count(asked["model"], request, dtype=asked["dtype"], tiny=asked["tiny"])
