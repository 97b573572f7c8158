"""Sequence lengths of every attention of a generation: from configurations and sizes alone, and as seen in a run.

The closed forms know a component's class, its configuration and what a stage calls it with, nothing else: not what it
did. They are the second route to the lengths of the operator table, and tests hold the two equal.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mmchar.counting import closed_forms, diffusion_forms, language_forms, video_forms
from mmchar.counting.closed_forms import halvings
from mmchar.counting.planned_stages import stages
from mmchar.counting.stage_sizes import part_of, sizes_at
from mmchar.models.specs import ModelSpec
from mmchar.request import Request
from mmchar.tracing.attention import similarity_bytes

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

# of a component class, or of a part of a class
FORMS = closed_forms.FORMS | diffusion_forms.FORMS | video_forms.FORMS | language_forms.FORMS
COLUMNS = ("stage", "step", "repeats", "attention", "batch", "heads", "q_len", "kv_len", "head_dim", "calls")
# Parts of networks that have no attention core, whatever the class, but for those that have a form of their own.
_WITHOUT = (
    *("quant_conv", "post_quant_conv", "embed_tokens", "language_projection", "multi_modal_projector"),
    "get_image_features",  # around a vision tower that is a stage of its own
)
_FRAMES_OF_A_TOKEN = 4  # the most latent frames that one token is taken to stand for; CogVideoX1.5 has 2
# Classes that take all frames of a video as one sequence, without saying how many there are.
_IN_ONE_SEQUENCE = ("FluxTransformer2DModel", "MaskedTokenTransformer")


def closed_form(spec: ModelSpec, request: Request | None = None) -> pd.DataFrame:
    """The attentions of one generation, derived from configurations and what its stages are called with.

    Returns
    -------
    DataFrame
        One row per distinct attention, in the columns of :data:`COLUMNS`; lengths in tokens, ``calls`` per execution.
        Where a KV cache grows there is one row per step.

    Raises
    ------
    ValueError
        A request that the model cannot take; a component class or block type without a closed form.
    """
    return closed_form_of(spec, stages(spec, request))


def closed_form_of(spec: ModelSpec, plan: "Iterable[Stage]") -> pd.DataFrame:
    """The rows of `closed_form` of stages that are planned already."""
    rows = [row for stage in plan for row in _stage_rows(spec, stage)]
    return _merge(pd.DataFrame(rows, columns=list(COLUMNS)))


def seen(table: pd.DataFrame) -> pd.DataFrame:
    """The attentions of an operator table, in the rows and columns of `closed_form`."""
    rows = table.loc[table["attention"] != "", list(COLUMNS)]
    return _merge(rows.astype({"stage": str, "attention": str}))


def similarity_memory(lengths: pd.DataFrame, item_bytes: int) -> pd.Series:
    """Bytes of the similarity matrix of one call, ``(batch, heads, q_len, kv_len)`` items, for each row.

    ``lengths`` is a closed form or the attention rows of an operator table. Flash attention never writes this matrix.
    """
    size = lengths["batch"] * lengths["heads"] * lengths["q_len"] * lengths["kv_len"] * item_bytes
    return size.rename("similarity_bytes")


def level_similarity_bytes(
    height: int, width: int, *, level: int, latent_scale: int = 8, heads: int = 1, batch: int = 1, item_bytes: int = 2
) -> int:
    """Bytes of one self-attention similarity matrix at a U-Net's level (0 is the outermost), given the image in pixels.

    ``tokens = height / (scale * 2^level) * width / (scale * 2^level)`` and the matrix holds ``tokens^2`` items: for an
    image of side L that is ``(L / (scale * 2^level))^4``, i.e. O(L^4). ``latent_scale`` is 1 for pixel diffusion.
    """
    rows, columns = halvings(height // latent_scale, width // latent_scale, level + 1)[level]
    return similarity_bytes(rows * columns, rows * columns, batch=batch, heads=heads, item_bytes=item_bytes)


def series(table: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Lengths over the attention calls of a stage, in the order in which one execution makes them.

    Returns
    -------
    DataFrame
        ``step, call, module, attention, q_len, kv_len``, one row per call. ``call`` counts within a step. Steps of the
        same shapes are given once, as step 0; a stage with a growing KV cache has all its steps, and in each of them
        the calls whose lengths do not grow come first.

    Raises
    ------
    ValueError
        The table has no such stage.
    """
    if stage not in set(table["stage"]):
        raise ValueError(
            f"no stage {stage!r} in the table; choose one of {', '.join(map(str, table['stage'].unique()))}"
        )
    rows = table[(table["stage"] == stage) & (table["attention"] != "")]
    rows = rows.astype({"module": str, "attention": str})
    grows = rows["step"].max() > 0
    rows = rows.loc[rows.index.repeat(rows["calls"] * (rows["repeats"] if grows else 1))].reset_index(names="row")
    if grows:
        rows["step"] += (rows.groupby("row").cumcount() // rows["calls"]).to_numpy()
        rows = rows.sort_values("step", kind="stable", ignore_index=True)
    rows["call"] = rows.groupby("step").cumcount()
    return rows[["step", "call", "module", "attention", "q_len", "kv_len"]]


def variation(lengths: pd.DataFrame, by: Sequence[str] = ("stage", "attention")) -> pd.DataFrame:
    """How much the sequence length varies within one inference: largest over smallest, and between neighbours.

    Parameters
    ----------
    lengths : DataFrame
        A closed form or an operator table. The length of an attention is its queries'; of a causal one, its keys'
        (what the KV cache has grown to). Cross attention has no sequence length of its own and is left out.
    by : sequence of str
        What to hold apart; ``("attention",)`` looks at all stages of a generation together.

    Returns
    -------
    DataFrame
        ``by``, then ``shortest, longest`` in tokens, ``ratio = longest / shortest`` and ``neighbours``, the largest
        ratio of two lengths that are next to each other in size, e.g. of two levels of a U-Net.
    """
    rows = lengths[~lengths["attention"].isin(["", "cross"])]
    length = rows["q_len"].where(rows["attention"] != "causal", rows["kv_len"])
    keys = [rows[name].astype(str).rename(name) for name in by]
    ordered = length.groupby(keys, sort=False).agg(lambda group: sorted(set(group)))
    found = {
        "shortest": ordered.map(lambda each: each[0]),
        "longest": ordered.map(lambda each: each[-1]),
        "ratio": ordered.map(lambda each: each[-1] / each[0]),
        "neighbours": ordered.map(lambda each: max((b / a for a, b in zip(each, each[1:], strict=False)), default=1.0)),
    }
    return pd.DataFrame(found).reset_index()


def frame_shares(spec: ModelSpec, request: Request | None = None) -> pd.DataFrame:
    """Shares of the query-key pairs of a video model that lie within a frame, across frames, and with the text.

    What *temporal* means where a model has no temporal module: full 3-D attention compares each token of the video
    with all tokens of all frames, and the pairs between different frames do what temporal attention does elsewhere.
    There are two readings. ``same_frame``, ``cross_frame`` and ``text`` are shares of all pairs, ``text`` being those
    with a text token as query or key, in one sequence with the video or in a cross attention beside it.
    ``same_frame_of_video`` and ``cross_frame_of_video`` are shares of the video's own pairs; with full 3-D attention
    they are ``1 / frames`` and ``1 - 1 / frames``.

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

    Raises
    ------
    ValueError
        A model that makes no video; a request that it cannot take.
    """
    full = spec.resolve(request)
    if not full.frames:
        raise ValueError(f"{spec.name} makes no video; choose a model whose request has frames ('mmchar models')")
    plan = stages(spec, full)
    form, found = closed_form_of(spec, plan), []
    for stage in plan:
        rows = form[form["stage"] == stage.name]
        if "temporal" in set(rows["attention"]):
            found.append({"stage": stage.name, "how": "factorized", **_factorized(rows)})
        elif not stage.name.startswith(("encode", "decode")) and (layout := _frame_layout(spec, full, stage)):
            found.append({"stage": stage.name, "how": "full 3-D", **_full_3d(rows, *layout)})
    if not found:
        raise ValueError(f"{spec.name}: no stage attends to several frames; choose another video model")
    table = pd.DataFrame(found)
    video = table["same_frame"] + table["cross_frame"]
    table["same_frame_of_video"] = table["same_frame"] / video
    return table.assign(cross_frame_of_video=table["cross_frame"] / video)


def _pairs(rows: pd.DataFrame) -> int:
    """Query-key pairs of one execution, of all heads and layers."""
    return int((rows["batch"] * rows["heads"] * rows["q_len"] * rows["kv_len"] * rows["calls"]).sum())


def _factorized(rows: pd.DataFrame) -> dict[str, float]:
    spatial, temporal, cross = (rows[rows["attention"] == kind] for kind in ("spatial", "temporal", "cross"))
    pairs = _pairs(spatial) + _pairs(temporal) + _pairs(cross)
    return {
        "frames": int(temporal["q_len"].max()),
        "tokens_per_frame": int(spatial["q_len"].max()),
        "text_tokens": 0 if cross.empty else int(cross["kv_len"].max()),
        "pairs": pairs,
        "same_frame": _pairs(spatial) / pairs,
        "cross_frame": _pairs(temporal) / pairs,
        "text": _pairs(cross) / pairs,
    }


def _full_3d(rows: pd.DataFrame, frames: int, per_frame: int) -> dict[str, float]:
    """Of the attentions whose queries are the video's; refiners and pooling of the text alone are not among them."""
    rows = rows[rows["q_len"] == rows["q_len"].max()]
    cross, whole = rows["attention"] == "cross", int(rows["q_len"].max())
    one_frame = _pairs(rows[~cross].assign(q_len=per_frame, kv_len=per_frame))
    pairs, same, video = _pairs(rows), frames * one_frame, frames**2 * one_frame
    return {
        "frames": frames,
        "tokens_per_frame": per_frame,
        "text_tokens": whole - frames * per_frame + int(rows.loc[cross, "kv_len"].max() if cross.any() else 0),
        "pairs": pairs,
        "same_frame": same / pairs,
        "cross_frame": (video - same) / pairs,
        "text": (pairs - video) / pairs,
    }


def _frame_layout(spec: ModelSpec, request: Request, stage: "Stage") -> tuple[int, int] | None:
    """(frames, tokens of one) of a sequence over all frames: what it grows by from frame to frame; None if it does not.

    The closed form says how, so that patches over several frames are in it.
    """
    part = spec.components[stage.component]
    sizes = sizes_at(stage, part.cls)
    if "frames" not in sizes:
        if part.cls not in _IN_ONE_SEQUENCE:
            return None
        frames = _latent_frames(spec, request)
        return frames, sizes["tokens"] // frames

    def length(frames: int) -> int:
        sites = sites_at(spec, stage, frames=frames)
        return max((site.q_len for site in sites if site.attention in ("self", "joint")), default=0)

    now = length(sizes["frames"])
    longer = (length(sizes["frames"] + more) for more in range(1, _FRAMES_OF_A_TOKEN + 1))
    per_frame = next((each - now for each in longer if each > now), 0)
    return ((now - length(0)) // per_frame, per_frame) if per_frame else None


def _latent_frames(spec: ModelSpec, request: Request) -> int:
    """Frames of the latent of a video whose autoencoder makes one of the first frame, and one of every few others."""
    names = ("temporal_compression_ratio", "temporal_patch")
    found = [part.config[name] for part in spec.components.values() for name in names if name in part.config]
    assert request.frames is not None
    return (request.frames - 1) // found[0] + 1


def form_of(cls: str, method: str) -> closed_forms.Form:
    """The closed form of a class, or of the part of it that a method like ``model.vision_tower.forward`` calls.

    Raises
    ------
    ValueError
        There is none.
    """
    part = part_of(method)
    found = FORMS.get(f"{cls}.{part}") or (closed_forms.nothing if part in _WITHOUT else FORMS.get(cls))
    if found is None:
        classes = sorted({name for name in FORMS if "." not in name})
        raise ValueError(f"no closed form for {cls}; there is one for {', '.join(classes)}")
    return found


def sites_at(spec: ModelSpec, stage: "Stage", step: int = 0, **other: int) -> list[closed_forms.Site]:
    """The attentions of one execution of a stage, by its closed form; of ``other`` sizes than it has, where given."""
    part = spec.components[stage.component]
    return list(form_of(part.cls, stage.method)(part.config, {**sizes_at(stage, part.cls, step), **other}))


def _stage_rows(spec: ModelSpec, stage: "Stage") -> Iterator[tuple]:
    runs = _runs(stage)
    first, last = sites_at(spec, stage, runs[0][0]), sites_at(spec, stage, runs[-1][0])
    for site, end in zip(first, last, strict=True):
        if site == end:
            yield stage.name, 0, stage.repeats, *site
    before = 0
    for step, many in runs if first != last else ():
        sites = zip(sites_at(spec, stage, step), first, last, strict=True)
        yield from ((stage.name, before, many, *site) for site, a, b in sites if a != b)
        before += many


def _runs(stage: "Stage") -> list[tuple[int, int]]:
    """(a step, how many are like it) of a stage, the shortest first; several texts may be decoded one after another."""
    if not stage.grows:
        return [(0, stage.repeats)]
    growth = getattr(stage, "growth", None)
    sizes = growth.dims if growth else [(step,) for step in range(stage.repeats)]
    steps = {size: step for step, size in reversed(list(enumerate(sizes)))}
    many = Counter(sizes)
    return [(steps[size], many[size]) for size in sorted(steps)]


def _merge(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the same shape in the same steps of a stage as one row, their calls added."""
    keys = list(COLUMNS[:-1])
    return rows.groupby(keys, sort=False)["calls"].sum().reset_index().astype(dict.fromkeys(COLUMNS[4:], "int64"))
