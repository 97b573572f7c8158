"""Sequence lengths of every attention of a generation: from configurations and sizes alone, and as seen in a run.

The closed forms know a component's class, its configuration and what a stage calls it with, nothing else: not what it
did. They are the second route to the lengths of the operator table, and tests hold the two equal.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from mmchar.counting import closed_forms as forms, unet_forms as unets
from mmchar.counting.planned_stages import stages
from mmchar.counting.stage_sizes import part_of, sizes_at
from mmchar.models.specs import ModelSpec
from mmchar.request import Request
from mmchar.tracing.attention import similarity_bytes

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

COLUMNS = ("stage", "step", "repeats", "attention", "batch", "heads", "q_len", "kv_len", "head_dim", "calls")

# The classes, or parts of them that are called by themselves, that each form is of.
_CLASSES: dict[forms.Form, str] = {
    forms.transformer("causal", within="text_config"): """
        LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Phi3ForCausalLM
        Olmo2ForCausalLM GraniteForCausalLM LlamaModel Qwen3Model HSTU CLIPTextModel CLIPTextModelWithProjection
        CLIPModel.get_text_features ChameleonForConditionalGeneration LlavaForConditionalGeneration
        LlavaNextForConditionalGeneration Mistral3ForConditionalGeneration Qwen2_5_VLForConditionalGeneration
        Qwen3VLForConditionalGeneration JanusForConditionalGeneration.language_model""",
    forms.transformer("self", within="vision_config", marks=1): """
        ViTModel CLIPVisionModel CLIPVisionModelWithProjection CLIPModel.get_image_features
        LlavaForConditionalGeneration.vision_tower LlavaNextForConditionalGeneration.vision_tower""",
    forms.transformer("self"): """
        T5EncoderModel UMT5EncoderModel DiTTransformer2DModel PixArtTransformer2DModel Transformer2DModel
        MaskedTokenTransformer WanTransformer3DModel LTXVideoTransformer3DModel""",
    forms.transformer("causal", part="decoder"): "MarianMTModel SeamlessM4Tv2Model",
    forms.transformer("self", part="encoder"): "MarianMTModel.encoder SeamlessM4Tv2Model.text_encoder",
    forms.transformer("self", part="t2u_encoder"): "SeamlessM4Tv2Model.encoder",
    forms.speech_encoder: "SeamlessM4Tv2Model.speech_encoder",
    forms.unit_decoder_layer: " ".join(f"SeamlessM4Tv2Model.{layer}" for layer in range(6)),
    forms.joint: """
        FluxTransformer2DModel Flux2Transformer2DModel SD3Transformer2DModel QwenImageTransformer2DModel
        HunyuanImageTransformer2DModel HunyuanVideoTransformer3DModel HunyuanVideo15Transformer3DModel
        CogVideoXTransformer3DModel""",
    forms.prior: "PriorTransformer",
    forms.qwen_tower: "Qwen2_5_VLForConditionalGeneration.visual Qwen3VLForConditionalGeneration.visual",
    forms.autoencoder: """
        AutoencoderKL AutoencoderKLFlux2 AutoencoderKLHunyuanImage AutoencoderKLHunyuanVideo15 VQModel
        AutoencoderKLHunyuanVideo.decoder""",
    forms.image_encoder: "AutoencoderKL.encode",
    forms.frame_decoder: "AutoencoderKLWan AutoencoderKLQwenImage",
    forms.tiled_decoder: "AutoencoderKLHunyuanVideo",
    forms.video_tokenizer: "CViViT",
    unets.unet_2d_condition: "UNet2DConditionModel",
    unets.unet_2d: "UNet2DModel",
    unets.unet_3d_condition: "UNet3DConditionModel",
    unets.efficient_unet: "EfficientUNet",
    forms.nothing: """
        AutoencoderKLCogVideoX AutoencoderKLLTXVideo LinearAdaptor SpeechT5HifiGan ClapTextModelWithProjection
        HSTU.retrieve JanusForConditionalGeneration SeamlessM4Tv2Model.duration_predictor
        SeamlessM4Tv2Model.dur_predictor SeamlessM4Tv2Model.lm_head SeamlessM4Tv2Model.hifi_gan
        pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertModel
        pipelines.deprecated.unclip.text_proj.UnCLIPTextProjModel""",
}
FORMS = {name: form for form, names in _CLASSES.items() for name in names.split()}
# Parts of networks that have no attention core, whatever the class, but for those that have a form of their own.
_WITHOUT = (
    *("quant_conv", "post_quant_conv", "embed_tokens", "language_projection", "multi_modal_projector"),
    "get_image_features",  # around a vision tower that is a stage of its own
)


def has_closed_form(spec: ModelSpec) -> bool:
    """Whether there is a closed form for the networks of a model; the lengths of any other are those that were seen."""
    return all(
        any(name == part.cls or name.startswith(f"{part.cls}.") for name in FORMS) for part in spec.components.values()
    )


def closed_form(spec: ModelSpec, request: Request | None = None) -> pd.DataFrame:
    """The attentions of one generation, derived from configurations and what its stages are called with.

    One row per distinct attention, in the columns of :data:`COLUMNS`: lengths in tokens, ``calls`` per execution. Where
    a KV cache grows there is one row per step. A class without a closed form (see `has_closed_form`) is a ValueError.
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


