"""One generation on several GPUs: what one of them does, and what it sends to the others.

Here the ways to share are chosen and joined with the two halves of guidance; each is in a file of its own:
`sequences`, `patches`, `tensors`. Text encoders and image decoders run whole on each GPU. Rows of a denoiser shrink by
the parts of `token_parts`; conditioning and weights do not shrink.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import pandas as pd

from mmchar.projection.columns import denoising
from mmchar.projection.communication import message_rows
from mmchar.projection.parallel.patches import displaced_patches, pipeline
from mmchar.projection.parallel.sequences import share_sequence
from mmchar.projection.parallel.tensors import split_weights
from mmchar.projection.parallel.token_parts import Count, image_part, text_part
from mmchar.request import Request, from_mapping

if TYPE_CHECKING:
    from mmchar.models.specs import ModelSpec

_LEAST_HALF = 0.5  # of the work with a prompt, what denoising without one must be to be the other half
Share = Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame | None], pd.DataFrame]  # of a stage's rows, image, text


@dataclass(frozen=True)
class Degrees:
    """How many GPUs share what.

    - ``gpus``: how many in all; the product of the degrees below, which is what it is if it is not given.
    - ``ulysses``: GPUs that share the tokens of a sequence, around attention by heads.
    - ``ring``: GPUs that share the tokens of a sequence, passing keys on.
    - ``cfg``: 2 runs the two halves of classifier-free guidance at the same time.
    - ``tensor``: GPUs that share each layer's weights (language models; Megatron).
    - ``pipefusion``: GPUs that share the layers of the denoiser, patches of the image in a pipeline (PipeFusion).
    - ``patch``: GPUs that share the image, with neighbours' activations of the step before (DistriFusion).
    """

    gpus: int | None = None
    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    tensor: int = 1
    pipefusion: int = 1
    patch: int = 1

    def __post_init__(self) -> None:
        degrees = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in degrees.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number of 1 or more")
        degrees.pop("gpus", None)
        product = prod(degrees.values())
        if self.gpus is None:
            object.__setattr__(self, "gpus", product)
        elif self.gpus != product:
            given = " x ".join(f"{name} {value}" for name, value in degrees.items() if value > 1)
            given = given or "no degree above 1"
            raise ValueError(
                f"gpus={self.gpus}, but {given} makes {product}; give degrees that multiply to {self.gpus}"
            )
        if self.cfg > 2:
            raise ValueError(f"cfg={self.cfg}: guidance has two halves; give 1 or 2")
        shared = [name for name in ("tensor", "pipefusion", "patch") if degrees[name] > 1]
        shared += ["ulysses or ring"] if self.ulysses * self.ring > 1 else []
        if len(shared) > 1:
            raise ValueError(f"{' and '.join(shared)} do not go together here; only cfg combines with another")


def parallelize(
    table: pd.DataFrame,
    degrees: Degrees | None = None,
    *,
    count: Callable[[Request], pd.DataFrame] | None = None,
    spec: "ModelSpec | None" = None,
    **each: int,
) -> pd.DataFrame:
    """The table of what one of several GPUs does, with Communication rows of what it sends and receives, in bytes.

    ``parallelize(table, gpus=8, ulysses=4, ring=2)`` on a counted table with flash attention. The model's description
    and the ``count`` of its other requests are by default the zoo's.

    Returns
    -------
    DataFrame
        The columns of the operator table; ``overlap``, what a message may hide behind: ``none``, ``attention`` (of the
        same module) or ``stage``; and ``peers``, the GPUs that it goes to at once.
        ``attrs`` holds ``gpus`` and ``params``, those of one GPU.
    """
    degrees = degrees or Degrees(**each)
    if spec is None or count is None:
        spec, count = _the_tables_own(table)
    plain = _plain(table)
    request = spec.resolve(from_mapping(table.attrs["request"]))
    params = dict(table.attrs["params"])
    if degrees.tensor > 1:
        plain, params = split_weights(plain, degrees.tensor, params)
    if degrees.cfg > 1:
        plain, request = _one_half_of_guidance(plain, spec, request, count)
    if share := _share(degrees, request):
        plain = _by_stage(plain, spec, request, count, share)
    if degrees.pipefusion > 1:
        shared = set(plain["component"][denoising(plain)].astype(str))
        params = {name: -(-n // degrees.pipefusion) if name in shared else n for name, n in params.items()}
    if degrees.cfg > 1:
        plain = _exchange_predictions(plain)
    categories = dict.fromkeys(("op", "category", "attention", "overlap"), "category")
    out = plain.reset_index(drop=True).astype({**categories, "backend": str})
    above_one = {name: value for name, value in vars(degrees).items() if value != 1}
    out.attrs = {**table.attrs, "params": params, "gpus": degrees.gpus, "degrees": above_one}
    return out


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with room for messages: what they do not say, and text columns that take any value."""
    texts = dict.fromkeys(("op", "category", "attention", "backend"), object)
    out = table.astype(texts).assign(overlap="none", peers=0)
    out.attrs = {}  # pandas copies them, deeply, with every step
    return out


