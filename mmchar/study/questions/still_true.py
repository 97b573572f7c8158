"""Whether the papers' statements hold for later models: by year, by length, between frames, by part of a generation."""

import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from mmchar.counting.frame_shares import frame_shares
from mmchar.models.loading import get_spec
from mmchar.projection.roofline import project
from mmchar.study.drawing.look import KIND_COLORS, PALETTE, amount, axes, require
from mmchar.study.drawing.plots import sensitivity, stacked_shares
from mmchar.study.experiments import listed
from mmchar.study.findings import Findings

# Of each kind and year what was used most: U-Nets, transformers, video, autoregressive, few steps.
MODELS = (
    "ddpm-celebahq-256,adm-imagenet-256,stable-diffusion-1.5,imagen,dit-xl-2-512,sdxl-base-1.0,muse-3b,svd-xt,"
    "modelscope-t2v-1.7b,pixart-sigma-1024,sd3-medium,flux.1-dev,flux.1-schnell,cogvideox-5b,hunyuanvideo,"
    "janus-pro-7b,wan2.1-t2v-14b,qwen-image,sana-1.5-1.6b,z-image-turbo,flux.2-dev,flux.2-klein-4b"
)
PART_COLORS = {
    "encoders": PALETTE[2],
    "denoiser, language model": PALETTE[0],
    "image decoder": PALETTE[1],
    "between the networks": "#d9d9d9",
}
PAIR_COLORS = {
    "same frame": KIND_COLORS["spatial"],
    "same place, other frame": KIND_COLORS["temporal"],
    "other place, other frame": KIND_COLORS["joint"],
    "text": KIND_COLORS["cross"],
}
_PARTS = (  # of a stage, by its name; every other one is the network that is asked again and again
    (re.compile(r"pipeline"), "between the networks"),
    (re.compile(r"encode"), "encoders"),
    (re.compile(r"decode_(?:image|video)|vae|vocode"), "image decoder"),
)


def by_year(models: str | Sequence[str], needs: str = "") -> list[str]:
    """Names of models, in a text or a list, or ``all`` (of `MODELS`), by year; ValueError for one without ``needs``."""
    names = dict.fromkeys(listed(MODELS if models == "all" else models))
    for name in names:
        if needs and needs not in get_spec(name).request:
            raise ValueError(f"{name} takes no {needs!r}; choose a model that does (mmchar models)")
    return sorted(names, key=lambda name: get_spec(name).year)


def part_of(stage: str) -> str:
    """The part of a generation that a stage belongs to, one of `PART_COLORS`."""
    return next((part for pattern, part in _PARTS if pattern.match(stage)), "denoiser, language model")


def parts(table: pd.DataFrame) -> pd.Series:
    """The part of a generation that each row belongs to."""
    return table["stage"].astype(str).map(part_of)


def share(amounts: pd.Series, rows: pd.Series) -> float:
    """Percent that ``rows`` have of an amount; in floating point, as FLOPs of a video times 100 leave 64 bits."""
    amounts = amounts.astype(float)
    return float(100 * amounts[rows].sum() / amounts.sum())


def category_shares(tables: Mapping[str, pd.DataFrame], category: str, *, gpu: str) -> pd.DataFrame:
    """Percent that a category has of each generation's FLOPs and projected time, before and after fused attention.

    Columns: ``model`` (in the order of ``tables``), ``year``, ``setting``, ``share`` (%),
    ``total`` (of 1e12 FLOP, or seconds), ``gpu`` and ``time_kind``. The last setting leaves encoders, image decoder and
    what runs between the networks out.
    """
    rows = []
    for name, table in tables.items():
        eager, flash = (project(table, gpu=gpu, attention=kernel) for kernel in ("eager", "flash"))
        alone = flash[parts(flash) == "denoiser, language model"]
        settings = {
            "FLOPs (counted)": (table, table["flop"] / 1e12, "counted"),
            "time, eager attention": (eager, eager["time_s"], "projected"),
            "time, fused attention": (flash, flash["time_s"], "projected"),
            "the same without encoders and decoders": (alone, alone["time_s"], "projected"),
        }
        year = get_spec(name).year
        for setting, (rows_of, each, kind) in settings.items():
            total = each * rows_of["repeats"]
            found = share(total, rows_of["category"] == category), total.sum()
            rows.append((name, year, setting, *found, kind))
    columns = ["model", "year", "setting", "share", "total", "time_kind"]
    return pd.DataFrame(rows, columns=columns).assign(gpu=gpu)


