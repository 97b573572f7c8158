"""Claims about models that denoise images: convolution, the gain from Flash Attention, lengths and memory."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mmchar.projection.uncertainty import U_NET_IMAGE
from mmchar.runs.verdicts import UNREAD
from mmchar.study.experiments import length_readings
from mmchar.study.verdicts.claim import Claim, Readings, near
from mmchar.study.verdicts.setting import (
    CONVOLUTIONS,
    EVERYTHING,
    ON_H100,
    Setting,
    around_convolutions_s,
    count_once,
    share,
    timed,
    total_s,
)

LATENT = ("stable-diffusion-1.5", "stable-diffusion-2.1", "emu-like-prod-tti")
PIXEL = ("imagen",)
SPACES = {"in latent space": LATENT, "in pixel space": PIXEL}


def category_share(model: str, category: str, setting: Setting) -> float:
    """Percent of a generation's time in one category of operators."""
    table = timed(model, setting)
    return share(table, table["category"] == category)


def flash_gain(model: str, setting: Setting, *, attention_only: bool = False) -> float:
    """Time with eager attention over time with fused attention, of everything or of attention cores."""
    slow, fast = (timed(model, setting.but(attention=kernel)) for kernel in ("eager", "flash"))
    rows = [(table["attention"] != "") if attention_only else None for table in (slow, fast)]
    return total_s(slow, rows[0]) / total_s(fast, rows[1])


def _convolution(setting: Setting) -> Readings:
    values: Readings = {}
    for space, models in SPACES.items():
        values[space, "all that a convolution launches"] = max(
            category_share(m, "Convolution", setting) for m in models
        )
        values[space, "its kernels, without layout copies and bias"] = max(_kernels_alone(m, setting) for m in models)
    return values


def _kernels_alone(model: str, setting: Setting) -> float:
    table = timed(model, setting)
    rows = table["category"] == "Convolution"
    return share(table, rows) - share(table, rows, around_convolutions_s(model, setting))


def _gain_ratio(setting: Setting) -> Readings:
    """The median gain of diffusion over that of a transformer."""
    partners = {"over Parti, token by token": "parti-20b", "over Muse, all tokens at once": "muse-3b"}
    values: Readings = {}
    for partner, other in partners.items():
        for part, only in {"end to end": False, "attention alone": True}.items():
            gains = [flash_gain(model, setting, attention_only=only) for model in (*LATENT, *PIXEL)]
            values[partner, part] = float(np.median(gains)) / flash_gain(other, setting, attention_only=only)
    return values


def _lengths(_setting: Setting) -> Readings:
    found = [length_readings(count_once(model)) for models in SPACES.values() for model in models]
    return {(f"by {reading}",): float(ratio) for reading, ratio in pd.concat(found, axis=1).max(axis=1).items()}


def _intensity_ratio(setting: Setting) -> Readings:
    """FLOP per byte of diffusion over that of a language model."""

    def per_byte(model: str, stages: str) -> float:
        table = timed(model, setting)
        rows = table[table["stage"].astype(str).str.contains(stages)]
        moved = (rows["read_bytes"] + rows["write_bytes"]) * rows["repeats"]
        return float((rows["flop"] * rows["repeats"]).sum() / moved.sum())

    most = max(per_byte(model, "") for model in LATENT)
    steps = max(per_byte(model, "^denoise") for model in LATENT)
    return {
        ("whole generations",): most / per_byte("llama-2-7b", ""),
        ("a denoising step over a decoding step",): steps / per_byte("llama-2-7b", "^decode"),
        ("a denoising step over a prefill",): steps / per_byte("llama-2-7b", "^prefill"),
    }


def _memory_exponent(_setting: Setting) -> Readings:
    """Power of the image's side with which the largest similarity matrix grows."""
    pairs = [
        count_once("stable-diffusion-1.5", "bfloat16", asked) for asked in ((), (("height", 1024), ("width", 1024)))
    ]
    small, large = (int((table["q_len"] * table["kv_len"]).max()) for table in pairs)
    return {("of the side",): float(np.log2(large / small))}


