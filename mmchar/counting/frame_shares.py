"""What *temporal* means where a video model has no temporal module: query-key pairs within and across frames."""

import pandas as pd

from mmchar.counting.closed_forms import grid
from mmchar.counting.planned_stages import stages
from mmchar.counting.seqlen import seen
from mmchar.counting.stage_sizes import Sizes, sizes_at
from mmchar.models.loading import get_spec
from mmchar.models.specs import Component, ModelSpec
from mmchar.request import Request, from_mapping

# What configurations call the frames of a video that make one of its latent.
_COMPRESSIONS = ("temporal_compression_ratio", "temporal_patch")
# Classes that take all frames of a video as one sequence, without saying how many there are.
_IN_ONE_SEQUENCE = ("FluxTransformer2DModel", "MaskedTokenTransformer")


def frame_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of the query-key pairs of a counted video that lie within a frame, across frames, and with the text.

    Full 3-D attention compares each token of the video with all tokens of all frames, and the pairs between different
    frames do what temporal attention does elsewhere. ``same_frame``, ``cross_frame`` and ``text`` are shares of all
    pairs, ``text`` being those with a text token as query or key, in one sequence with the video or in a cross
    attention beside it. ``same_frame_of_video`` and ``cross_frame_of_video`` are shares of the video's own pairs; with
    full 3-D attention they are ``1 / frames`` and ``1 - 1 / frames``.

    A factorized model has modules for both: its spatial attention is ``same_frame``, its temporal attention
    ``cross_frame`` (with the pair of each token and itself) and its cross attention ``text``, which is an image's in
    image-to-video models.

    Left out are stages that do not attend to several frames, and decoders with a sequence of all frames: they cut the
    video into tiles and hide later frames behind a mask.

    Returns
    -------
    DataFrame
        One row per stage: ``stage``; ``how``, "full 3-D" or "factorized"; ``frames``, those of the latent that tokens
        stand for (a patch may span several); ``tokens_per_frame`` (at the outermost level that attends);
        ``text_tokens``, everything in the sequence beside the video; ``pairs``, of all heads and layers in one
        execution; and the shares, which are fractions of 1.
    """
    spec = get_spec(table.attrs["model"], tiny=table.attrs["tiny"])
    request = spec.resolve(from_mapping(table.attrs["request"]))
    if not request.frames:
        raise ValueError(f"{spec.name} makes no video; choose a model whose request has frames ('mmchar models')")
    lengths, found = seen(table), []
    sizes = table.attrs.get("sizes") or _planned_sizes(spec, request)
    for stage, component in table[["stage", "component"]].drop_duplicates().astype(str).itertuples(index=False):
        rows = lengths[lengths["stage"] == stage]
        if "temporal" in set(rows["attention"]):
            found.append({"stage": stage, "how": "factorized", **_factorized(rows)})
        elif len(rows) and (layout := _layout(spec, spec.components[component], request.frames, sizes[stage], rows)):
            found.append({"stage": stage, "how": "full 3-D", **_full_3d(rows, *layout)})
    if not found:
        raise ValueError(f"{spec.name}: no stage attends to several frames; choose another video model")
    return pd.DataFrame(found)


def _planned_sizes(spec: ModelSpec, request: Request) -> dict[str, Sizes]:
    """What each stage is called with, for a table that does not say it: one that was measured."""
    return {stage.name: sizes_at(stage, spec.components[stage.component].cls) for stage in stages(spec, request)}


def _pairs(rows: pd.DataFrame) -> int:
    """Query-key pairs of one execution, of all heads and layers."""
    return int((rows["batch"] * rows["heads"] * rows["q_len"] * rows["kv_len"] * rows["calls"]).sum())


def _factorized(rows: pd.DataFrame) -> dict[str, float]:
    spatial, temporal, cross = (rows[rows["attention"] == kind] for kind in ("spatial", "temporal", "cross"))
    lengths = temporal["q_len"].max(), spatial["q_len"].max(), 0 if cross.empty else cross["kv_len"].max()
    return _shares(*lengths, same=_pairs(spatial), across=_pairs(temporal), text=_pairs(cross))


def _full_3d(rows: pd.DataFrame, frames: int, per_frame: int) -> dict[str, float]:
    """Of the attentions whose queries are the video's; refiners and pooling of the text alone are not among them."""
    whole = rows["q_len"].max()
    rows = rows[rows["q_len"] == whole]
    cross = rows[rows["attention"] == "cross"]
    text_tokens = whole - frames * per_frame + (0 if cross.empty else cross["kv_len"].max())
    one_frame = _pairs(rows.drop(cross.index).assign(q_len=per_frame, kv_len=per_frame))
    same, video = frames * one_frame, frames**2 * one_frame
    return _shares(frames, per_frame, text_tokens, same=same, across=video - same, text=_pairs(rows) - video)


def _shares(frames: int, per_frame: int, text_tokens: int, *, same: int, across: int, text: int) -> dict[str, float]:
    pairs = same + across + text
    return {
        "frames": int(frames),
        "tokens_per_frame": int(per_frame),
        "text_tokens": int(text_tokens),
        "pairs": pairs,
        "same_frame": same / pairs,
        "cross_frame": across / pairs,
        "text": text / pairs,
        "same_frame_of_video": same / (same + across),
        "cross_frame_of_video": across / (same + across),
    }


def _layout(spec: ModelSpec, part: Component, frames: int, sizes: Sizes, rows: pd.DataFrame) -> tuple[int, int] | None:
    """(frames, tokens of one) of the sequence over all frames that a network is given; None if there is none.

    An autoencoder makes one latent frame of the first, and one of every few others.
    """
    one_sequence = rows["attention"].isin(("self", "joint")).any()
    if not one_sequence or rows["stage"].iloc[0].startswith(("encode", "decode")):
        return None
    if "frames" in sizes:
        return grid(part.config, sizes)
    if part.cls not in _IN_ONE_SEQUENCE:
        return None
    every = next(
        each.config[name] for each in spec.components.values() for name in _COMPRESSIONS if name in each.config
    )
    latent = (frames - 1) // every + 1
    return latent, sizes["tokens"] // latent