def core_shares(tables: Iterable[pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """How much of a denoiser's work attention cores are, and from which length on they are most of it.

    Columns: ``model``, ``case`` (its size), ``tokens`` (the longest sequence that attends to itself), ``share`` (% of
    the FLOPs of the denoising stages), ``time_share`` (% of their projected time, fused attention), ``half`` (tokens at
    which cores would be half of the FLOPs: they grow with tokens^2, all else with tokens), ``gpu``, ``time_kind``.
    Raises a ValueError for a model without a denoiser that compares tokens.
    """
    rows = []
    for table in tables:
        model, asked = table.attrs["model"], table.attrs["request"]
        timed = project(table, gpu=gpu, attention="flash")
        timed = timed[timed["stage"].astype(str).str.startswith("denoise")]
        own = timed["attention"].isin(["self", "joint", "spatial", "temporal"])
        if not own.any():
            raise ValueError(f"{model} has no denoiser whose tokens attend to each other; choose another model")
        tokens, core = int(timed.loc[own, "q_len"].max()), timed["category"] == "Attention"
        flop, time = (share(timed[name] * timed["repeats"], core) for name in ("flop", "time_s"))
        case = f"{asked['height']}p x {asked['frames']}" if "frames" in asked else f"{asked['height']} px"
        rows.append((model, case, tokens, flop, time, tokens * (100 - flop) / flop))
    columns = ["model", "case", "tokens", "share", "time_share", "half"]
    return pd.DataFrame(rows, columns=columns).assign(gpu=gpu, time_kind="projected")


def frame_pairs(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Shares (%) of a video's query-key pairs by what they join: the names of `PAIR_COLORS`, a row per stage.

    With F latent frames of P tokens in one sequence, ``F (F - 1) P`` of its ``(F P)^2`` pairs join a place with the
    same place in another frame, which is all that a temporal attention joins. Columns besides: ``case`` (model, how it
    attends, frames x tokens of one), ``model``, ``how``, ``frames``, ``tokens_per_frame``.
    """
    found = []
    for table in tables:
        for row in frame_shares(table).to_dict("records"):
            joint, across = row["how"] == "full 3-D", 100 * row["cross_frame"]
            place = across / row["tokens_per_frame"] if joint else across
            shares = (100 * row["same_frame"], place, across - place, 100 * row["text"])
            about = {key: row[key] for key in ("how", "frames", "tokens_per_frame")}
            case = f"{table.attrs['model']}, {row['how']}, {row['frames']} x {row['tokens_per_frame']:,}"
            named = dict(zip(PAIR_COLORS, shares, strict=True))
            found.append({"case": case, "model": table.attrs["model"], **about, **named})
    return pd.DataFrame(found)


def part_shares(tables: Iterable[pd.DataFrame], *, gpu: str) -> pd.DataFrame:
    """Projected seconds of each part of a generation, with fused attention.

    Columns: ``case`` (model, steps, and whether it could be guided and is not), a part of `PART_COLORS` each (s),
    ``total_s``, ``gpu``, ``time_kind``.
    """
    rows = []
    for table in tables:
        timed, asked = project(table, gpu=gpu, attention="flash"), table.attrs["request"]
        steps, alone = asked["steps"], ", not guided" * (asked.get("guidance", 2) <= 1)
        case = f"{table.attrs['model']}, {steps} step{'s' * (steps != 1)}{alone}"
        seconds = (timed["time_s"] * timed["repeats"]).groupby(parts(timed)).sum()
        rows.append({"case": case, **seconds.reindex(list(PART_COLORS), fill_value=0.0), "total_s": seconds.sum()})
    return pd.DataFrame(rows).assign(gpu=gpu, time_kind="projected")


def check_all(found: Findings, *, sizes: bool = True) -> None:
    """Hold the tables that notebook 11 keeps against what it expected; without ``sizes`` only what holds at any."""
    tables = found.tables
    if sizes:
        cores = tables["attention"].set_index(["model", "case"])["share"]
        of = {
            ("hunyuanvideo", "720p x 129"): 87,
            ("wan2.1-t2v-14b", "480p x 81"): 53,
            ("wan2.1-t2v-14b", "720p x 81"): 72,
        }
        for case, expected in of.items():
            if case in cores.index:
                found.near(f"cores of {' '.join(case)}", expected, cores[case], 1, unit="%")
        crossing = tables["crossovers"].set_index("model")["FLOP"]
        for name, expected in {"stable-diffusion-1.5": 960, "sdxl-base-1.0": 1470}.items():
            if name in crossing.index:
                found.near(f"crossover of {name}", expected, crossing[name], 20, unit="px")
    full = tables["pairs"][tables["pairs"]["how"] == "full 3-D"]
    if len(full):
        within = (full["same frame"] / (100 - full["text"]) * full["frames"]).max()
        found.near("pairs within a frame x frames", 1, within, 1e-6)
    use = tables["weights"]
    decode = use.loc[(use["model"] == "llama-2-7b") & (use["stage"] == "decode"), "uses"]
    found.near("positions per read, decode", 1, decode.max(), 1e-6)


def plot_years(data: pd.DataFrame, *, paper: float, ax: Axes | None = None) -> Axes:
    """Share of a category in each model, by year, beside a paper's value. The table is one from `category_shares`."""
    dated = data.assign(model=data["year"].astype(str) + "  " + data["model"])
    ax = sensitivity(dated, paper=paper, ax=axes(ax, width=9.0, height=1.4 + 0.3 * data["model"].nunique()))
    ax.set(xlabel="share (%)", xlim=(-2, 102))
    return ax


def plot_pairs(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Query-key pairs of each video model by what they join. The table is one from `frame_pairs`."""
    require(data, "case", *PAIR_COLORS)
    ax = axes(ax, width=9.0, height=1.3 + 0.36 * len(data))
    totals = [f"{place:.2g} % same place" for place in data["same place, other frame"]]
    shares = data.set_index("case")[list(PAIR_COLORS)]
    stacked_shares(shares, colors=PAIR_COLORS, totals=totals, kinds=["counted"] * len(data), ax=ax)
    ax.set(xlabel="share of query-key pairs (%)", xlim=(0, 132))
    return ax


def plot_parts(data: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of each part in the projected time of a generation, with its total. The table is one of `part_shares`."""
    require(data, "case", "total_s", *PART_COLORS)
    ax = axes(ax, width=9.0, height=1.3 + 0.36 * len(data))
    shares = 100 * data.set_index("case")[list(PART_COLORS)].div(data["total_s"].to_numpy(), axis=0)
    totals = [f"{amount(each)} s" for each in data["total_s"]]
    stacked_shares(shares, colors=PART_COLORS, totals=totals, kinds=data["time_kind"], ax=ax)
    ax.set_xlabel("share of projected time (%)")
    return ax