def of_models(
    value: Callable[[str, Setting], float], models: Sequence[str], **fixed: str
) -> Callable[[Setting], Readings]:
    """Readings that are models, each with a value of its own."""
    return lambda setting: {(model,): value(model, setting.but(**fixed)) for model in models}


def _recalled_gain(claim: str, model: str) -> Claim:
    reason = f"Eager over fused attention, end to end, is {{ours}} for {model}; the paper's number was not read."
    return Claim(claim, reason, of_models(flash_gain, [model]), unit="x", verdict=UNREAD, figure="03_gain_ratio")


def _group_norm(model: str, setting: Setting) -> float:
    table = timed(model, setting)
    return share(table, table["op"] == "native_group_norm")


def _attention(model: str, setting: Setting) -> float:
    return category_share(model, "Attention", setting)


def _pixel_over_latent(setting: Setting) -> Readings:
    most = [max(category_share(model, "Convolution", setting) for model in models) for models in (PIXEL, LATENT)]
    return {("Imagen over latent diffusion",): most[0] - most[1]}


TIMED_GAINS = {
    "c021": "llama-2-7b",
    "c022": "imagen",
    "c023": "stable-diffusion-1.5",
    "c024": "muse-3b",
    "c025": "parti-20b",
    "c026": "emu-like-prod-tti",
    "c027": "make-a-video",
    "c028": "phenaki-1.8b",
}
CLAIMS = (
    Claim(
        "c001",
        "Convolution takes up to {ours} of a latent model's time, {high} of one on pixels, which attends little.",
        _convolution,
        near(44),
        "%",
        "02_sensitivity",
        family=U_NET_IMAGE,
        decides=EVERYTHING,
        short="convolution, image diffusion: up to 44 % of time",
    ),
    Claim(
        "c003",
        "Denoising attends to thousands of queries and a decode to one, so it gains {ours} as much in the median; Muse"
        " attends to all tokens at once, as diffusion does, and gains no less.",
        _gain_ratio,
        (1.1, 2.5),
        "x",
        "03_gain_ratio",
        decides=(
            "no waiting for the host",
            "host twice as slow",
            "compiled",
            "fused attention of 2022",
            *CONVOLUTIONS,
            ON_H100,
        ),
        short="gain from Flash Attention, diffusion over transformer: 1.1 to 2.5 x",
    ),
    Claim(
        "c004",
        "Each level of a U-Net has a quarter of the positions of the one above; over all levels it is {high}.",
        _lengths,
        (3.5, 4.5),
        "x",
        "04_length_in_a_step",
        "counted",
        short="sequence length within one inference: up to 4 x",
    ),
    Claim(
        "c008",
        "A denoising step reads its weights once for thousands of positions; against a prefill it has no advantage.",
        _intensity_ratio,
        unit="x",
        figure="01_intensity",
        basis="counted",
        verdict=UNREAD,
    ),
    Claim(
        "c010",
        "The similarity matrix has as many entries as positions squared.",
        lambda s: {("of the area",): next(iter(_memory_exponent(s).values())) / 2},
        unit="power",
        figure="04_similarity_memory",
        basis="counted",
        verdict=UNREAD,
    ),
    Claim(
        "c011",
        "The similarity matrix has as many entries as positions squared, which are the side squared.",
        _memory_exponent,
        unit="power",
        figure="04_similarity_memory",
        basis="counted",
        verdict=UNREAD,
    ),
    *(_recalled_gain(claim, model) for claim, model in TIMED_GAINS.items()),
    Claim(
        "c032",
        "Attention is {low} to {high} of the time of these models with fused kernels.",
        of_models(_attention, (*LATENT, *PIXEL)),
        unit="%",
        figure="02_projected",
        verdict=UNREAD,
    ),
    Claim(
        "c034",
        "Group norms take {low} to {high}, most of it statistics that few blocks compute.",
        of_models(_group_norm, (*LATENT, *PIXEL)),
        unit="%",
        figure="02_projected",
        verdict=UNREAD,
    ),
    Claim(
        "c035",
        "Imagen's share of convolution lies {ours} points above the largest of a latent model.",
        _pixel_over_latent,
        unit="points",
        figure="02_projected",
        verdict=UNREAD,
    ),
)
