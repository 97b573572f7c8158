"""What an image costs a language model, by the adaptor that brings it there; where any-to-any models spend their time.

Every number is a group-by on an operator table: by stage, and by module path inside a stage.
"""

import inspect
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from mmchar.counting.cache import cached_table, source_hash
from mmchar.counting.operator_table import as_categories, count
from mmchar.counting.seqlen import seen
from mmchar.models.loading import ModelSpec, get_spec, load
from mmchar.projection.decode_costs import is_per_token, token_breakdown, token_cost
from mmchar.projection.roofline import project
from mmchar.projection.uncertainty import time_range
from mmchar.provenance import package_versions
from mmchar.request import Request
from mmchar.study.drawing.look import PART_COLORS
from mmchar.study.zoo_page import ADAPTORS, kv_bytes

SEEING = ("llava-v1-7b", "llava-1.5-7b", "llava-next-7b-mistral", "qwen2.5-vl-7b", "blip2-opt-2.7b",
          "idefics-9b-flamingo", "llama-3.2-11b-vision")  # fmt: skip
ANY_TO_ANY = ("llava-1.5-7b", "chameleon-7b", "chameleon-7b-t2i", "next-gpt-7b", "next-gpt-7b-video",
              "qwen2.5-omni-7b", "seamless-m4t-v2-large")  # fmt: skip
_STAGES = {  # parts of a generation by the names of its stages
    "encoder": "encode_text|encode_image|encode_audio|encode_speech",
    "adaptor": "project_image|project_output|project_speech",
    "language model": "prefill|decode|predict_token|embed_text",
    "speech model": "prefill_speech|decode_speech|predict_code|reread_text|encode_units|decode_units|predict_durations"
    "|predict_units|predict_unit_durations",
    "denoiser": "denoise|denoise_sound",
    "decoder": "decode_image|decode_video|vocode",
    "outside the networks": "pipeline",
}
COSTS = {  # of `image_costs`: what a panel is called, its unit, and what a value is multiplied by
    "image_tokens": ("tokens of the images (counted)", "tokens", 1.0),
    "adaptor_flop": ("adaptor (counted)", "TFLOP", 1e-12),
    "prefill_flop": ("prefill (counted)", "TFLOP", 1e-12),
    "first_token_s": ("time to the first token (projected)", "s", 1.0),
    "kv_bytes": ("keys and values (counted)", "GB", 1e-9),
    "token_device_s": ("kernels of a decoding step (projected)", "ms", 1e3),
}
_SHORT = {"encoder": "encoder", "adaptor": "adaptor", "cross": "cross-attention layers"}
_INNER_FIRST = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")  # (images, 1, …) of images beside the text


def adaptor_of(name: str, *, tiny: bool = False) -> str:
    """The kind of adaptor of a model that writes about images; a ValueError for any other."""
    spec = get_spec(name, tiny=tiny)
    kind = next((ADAPTORS[part.cls] for part in spec.components.values() if part.cls in ADAPTORS), None)
    if kind is None or spec.family == "any_to_any" or "new_tokens" not in spec.request:
        raise ValueError(f"{name} writes nothing about images; choose e.g. llava-1.5-7b or idefics-9b-flamingo")
    return kind


def count_images(name: str, request: Request | None = None, *, images: int = 1, tiny: bool = False) -> pd.DataFrame:
    """The operator table of an answer about ``images`` of one size in one prompt, in bfloat16.

    The library's own model is given all of them. Where no library has it (LLaVA v1) they are encoded together and stand
    in the prompt as so many tokens, which to the language model are like any others. Raises a ValueError for a number
    of images that is none, or that the model's context does not hold.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ValueError(f"images={images!r} is not a whole number of 1 or more")
    adaptor_of(name, tiny=tiny)
    spec, one = get_spec(name, tiny=tiny), count(name, request, tiny=tiny)
    full = spec.resolve(request)
    each = _sequence(one) - _text(spec, full)
    key = "prompt_tokens+new_tokens"
    room, asked = spec.limits[key].max, (images - 1) * each + full.prompt_tokens + full.new_tokens
    if room is not None and asked > room:
        most = 1 + (room - full.prompt_tokens - full.new_tokens) // each
        raise ValueError(f"{images} images of {each} tokens are outside the reach of {name}, which takes {most}")
    out = one if images == 1 else _several(spec, full, images, each)
    out.attrs["images"] = images
    return out


def image_parts(table: pd.DataFrame) -> "pd.Series[str]":
    """The part of each row of an answer about images: a value of `PART_COLORS`.

    A language model's layers that attend to the image beside the text are parts of their own, with all they hold; a
    merger within the image encoder is its adaptor.
    """
    stage, module = table["stage"].astype(str), table["module"].astype(str)
    writes = stage.eq("prefill") | stage.map(is_per_token)
    layer = module.str.extract(r"^(.*?layers\.\d+)\.", expand=False)
    across = writes & layer.isin(layer[writes & (table["attention"] == "cross")].dropna().unique())
    merging = stage.str.startswith("encode_image") & module.str.contains("merger")
    return stage_parts(table).mask(across, "cross-attention layers").mask(merging, "adaptor")


def stage_parts(table: pd.DataFrame) -> "pd.Series[str]":
    """The part of each row's stage, a value of `PART_COLORS`; a ValueError for a stage that is none of them."""
    stage = table["stage"].astype(str).str.replace(r"(?:_variant)?_\d+$", "", regex=True)
    known = {name: part for part, names in _STAGES.items() for name in names.split("|")}
    for name in sorted(set(stage) - known.keys()):
        raise ValueError(
            f"stage {name!r} of {table.attrs.get('model')} is no part of an answer; known are {list(known)}"
        )
    return stage.map(known)


