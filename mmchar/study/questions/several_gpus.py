"""Several GPUs for one generation: how much faster by each way to share it, what is sent, and over image size."""

from collections.abc import Iterable, Sequence

import pandas as pd
from tqdm import tqdm

from mmchar.models.loading import get_spec
from mmchar.projection.scaling import on_several
from mmchar.request import Request

METHODS = ("Ulysses", "ring", "PipeFusion")  # those that share a transformer's tokens or layers
Way = dict[str, int]


def ways_of_a_transformer(counts: Sequence[int], *, combined: bool = True) -> list[Way]:
    """One GPU, each method on so many GPUs, and Ulysses within a ring."""
    alone: list[Way] = [{key: many} for key in ("ulysses", "ring", "pipefusion") for many in counts]
    both: list[Way] = [{"ulysses": 2, "ring": 2}, {"ulysses": 4, "ring": 2}, {"ulysses": 2, "ring": 4}]
    return [{}, *alone, *(both if combined else [])]


def ways_of_a_unet(counts: Sequence[int]) -> list[Way]:
    """One GPU, DistriFusion's patches on so many, and guidance on two."""
    return [{}, *({"patch": many} for many in counts), {"cfg": 2}]


def against_one(ways: pd.DataFrame) -> pd.DataFrame:
    """A table of `scaling.on_several` with each way against one GPU of the same model.

    Adds ``speed_up`` with ``low`` and ``high``, its range against the time of one GPU taken as it is, ``joule_times``
    (energy over that of one GPU) and ``gigabyte_sent`` (of one GPU).
    """
    one = ways[ways["way"] == "one GPU"].set_index("model")
    time_s, energy_j = (ways["model"].map(one[name]) for name in ("time_s", "energy_j"))
    return ways.assign(
        speed_up=time_s / ways["time_s"],
        low=time_s / ways["high_s"],
        high=time_s / ways["low_s"],
        gigabyte_sent=ways["sent_bytes"] / 1e9,
        joule_times=ways["energy_j"] / energy_j,
    )


def able(ways: pd.DataFrame) -> pd.DataFrame:
    """The ways that a model can be shared in."""
    return ways[ways["reason"] == ""]


def by_method(ways: pd.DataFrame, model: str) -> pd.DataFrame:
    """The ways of a model by one of `METHODS` alone, each method beginning with one GPU."""
    rows = able(ways[ways["model"] == model])
    single, one = rows[rows["method"].isin(METHODS)], rows[rows["gpus"] == 1]
    return pd.concat([*(one.assign(method=method) for method in single["method"].unique()), single])


def over_sizes(
    model: str, sides: Sequence[int], *, batch: int, gpus: int, gpu: str, tiny: bool = False, progress: bool = True
) -> pd.DataFrame:
    """`on_several` of each method of `METHODS` at every size of a square image, with ``side`` (pixels), ``speed_up``.

    Empty for a model that has no image size to ask for. Scaled-down models keep their own size, at the first side.
    """
    if get_spec(model, tiny=tiny).request.get("height") is None:
        sides = []
    parts, ways = [], ways_of_a_transformer([gpus], combined=False)
    for side in tqdm(sides[:1] if tiny else sides, disable=not progress, unit="size"):
        request = None if tiny else Request(height=side, width=side, batch=batch)
        parts.append(on_several(model, request, ways, gpu=gpu, tiny=tiny).assign(side=side, gpu=gpu))
    if not parts:
        return pd.DataFrame(columns=["model", "method", "side", "time_s", "speed_up"])
    out = pd.concat(parts, ignore_index=True)
    one = out[out["way"] == "one GPU"].set_index("side")["time_s"]
    return out.assign(speed_up=out["side"].map(one) / out["time_s"])


def sent_by_two(ways: pd.DataFrame, model: str) -> "pd.Series[float]":
    """Bytes that one of two GPUs sends by Ulysses and by a ring, by way; empty where the model cannot be shared so."""
    rows = able(ways[ways["model"] == model]).set_index("way")["sent_bytes"]
    return rows[["ulysses 2", "ring 2"]] if {"ulysses 2", "ring 2"} <= set(rows.index) else rows[:0]


def rings(ways: pd.DataFrame, models: Iterable[str]) -> pd.DataFrame:
    """A ring of 8 GPUs of each model that can be shared in all ways: ``model, more, four_s, eight_s``.

    ``more`` are the bytes that it sends over those of Ulysses on 8, ``four_s`` the seconds of a ring of 4.
    """
    rows, refused = [], set(ways.loc[ways["reason"] != "", "model"])
    for model in [model for model in models if model not in refused]:
        of = ways[ways["model"] == model].set_index("way")
        more = of.at["ring 8", "sent_bytes"] / of.at["ulysses 8", "sent_bytes"]
        rows.append((model, more, of.at["ring 4", "time_s"], of.at["ring 8", "time_s"]))
    return pd.DataFrame(rows, columns=["model", "more", "four_s", "eight_s"])


def learned(ways: pd.DataFrame) -> str:
    """The fastest way of each model of a table of `against_one`, as a list in Markdown."""
    rows = able(ways)
    best = rows.loc[rows.groupby("model")["time_s"].idxmin()]
    says = (
        "- **{0.model}**: fastest with {0.way}, {0.time_s:.3g} s ({0.low_s:.3g} to {0.high_s:.3g}), {0.speed_up:.2f}x,"
    )
    says += " at {0.joule_times:.2f}x the energy of one GPU; {0.launch:.0f} % of it waits for the host."
    return "\n".join(says.format(row) for row in best.itertuples())