def _share(degrees: Degrees, request: Request) -> Share | None:
    """How one GPU's share of a denoising stage is made; None where none is shared."""
    sides = (request.height, request.width)
    if degrees.ulysses * degrees.ring > 1:
        return partial(share_sequence, ulysses=degrees.ulysses, ring=degrees.ring, sides=sides)
    if degrees.patch > 1:
        return partial(displaced_patches, many=degrees.patch, sides=sides)
    return partial(pipeline, many=degrees.pipefusion) if degrees.pipefusion > 1 else None


def _with_denoising(table: pd.DataFrame, *rows: pd.DataFrame) -> pd.DataFrame:
    """The table with other rows in the place of its denoising stages."""
    mine = denoising(table)
    before = table.index < table.index[mine][0]
    return pd.concat([table[before & ~mine], *rows, table[~before & ~mine]], ignore_index=True)


def _by_stage(table: pd.DataFrame, spec: "ModelSpec", request: Request, count: Count, share: Share) -> pd.DataFrame:
    """The table with each denoising stage replaced by ``share(rows, image part, text part)``."""
    mine = denoising(table)
    if not mine.any():
        raise ValueError(f"{spec.name} denoises nothing whose tokens GPUs could share; use tensor parallelism")
    names = list(dict.fromkeys(table["stage"][mine]))

    def only_denoising(other: Request) -> pd.DataFrame:
        counted = count(other).copy(deep=False)
        counted.attrs = {}
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
    return _with_denoising(table, *parts)


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
    """The table with denoising as without guidance: each GPU, or group of them, runs one of the two halves.

    The half without the prompt may be a little less work, where the prompt is not padded; its GPU waits for the other.
    """
    if not request.guided:
        raise ValueError(f"cfg=2 needs guidance above 1; {spec.name} runs with {request.guidance}")
    alone = Request(**request.given() | {"guidance": 1.0})
    half = count(alone)
    half, mine = half[denoising(half)], denoising(table)
    both, one = (int((part["flop"] * part["repeats"]).sum()) for part in (table[mine], half))
    if not mine.any() or not _LEAST_HALF * one <= both - one <= one:
        raise ValueError(f"cfg=2: guidance of {spec.name} is not two halves")
    return _with_denoising(table, _plain(half)), alone


def _exchange_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what the two halves of guidance send each other after each step: what the denoiser predicts.

    A prediction has the size of what the last product or convolution of the stage wrote.
    """
    products = denoising(table) & table["category"].isin(("Linear", "Convolution"))
    last = table[products].groupby(["stage", "step"], observed=True, sort=False).tail(1).assign(calls=1)
    sent = message_rows(last, "all_gather", messages=1, sent_bytes=last["write_bytes"])
    return pd.concat([table, sent], ignore_index=True)


def _the_tables_own(table: pd.DataFrame) -> tuple["ModelSpec", Count]:
    from mmchar.counting.operator_table import count
    from mmchar.models.loading import get_spec

    asked = table.attrs
    spec = get_spec(asked["model"], tiny=asked["tiny"])
    return spec, lambda request: count(asked["model"], request, dtype=asked["dtype"], tiny=asked["tiny"])
