"""What an image costs a language model, by the adaptor that brings it there; where any-to-any models spend their time.

Every number is a group-by on an operator table: by stage, and by module path inside a stage.
"""

from typing import Any

import pandas as pd

from mmchar.counting.seqlen import seen
from mmchar.models.loading import get_spec
from mmchar.projection.decode_costs import is_per_token, token_breakdown, token_cost
from mmchar.projection.roofline import project
from mmchar.projection.uncertainty import time_range
from mmchar.request import Request
from mmchar.study.drawing.look import PART_COLORS
from mmchar.study.findings import Findings
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


def adaptor_of(name: str, *, tiny: bool = False) -> str:
    """The kind of adaptor of a model that writes about images; a ValueError for any other."""
    spec = get_spec(name, tiny=tiny)
    kind = next((ADAPTORS[part.cls] for part in spec.components.values() if part.cls in ADAPTORS), None)
    if kind is None or spec.family == "any_to_any" or "new_tokens" not in spec.request:
        raise ValueError(f"{name} writes nothing about images; choose e.g. llava-1.5-7b or idefics-9b-flamingo")
    return kind


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
    """What the images of a count of an answer about them cost, projected on a GPU.

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
    asked, lengths = Request(**table.attrs["request"]), seen(table)
    text = asked.prompt_tokens + spec.pipeline.arguments.get("marks", 0) * asked.images
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
        "images": asked.images,
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
    """`time_by_part` of an answer about images up to its first token, with a ``label``: model, number of images."""
    rows = first_token(table)
    many = table.attrs["request"]["images"]
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


def check_all(found: Findings, *, sizes: bool = True) -> None:
    """Hold what notebook 12 keeps against what it expected; numbers of tokens only at full ``sizes``."""
    one, most = _fewest_and_most(found.tables["images"])
    tokens = {"llava-v1-7b": 256, "llava-1.5-7b": 576, "blip2-opt-2.7b": 32, "idefics-9b-flamingo": 64,
              "llama-3.2-11b-vision": 6404, "llava-next-7b-mistral": 2880, "qwen2.5-vl-7b": 1296}  # fmt: skip
    for name in [name for name in one.index if name in tokens and sizes]:
        found.near(f"{name}: tokens of an image", tokens[name], one.at[name, "image_tokens"], 0)
    found.near("adaptor over prefill, FLOP", 20, 100 * (one["adaptor_flop"] / one["prefill_flop"]).max(), 2, unit="%")
    said = f"kernels of a decoding step, {most['images'].iloc[0]} images over one, more at worst"
    found.near(said, 10, _slower(one, most).max(), 10, unit="%")
    shares = found.tables["any_to_any"].set_index(["model", "part"])["share"]
    for (model, part), expected, within in (
        (("chameleon-7b-t2i", "language model"), 99, 1),
        (("next-gpt-7b", "denoiser"), 50, 10),
        (("next-gpt-7b-video", "denoiser"), 90, 10),
        (("qwen2.5-omni-7b", "speech model"), 60, 10),
    ):
        if (model, part) in shares.index:
            found.near(f"{model}: {part}, of time", expected, shares[model, part], within, unit="%")


def learned(by_images: pd.DataFrame, whole: pd.DataFrame) -> str:
    """What tables of `image_costs` and `generation_parts` say, as a list in Markdown."""
    one, most = _fewest_and_most(by_images)
    said = "- **{0.label}**: {0.image_tokens:,} tokens; the first word after {0.first_token_s:.3f} s ({0.low_s:.3f} to"
    said += f" {{0.high_s:.3f}}), of {most['images'].iloc[0]} images after {{0.most_s:.3f}} s."
    lines = [said.format(row) for row in one.join(most["first_token_s"].rename("most_s")).itertuples()]
    slower = _slower(one, most)
    copies = " ms, then ".join(f"{1e3 * end.at[slower.idxmax(), 'token_copy_s']:.1f}" for end in (one, most))
    lines += [f"- Kernels of {slower.idxmax()}'s step take {slower.max():.0f} % longer; its copies {copies} ms."]
    most_of = whole.sort_values("share").drop_duplicates("model", keep="last").sort_index()
    lines += [f"- **{row.label}**: {row.share:.0f} % of the time is its {row.part}." for row in most_of.itertuples()]
    return "\n".join(["## What we learned", "", *lines])


def _fewest_and_most(by_images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    numbers = by_images["images"]
    fewest, most = (by_images[numbers == number].set_index("model") for number in (numbers.min(), numbers.max()))
    return fewest, most


def _slower(one: pd.DataFrame, most: pd.DataFrame) -> pd.Series:
    """Percent by which the kernels of a decoding step take longer with more images."""
    return 100 * (most["token_device_s"] / one["token_device_s"] - 1)
