"""Claims about attention over time beside attention over the positions of a frame."""

import pandas as pd

from mmchar.projection.uncertainty import U_NET_VIDEO
from mmchar.runs.verdicts import UNREAD
from mmchar.study.temporal import temporal_readings
from mmchar.study.verdicts.claim import Claim, Readings
from mmchar.study.verdicts.setting import ON_H100, Setting, timed

_STAGES = {
    "all stages": ("",),
    "the stage of key frames": ("denoise_keyframes",),
    "key frames and frames between": ("denoise_keyframes", "denoise_frames"),
}
_ATTENTION = {"core": "attention cores", "block": "with their projections"}


def _share(setting: Setting) -> Readings:
    values: Readings = {}
    video = timed("make-a-video", setting)
    for stages, names in _STAGES.items():
        part = video if names == ("",) else video[video["stage"].isin(names)]
        found = temporal_readings(part)["share"]
        values |= {(f"Make-A-Video, {stages}", words): found[name] for name, words in _ATTENTION.items()}
    found = temporal_readings(timed("phenaki-1.8b", setting))["share"]
    return values | {("Phenaki's decoder", words): found[name] for name, words in _ATTENTION.items()}


def _over_space(quantity: str, setting: Setting) -> Readings:
    """Temporal over spatial attention cores of Make-A-Video: seconds or FLOPs."""
    values: Readings = {}
    for kernel in ("flash", "eager"):
        table = timed("make-a-video", setting.but(attention=kernel))
        for stages, names in _STAGES.items():
            part = table if names == ("",) else table[table["stage"].isin(names)]
            total = (part[quantity] * part["repeats"]).groupby(part["attention"].astype(str)).sum()
            values[stages, f"{kernel} attention"] = float(total["temporal"] / total["spatial"])
    return values


def _fewer_flops(setting: Setting) -> Readings:
    found = pd.Series(_over_space("flop", setting))
    return {(stages,): 1 / value for (stages, kernel), value in found.items() if kernel == "flash attention"}


CLAIMS = (
    Claim(
        "c005",
        "16 frames fill 1/64 of a fused kernel's tile, so few FLOPs take long where short sequences are many; one"
        " spatial attention over long sequences, at 256 pixels, outweighs them in the whole cascade ({ours} by cores).",
        _share,
        (60, 100),
        "%",
        "05_temporal_share",
        family=U_NET_VIDEO,
        decides=("no waiting for the host", "compiled", "eager attention", "fused attention of 2022", ON_H100),
        short="temporal in attention, video: over 60 % of time",
    ),
    *(
        Claim(
            name,
            "Temporal over spatial cores is {ours} over all stages and up to {high} where the video is made.",
            lambda setting: _over_space("time_s", setting),
            unit="x",
            figure="05_temporal_share",
            verdict=UNREAD,
        )
        for name in ("c009", "c036")
    ),
    Claim(
        "c037",
        "Temporal cores have {ours} fewer FLOPs over all stages, {low} where key frames are made.",
        _fewer_flops,
        unit="x fewer",
        figure="05_temporal_scaling",
        basis="counted",
        verdict=UNREAD,
    ),
)
