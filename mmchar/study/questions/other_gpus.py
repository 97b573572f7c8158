"""What a projection is worth, and what it says of other GPUs: published beside projected, cost, what decides."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd

from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.projection.scaling import on_gpus
from mmchar.study.claims import published_beside_projected

GPUS = ("v100-32gb", "a100-80gb", "l40s", "h100-sxm", "h200-sxm", "b200")
HALVED = ("fed", "fed_convolution", "joules_4nm", "layout", "flash_mma", "bandwidth", "one_by_one", "dispatch_s")


def speeds_beside(models: Iterable[str] | None = None) -> pd.DataFrame:
    """`claims.published_beside_projected` with ``ratio``: projected over published time, of rates upside down."""
    beside = published_beside_projected(None if models is None else list(models))
    rate = beside["unit"].str.endswith("/s")
    slower = (beside["projected"] / beside["published"]).where(~rate, beside["published"] / beside["projected"])
    return beside.assign(ratio=slower, time_kind="projected")


def spread_by_kind(beside: pd.DataFrame) -> pd.DataFrame:
    """Number, least, median and largest of the ratios of `speeds_beside` by family, execution and GPU."""
    return beside.groupby(["family", "execution", "gpu"])["ratio"].agg(["size", "min", "median", "max"])


def kernel_ratios(kernels: pd.DataFrame) -> pd.DataFrame:
    """Projected over measured time of single kernels (`evidence.kernels`), described by kind and GPU."""
    ratio = (kernels["projected_s"] / kernels["measured_s"]).rename("projected / measured")
    return ratio.groupby([kernels["kind"], kernels["gpu"]]).describe(percentiles=[0.1, 0.5, 0.9])


def most_off(decoder: pd.DataFrame) -> float:
    """Largest difference (points) between a kind's share of the decoder's time as measured and as projected."""
    seconds = decoder[["measured_s", "projected_s"]]
    share = 100 * seconds / seconds.sum()
    return float((share["projected_s"] - share["measured_s"]).abs().max())


def everywhere(tables: Mapping[str, pd.DataFrame], *, dollars_per_gpu_hour: float) -> pd.DataFrame:
    """`scaling.on_gpus` of counted tables on `GPUS`, with ``dollars``, ``kilojoule`` and ``label`` (model and GPU)."""
    out = on_gpus(tables, GPUS)
    label, dollars = out["model"] + " on " + out["gpu"], out["time_s"] / 3600 * dollars_per_gpu_hour
    return out.assign(dollars=dollars, kilojoule=out["energy_j"] / 1e3, label=label)


def halved_one_by_one(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """How the projected time of each model changes when one assumption is halved: ``model, halved, change_percent``."""
    normal, rows = Efficiency(), []
    for name, table in tables.items():
        before = _seconds(table, gpu, normal)
        for field in HALVED:
            after = _seconds(table, gpu, replace(normal, **{field: getattr(normal, field) / 2}))
            rows.append((name, field, 100 * (after / before - 1)))
    out = pd.DataFrame(rows, columns=["model", "halved", "change_percent"])
    return out.assign(gpu=gpu, time_kind="projected")


def _seconds(table: pd.DataFrame, gpu: str, efficiency: Efficiency) -> float:
    timed = project(table, gpu=gpu, attention="flash", efficiency=efficiency)
    return float((timed["time_s"] * timed["repeats"]).sum())


def never_slower(by_gpu: pd.DataFrame, *, slack: float = 1.01) -> bool:
    """Whether no model takes longer from A100 to H100 and from there to B200, but for `slack`.

    `by_gpu` are seconds, a column per GPU. Where the host is the limit all take the same.
    """
    pairs = ("a100-80gb", "h100-sxm"), ("h100-sxm", "b200")
    return all((slack * by_gpu[old] >= by_gpu[new]).all() for old, new in pairs)


def learned(decides: pd.DataFrame, places: pd.DataFrame) -> str:
    """The assumption that each model hangs on most, and the GPU that takes least energy for it, as a list."""
    largest = decides.loc[decides.groupby("model")["change_percent"].apply(lambda change: change.abs().idxmax())]
    says = "- **{0.model}** hangs most on `{0.halved}`: halving it changes the time by {0.change_percent:+.0f} %."
    best = places.loc[places.groupby("model")["energy_j"].idxmin()]
    least = ", ".join(f"{row.model} on {row.gpu} ({row.kilojoule:.3g} kJ)" for row in best.itertuples())
    return "\n".join([*map(says.format, largest.itertuples()), f"- Least energy per generation: {least}."])
