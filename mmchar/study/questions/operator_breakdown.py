"""Which kinds of operator take the time of a generation, and which assumption of a projection decides it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from mmchar.counting.operator_table import count
from mmchar.locks import alone
from mmchar.measuring.profiling import measure
from mmchar.models.loading import get_spec
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.roofline import project
from mmchar.provenance import processor
from mmchar.request import Request
from mmchar.study import claims
from mmchar.study.drawing.look import legend_below, require
from mmchar.study.drawing.plots import operator_breakdown, sensitivity
from mmchar.study.experiments import CONVOLUTIONAL, in_order
from mmchar.tables.totals import totals

FEW = ("phenaki-1.8b", "stable-diffusion-1.5")
AT_SCALE = ("stable-diffusion-1.5", "dit-xl-2-256", "amused-256", "parti-350m")  # measured at published scale
CLAIMS = {"Convolution": "c001", "Linear": "c002"}  # what the paper says of the share of each
_KERNELS = ("flash", "eager")
_PROJECTED, _NO_WAITING = "as projected", "no waiting for the host"
_REQUESTED: dict[str, dict[str, Any]] = {"float32": {"dtype": "float32"}, "batch 8": {"request": Request(batch=8)}}
_WHOLE, _WHOLE_NO_WAITING = "whole modules", "whole modules, no waiting"
_READINGS = (  # claim, name, families, setting
    ("c001", "Convolution, latent diffusion", ("latent_diffusion",), _PROJECTED),
    ("c001", "Convolution, pixel diffusion", ("cascaded_diffusion",), _PROJECTED),
    ("c002", "Linear, transformers, by operator", claims.TRANSFORMER, _PROJECTED),
    ("c002", "Linear, transformers, attention modules whole", claims.TRANSFORMER, _WHOLE),
    ("c002", "the same without waiting for the host", claims.TRANSFORMER, _WHOLE_NO_WAITING),
)


def to_measure(measured: str, names: Sequence[str]) -> list[str]:
    """Models to measure scaled down: the first of each family of ``names``, or those named by comma, or none for "".

    ``one per family`` leaves those out that make video from frames, which take longer than all others.
    """
    if measured != "one per family":
        return in_order(measured) if measured else []
    return list({get_spec(name).family: name for name in reversed(judged(names))}.values())[::-1]


def projected_shares(tables: Mapping[str, pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """Projected time of each operator category, of every counted model with flash and with eager attention.

    Columns: those of `totals.totals` by ``model`` and ``category``, and ``attention``, ``run`` (model and
    attention), ``share`` (% of the run's time), ``gpu``, ``time_kind``.
    """
    made = (
        (name, kernel, project(table, gpu=gpu, attention=kernel))
        for name, table in tables.items()
        for kernel in _KERNELS
    )
    return _shares(made).assign(gpu=gpu, time_kind="projected")


@alone()
def measured_shares(names: Sequence[str], *, samples: int, progress: bool = False) -> pd.DataFrame:
    """As `projected_shares`, of scaled-down models measured on this CPU; ``machine`` instead of ``gpu``."""
    bar = tqdm([(name, kernel) for name in names for kernel in _KERNELS], desc="measure", disable=not progress)
    options: dict[str, Any] = {"tiny": True, "samples": samples, "progress": False}
    made = ((name, kernel, measure(name, attention=kernel, **options)) for name, kernel in bar)
    return _shares(made).assign(machine=processor(), time_kind="measured")


def _shares(made: Iterable[tuple[str, str, pd.DataFrame]]) -> pd.DataFrame:
    parts = [
        totals(timed, ["model", "category"]).assign(attention=kernel, run=f"{name}, {kernel}")
        for name, kernel, timed in made
    ]
    out = pd.concat(parts, ignore_index=True)
    return out.assign(share=100 * out["time_s"] / out.groupby("run")["time_s"].transform("sum"))


def in_percent(shares: pd.DataFrame) -> pd.DataFrame:
    """Shares as a table to read: a row per model and attention, a column per category, and ``total_s``."""
    rows = shares.groupby(["model", "attention"], sort=False)
    wide = shares.pivot_table(index=["model", "attention"], columns="category", values="share", sort=False)
    return wide.fillna(0).round(1).assign(total_s=rows["time_s"].sum())


def flop_and_time(projected: pd.DataFrame, *, gpu: str) -> Figure:
    """Shares of FLOPs (counted) above those of time, by category, of the runs with flash attention."""
    flash = projected[projected["attention"] == "flash"]
    size = {"figsize": (7.0, 2.2 + 0.72 * flash["model"].nunique())}
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, layout="constrained", **size)
    computes = flash[flash["flop"] > 0].assign(tflop=flash["flop"] / 1e12, time_kind="counted")
    operator_breakdown(computes, label="model", value="tflop", unit="TFLOP", title="FLOPs (counted)", ax=upper)
    title = f"time (projected on {gpu}, flash attention)"
    operator_breakdown(flash, label="model", value="time_s", title=title, ax=lower)
    upper.get_legend().remove()  # the one below has all categories
    upper.set_xlabel("")
    return figure


def main_category(name: str) -> str:
    """What the paper says takes most of the time of such a model: ``Convolution`` or ``Linear``."""
    return "Convolution" if get_spec(name).family in CONVOLUTIONAL else "Linear"


def judged(names: Iterable[str]) -> list[str]:
    """The models that the paper's statements are about: all but those that make video from frames, if there are any."""
    names = list(names)
    return [name for name in names if get_spec(name).family != "video_cascade"] or names


def assumptions() -> dict[str, Efficiency]:
    """The efficiencies of a projection, as they are and with one of them changed at a time."""
    rates = Efficiency()
    changes = {
        _PROJECTED: {},
        "convolutions fed half as well": {"fed_convolution": rates.fed_convolution / 2},
        "convolutions fed as products": {"fed_convolution": rates.fed},
        "no layout copies": {"layout": 1e6},
        "products fed half as well": {"fed": rates.fed / 2},
        "host twice as slow": {"dispatch_s": 2 * rates.dispatch_s},
        _NO_WAITING: {"dispatch_s": 0.0},
    }
    return {setting: Efficiency(**change) for setting, change in changes.items()}


def assumed_shares(
    tables: Mapping[str, pd.DataFrame], *, gpu: str, tiny: bool = False, progress: bool = False
) -> pd.DataFrame:
    """Share of time of each model's `main_category`, with one assumption changed at a time, flash attention.

    Settings are those of `assumptions`, another number type, a larger batch, and for Linear ``whole modules``: all that
    is inside a module that holds attention taken for attention. Columns: ``model``, ``category``, ``setting``,
    ``share`` (%), ``gpu``, ``time_kind``.
    """
    rows = []
    for name in tqdm(judged(tables), desc="assumptions", disable=not progress):
        for setting, share in _of_model(name, tables[name], gpu=gpu, tiny=tiny):
            rows.append((name, main_category(name), setting, share))
    out = pd.DataFrame(rows, columns=["model", "category", "setting", "share"])
    return out.assign(gpu=gpu, time_kind="projected")


def _of_model(name: str, table: pd.DataFrame, *, gpu: str, tiny: bool) -> Iterator[tuple[str, float]]:
    kind, whole = main_category(name), {}
    for setting, efficiency in assumptions().items():
        timed = project(table, gpu=gpu, attention="flash", efficiency=efficiency)
        yield setting, _share(timed, timed["category"] == kind)
        if kind == "Linear" and setting in (_PROJECTED, _NO_WAITING):
            whole[setting] = _share(timed, outside_attention(table))
    for setting, change in _REQUESTED.items():
        counted = count(name, tiny=tiny, **{"dtype": table.attrs["dtype"], **change})
        timed = project(counted, gpu=gpu, attention="flash")
        yield setting, _share(timed, timed["category"] == kind)
    yield from ((_WHOLE if setting == _PROJECTED else _WHOLE_NO_WAITING, share) for setting, share in whole.items())


def _share(timed: pd.DataFrame, rows: pd.Series) -> float:
    return float(claims.share_by_model(timed, rows).iloc[0])


def outside_attention(table: pd.DataFrame) -> pd.Series:
    """The rows of Linear that lie in no module which holds attention of any kind."""
    inside = table["attention"] != ""
    for kind in set(table["attention"]) - {""}:
        inside |= claims.attention_block(table, kind)
    return (table["category"] == "Linear") & ~inside


def by_setting(shares: pd.DataFrame) -> pd.DataFrame:
    """A table of `assumed_shares` with a row per category and model, a column per setting (%)."""
    return shares.pivot_table(index=["category", "model"], columns="setting", values="share", sort=False)


def decisive(shares: pd.DataFrame) -> pd.DataFrame:
    """The table of `by_setting` in whole percent, and the setting that moves each share most, ``decides``."""
    wide = by_setting(shares)
    moved = wide.sub(wide[_PROJECTED], axis=0).drop(columns=_PROJECTED)
    return wide.round(0).assign(decides=moved.abs().idxmax(axis=1))


def sensitivity_panels(shares: pd.DataFrame, *, gpu: str) -> Figure:
    """A panel per category of `assumed_shares`, a line per model, a mark per setting, beside the paper's value (%)."""
    require(shares, "model", "category", "setting", "share")
    said, panels = claims.statements().set_index("id")["value"], list(shares.groupby("category"))
    heights = [1 + rows["model"].nunique() for _, rows in panels]
    size = {"figsize": (6.4, 0.5 * sum(heights) + 1.2 * len(panels) + 1.0), "height_ratios": heights}
    figure, axs = plt.subplots(len(panels), 1, layout="constrained", squeeze=False, **size)
    for ax, (kind, rows) in zip(axs[:, 0], panels, strict=True):
        most = said[CLAIMS[str(kind)]]
        sensitivity(rows, paper=float(most), ax=ax)
        ax.set_title(f"{kind}: share of time projected on {gpu}; dashed: up to {most} %", fontsize=10)
        ax.get_legend().remove()
    legend_below(axs[-1, 0], ncols=2)  # of all settings: those of Linear are more than those of Convolution
    return figure


def largest_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """The largest share in each reading of what the paper says, beside its value, from `assumed_shares`.

    Columns: ``claim``, ``reading``, ``model``, ``share`` (%), ``said`` (%), ``near`` (whether within
    `claims.NEAR` of it); readings of which there is no model are left out.
    """
    said, rows = claims.statements().set_index("id")["value"], []
    settings = {str(setting): part.set_index("model")["share"] for setting, part in shares.groupby("setting")}
    for claim, reading, families, setting in _READINGS:
        ours = claims.in_families(settings.get(setting, pd.Series(dtype=float)), families)
        if len(ours):
            rows.append((claim, reading, ours.idxmax(), ours.max(), float(said[claim])))
    out = pd.DataFrame(rows, columns=["claim", "reading", "model", "share", "said"])
    return out.assign(near=(out["share"] / out["said"] - 1).abs() <= claims.NEAR)


def judged_speeds(published: pd.DataFrame) -> pd.DataFrame:
    """Of `claims.published_beside_projected` what the fit has seen, with ``times``: how many times off, at least 1.

    LLaMA in eager mode is left out, whose host is slower than those of the fit.
    """
    rows = published[~((published["unit"] == "tokens/s") & (published["execution"] == "eager"))]
    ratio = (rows["projected"] / rows["published"]).astype(float)
    return rows.assign(times=ratio.where(ratio > 1, 1 / ratio))


def learned(shares: pd.DataFrame, projected: pd.DataFrame) -> str:
    """A line per model as Markdown: share of time, share of FLOPs, and between which assumptions it moves."""
    flop = projected[projected["attention"] == "flash"].pivot_table(index="model", columns="category", values="flop")
    flop, lines = 100 * flop.div(flop.sum(axis=1), axis=0), []
    for (kind, name), row in by_setting(shares).iterrows():
        low, high = row.idxmin(), row.idxmax()
        text = f"- **{name}**, {kind}: {row[_PROJECTED]:.0f} % of time, {flop.at[name, kind]:.0f} % of FLOPs;"
        lines.append(f"{text} from {row[low]:.0f} % ({low}) to {row[high]:.0f} % ({high})")
    return "\n".join(lines)
