"""Claims about models that make images, video or text with transformers: what is Linear, and what is Attention."""

from functools import cache

import numpy as np

from mmchar.runs.verdicts import UNREAD
from mmchar.study.claims import attention_block
from mmchar.study.verdicts.claim import Claim, Readings, near
from mmchar.study.verdicts.diffusion import LATENT, PIXEL, category_share, of_models
from mmchar.study.verdicts.setting import HOST_FREE, ON_H100, Setting, count_once, share, timed

TRANSFORMERS = ("parti-20b", "muse-3b", "phenaki-1.8b")


def _linear(setting: Setting) -> Readings:
    hosts = {"waiting for the host counts": setting, "waiting left out": setting.but(**HOST_FREE)}
    values: Readings = {}
    for host, one in hosts.items():
        values["every linear layer is Linear", host] = max(category_share(m, "Linear", one) for m in TRANSFORMERS)
    for host, one in hosts.items():
        most = max(_linear_outside_attention(model, one) for model in TRANSFORMERS)
        values["an attention module's projections are Attention", host] = most
    return values


def _linear_outside_attention(model: str, setting: Setting) -> float:
    table = timed(model, setting)
    return share(table, (table["category"] == "Linear").to_numpy() & ~_in_attention(model, setting))


def _in_attention(model: str, setting: Setting) -> np.ndarray:
    return _attention_modules(model, setting.dtype, setting.batch)


@cache
def _attention_modules(model: str, dtype: str, batch: int) -> np.ndarray:
    """Which rows lie in a module that holds an attention core."""
    table = count_once(model, dtype, (("batch", batch),))
    linear = table[(table["category"] == "Linear") | (table["attention"] != "")]
    kinds = set(linear["attention"].astype(str)) - {""}
    inside = np.zeros(len(table), dtype=bool)
    inside[linear.index] = np.logical_or.reduce([attention_block(linear, kind).to_numpy() for kind in kinds])
    return inside


def _whole_attention(model: str, setting: Setting) -> float:
    table = timed(model, setting)
    return share(table, (table["attention"] != "").to_numpy() | _in_attention(model, setting))


def _average_attention(setting: Setting) -> Readings:
    models = (*LATENT[:1], *LATENT[2:], *PIXEL, *TRANSFORMERS, "make-a-video", "llama-2-7b")
    eager = setting.but(attention="eager")
    return {
        ("cores",): float(np.mean([category_share(model, "Attention", eager) for model in models])),
        ("whole modules",): float(np.mean([_whole_attention(model, eager) for model in models])),
    }


CLAIMS = (
    Claim(
        "c002",
        "Every linear layer together is {ours}; without the projections inside attention modules, which the paper's"
        " hooks on modules give to Attention, it is {low}.",
        _linear,
        near(49),
        "%",
        "02_sensitivity",
        decides=(
            "no waiting for the host",
            "host twice as slow",
            "compiled",
            "eager attention",
            "products fed half as well",
            ON_H100,
        ),
        short="linear layers, transformers: up to 49 % of time",
    ),
    Claim(
        "c031",
        "With eager attention its cores take {ours} of the time in the mean of the eight models, whole modules {high}.",
        _average_attention,
        unit="%",
        figure="02_projected",
        verdict=UNREAD,
    ),
    Claim(
        "c033",
        "Whole attention modules take {low} to {high} with fused kernels; their cores alone a tenth or less.",
        of_models(_whole_attention, TRANSFORMERS),
        unit="%",
        figure="02_projected",
        verdict=UNREAD,
    ),
)