def image_costs(table: pd.DataFrame, *, gpu: str, execution: str = "eager") -> dict[str, Any]:
    """What the images of a table of `count_images` cost, projected on a GPU.

    Returns
    -------
    dict
        ``model``, ``label`` (with its adaptor), ``images``; ``image_tokens`` that the language model sees, in its
        sequence or beside it; ``sequence_tokens`` of the prefill; ``encoder_flop, adaptor_flop, cross_flop`` (of
        cross-attention layers in the prefill), ``prefill_flop`` (with them); ``first_token_s`` and its range
        ``low_s, high_s``: encoder, adaptor and prefill; ``token_s`` and ``token_device_s`` of one decoding step, with
        and without waiting for the host, and ``token_copy_s`` of its copies; ``kv_bytes`` of keys and values after the
        prefill.
    """
    spec = get_spec(table.attrs["model"], tiny=table.attrs["tiny"])
    text, lengths = _text(spec, spec.resolve(Request(**table.attrs["request"]))), seen(table)
    prefill = lengths[lengths["stage"] == "prefill"]
    across = prefill.loc[prefill["attention"] == "cross", "kv_len"]
    moved = token_breakdown(table, gpu=gpu, execution=execution)
    timed, step = project(table, gpu=gpu, execution=execution), token_cost(table, gpu=gpu, execution=execution)
    first = first_token(timed)
    flop, time_s = first["flop"] * first["repeats"], float((first["time_s"] * first["repeats"]).sum())
    by_part, reach, written = (
        flop.groupby(image_parts(first)).sum(),
        time_range(timed, time_s),
        first["stage"] == "prefill",
    )
    config = spec.components[first.loc[written, "component"].iloc[0]].config
    return {
        "model": spec.name,
        "images": table.attrs["images"],
        "label": f"{spec.name} ({adaptor_of(spec.name, tiny=spec.tiny)})",
        "image_tokens": int(across.max() if len(across) else _sequence(table) - text),
        "sequence_tokens": _sequence(table),
        **{f"{name}_flop": int(by_part.get(part, 0)) for name, part in _SHORT.items()},
        "prefill_flop": int(flop[written].sum()),
        "first_token_s": time_s,
        "low_s": reach["low_s"],
        "high_s": reach["high_s"],
        "token_s": step["token_s"],
        "token_device_s": step["device_s"],
        "token_copy_s": float(moved.loc[moved["category"] == "Data movement", "value"].sum()),
        "kv_bytes": sum(kv_bytes(config, prefill).values()),
        "time_kind": "projected",
    }