def form_of(cls: str, method: str) -> forms.Form:
    """The closed form of a class, or of the part of it that a method like ``model.vision_tower.forward`` calls."""
    part = part_of(method)
    found = FORMS.get(f"{cls}.{part}") or (forms.nothing if part in _WITHOUT else FORMS.get(cls))
    if found is None:
        raise ValueError(f"no closed form for {cls}; the lengths of the operator table are those that were seen")
    return found


def sites_at(spec: ModelSpec, stage: "Stage", step: int = 0) -> list[forms.Site]:
    """The attentions of one execution of a stage, by its closed form."""
    part = spec.components[stage.component]
    return list(form_of(part.cls, stage.method)(part.config, sizes_at(stage, part.cls, step)))


def similarity_memory(lengths: pd.DataFrame, item_bytes: int) -> pd.Series:
    """Bytes of the similarity matrix of one call, ``(batch, heads, q_len, kv_len)`` items, for each row.

    ``lengths`` is a closed form or the attention rows of an operator table. Flash attention never writes this matrix.
    """
    size = lengths["batch"] * lengths["heads"] * lengths["q_len"] * lengths["kv_len"] * item_bytes
    return size.rename("similarity_bytes")


def level_similarity_bytes(
    height: int, width: int, *, level: int, heads: int = 1, batch: int = 1, item_bytes: int = 2
) -> int:
    """Bytes of one self-attention similarity matrix at a latent U-Net's level (0 is the outermost), of an image's size.

    ``tokens = height / (8 * 2^level) * width / (8 * 2^level)`` and the matrix holds ``tokens^2`` items: for an image of
    side L that is ``(L / (8 * 2^level))^4``, i.e. O(L^4).
    """
    rows, columns = unets.halvings(height // 8, width // 8, level + 1)[level]
    return similarity_bytes(rows * columns, rows * columns, batch=batch, heads=heads, item_bytes=item_bytes)


def series(table: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Lengths over the attention calls of a stage, in the order in which one execution makes them.

    Columns ``step, call, module, attention, q_len, kv_len``, one row per call; ``call`` counts within a step. Steps of
    the same shapes are given once, as step 0; a stage with a growing KV cache has all its steps, and in each of them
    the calls whose lengths do not grow come first.
    """
    if stage not in set(table["stage"]):
        names = ", ".join(map(str, table["stage"].unique()))
        raise ValueError(f"no stage {stage!r} in the table; choose one of {names}")
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

    The length of an attention is its queries'; of a causal one, its keys' (what the KV cache has grown to). Cross
    attention has no sequence length of its own and is left out.

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
        "shortest": ordered.map(min),
        "longest": ordered.map(max),
        "ratio": ordered.map(lambda each: each[-1] / each[0]),
        "neighbours": ordered.map(lambda each: max((b / a for a, b in pairwise(each)), default=1.0)),
    }
    return pd.DataFrame(found).reset_index()


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
    if stage.growth is None:
        return [(0, stage.repeats)]
    many = Counter(stage.growth.dims)
    return [(stage.growth.dims.index(size), many[size]) for size in sorted(many)]


def _merge(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the same shape in the same steps of a stage as one row, their calls added."""
    keys = list(COLUMNS[:-1])
    return rows.groupby(keys, sort=False)["calls"].sum().reset_index().astype(dict.fromkeys(COLUMNS[4:], "int64"))