def first_token(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of an answer about images up to its first token: image encoder, adaptor, prefill."""
    stage = table["stage"].astype(str)
    return table[~(stage.map(is_per_token) | stage.eq("pipeline"))]


def time_by_part(table: pd.DataFrame, parts: "pd.Series[str]", *, gpu: str) -> pd.DataFrame:
    """Projected seconds and FLOP of each part of a table, in the order of `PART_COLORS`: ``part, time_s, flop``."""
    timed = project(table, gpu=gpu)
    both = timed[["time_s", "flop"]].mul(timed["repeats"], axis=0).groupby(parts.to_numpy()).sum()
    found = both.reindex([part for part in PART_COLORS if part in both.index]).rename_axis("part").reset_index()
    return found.assign(model=table.attrs["model"], gpu=gpu, time_kind="projected")


def first_token_parts(table: pd.DataFrame, *, gpu: str) -> pd.DataFrame:
    """`time_by_part` of a table of `count_images` up to its first token, with a ``label``: model, number of images."""
    rows = first_token(table)
    many = table.attrs["images"]
    label = f"{table.attrs['model']}, {many} image{'s' * (many > 1)}"
    return time_by_part(rows, image_parts(rows), gpu=gpu).assign(label=label)


def generation_parts(table: pd.DataFrame, *, gpu: str) -> pd.DataFrame:
    """`time_by_part` of a whole generation, with ``share`` (%) and ``label`` (model, what goes in and comes out)."""
    out = time_by_part(table, stage_parts(table), gpu=gpu)
    label = f"{table.attrs['model']}: {modalities(table)}"
    return out.assign(share=100 * out["time_s"] / out["time_s"].sum(), label=label)


def modalities(table: pd.DataFrame) -> str:
    """What goes into a generation and what comes out of it, by its request and its stages: ``text + image → text``."""
    stages, asked = "|".join(map(str, table["stage"].unique())), table.attrs["request"]
    inside = {"text": "prompt_tokens" in asked, "image": "encode_image" in stages, "speech": "audio_s" in asked}
    out = {"text": "new_tokens" in asked, "image": "decode_image" in stages, "video": "decode_video" in stages}
    out["speech"] = "vocode" in stages
    return " → ".join(" + ".join(name for name, there in way.items() if there) for way in (inside, out))


def _sequence(table: pd.DataFrame) -> int:
    """Tokens of the prefill of a table."""
    return int(table.loc[(table["stage"] == "prefill") & (table["attention"] == "causal"), "q_len"].max())


def _text(spec: ModelSpec, full: Request) -> int:
    return full.prompt_tokens + spec.pipeline.arguments.get("marks", 0)


def _several(spec: ModelSpec, full: Request, images: int, each: int) -> pd.DataFrame:
    if spec.pipeline.library == "mmchar":
        return _as_text(spec.name, full, images, each, spec.tiny)
    made = {"images": images, "spec": msgspec.to_builtins(spec), "request": full.given()}
    code = {"source": source_hash(), "inputs": inspect.getsource(_prompt)}
    versions = package_versions("torch", "diffusers", "transformers", "pandas")
    return cached_table({**made, **code, "versions": versions}, lambda: _seen_together(spec, full, images))


def _as_text(name: str, full: Request, images: int, each: int, tiny: bool) -> pd.DataFrame:
    longer = count(name, replace(full, prompt_tokens=full.prompt_tokens + (images - 1) * each), tiny=tiny)
    together = count(name, replace(full, batch=images), tiny=tiny)
    sees, saw = (t["stage"].isin(["encode_image", "project_image"]) for t in (longer, together))
    out = as_categories(pd.concat([together[saw], longer[~sees]], ignore_index=True))
    out.attrs = {**longer.attrs, "request": full.given()}
    return out


def _seen_together(spec: ModelSpec, full: Request, images: int) -> pd.DataFrame:
    model = load(spec.name, device="meta", dtype="bfloat16", tiny=spec.tiny)
    ((_, network),) = model.components.items()
    return count(model, full, **_prompt(network, full, images, _text(model.spec, full)))


def _prompt(network: Any, full: Request, images: int, text: int) -> dict[str, Any]:
    """What ``generate()`` is given: the inputs of so many prompts of one image each, as those of one prompt."""
    import torch

    from mmchar.generation.seen_inputs import image_token, prompt_of

    given = prompt_of(network, batch=images, prompt_tokens=text, height=full.height, width=full.width)
    ids, place = given["input_ids"][:1], image_token(network.config)
    if place is None:  # images stand beside the text: [images, 1, …] -> [1, images, …], masks [images, text, 1, …]
        beside = {
            key: value.transpose(0, 1 if key in _INNER_FIRST else 2)
            for key, value in given.items()
            if key != "input_ids"
        }
        return {**beside, "input_ids": ids}
    until = int(np.flatnonzero(ids[0] == place)[-1]) + 1  # a mark may stand before the image
    ids = torch.cat([ids[:, :until]] * images + [ids[:, until:]], dim=1)
    kinds: dict[str, Any] = {
        key: (ids == place).long() for key in ("mm_token_type_ids", "token_type_ids") if key in given
    }
    return {**given, "input_ids": ids, **kinds}
