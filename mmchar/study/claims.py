"""The papers' statements as functions of the operator table: what they say, what we get, and the verdict.

Statements are data (``data/reference/claims.csv``). Only those that were read where they stand are judged here.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pandas as pd
from tqdm import tqdm

from mmchar.counting.operator_table import count
from mmchar.counting.seqlen import variation
from mmchar.models.loading import get_spec, zoo_names
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.cases import predict, published_cases
from mmchar.projection.roofline import Rates, project
from mmchar.provenance import REFERENCE
from mmchar.study.experiments import PAPER, totals
from mmchar.tracing.attention import BACKENDS

DIFFUSION = ("latent_diffusion", "cascaded_diffusion")
VIDEO = ("video_cascade",)
TRANSFORMER = ("parallel_decode", "encoder_decoder", "video_transformer")
NEAR = 0.25  # "up to X" agrees when our maximum is within a quarter of X: other models, other hardware, other year


@dataclass(frozen=True)
class Claim:
    """One statement: the range of values that would agree with it, and how to get ours from two tables.

    ``value(flash, eager)`` takes tables with time, of the same models with fused and with eager attention.
    """

    id: str
    paper: str
    agrees: tuple[float, float]
    unit: str
    how: str
    value: Callable[[pd.DataFrame, pd.DataFrame], pd.Series]


def share_by_model(table: pd.DataFrame, rows: pd.Series, within: pd.Series | None = None) -> pd.Series:
    """Share of time, in percent per model, that ``rows`` take of the rows ``within`` (default: of all)."""
    time = table["time_s"] * table["repeats"]
    model = table["model"].astype(str)
    whole = (time if within is None else time.where(within, 0.0)).groupby(model).sum()
    part = time.where(rows, 0.0).groupby(model).sum()
    return (100 * part / whole).dropna()


def speedup_by_model(flash: pd.DataFrame, eager: pd.DataFrame, *, attention_only: bool = False) -> pd.Series:
    """Time with eager attention over time with fused attention, per model: of everything, or of attention cores."""
    tables = [table[table["attention"] != ""] if attention_only else table for table in (eager, flash)]
    slow, fast = (totals(table, ["model"]).set_index("model")["time_s"].sort_index() for table in tables)
    return slow / fast


def in_families(values: pd.Series, families: Sequence[str]) -> pd.Series:
    """The entries whose model belongs to one of the families."""
    return values[[get_spec(name).family in families for name in values.index]]


def attention_block(table: pd.DataFrame, kind: str) -> pd.Series:
    """Rows of every module that holds attention of a kind: the core with its projections, copies and masks."""
    sites = pd.MultiIndex.from_frame(table[["model", "stage", "module"]].astype(str))
    cores, inside = set(sites[table["attention"] == kind]), {}
    for model, stage, module in sites.unique():
        within = accumulate(module.split("."), "{}.{}".format)  # a, a.b, a.b.c
        inside[model, stage, module] = any((model, stage, path) in cores for path in within)
    return pd.Series([inside[site] for site in sites], index=table.index, dtype=bool)


def temporal_share(table: pd.DataFrame) -> pd.Series:
    """Temporal attention in percent of spatial and temporal attention time, per model that has it; cores only."""
    temporal, spatial = (table["attention"] == kind for kind in ("temporal", "spatial"))
    share = share_by_model(table, temporal, temporal | spatial)
    return share[share > 0]


def projected_suite(
    *, gpu: str, dtype: str = "bfloat16", execution: str = "eager", progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's models at their defaults, projected with fused and with eager attention."""
    parts: dict[str, list[pd.DataFrame]] = {backend: [] for backend in BACKENDS}
    for name in tqdm(zoo_names(PAPER), desc="count and project", disable=not progress):
        table = count(name, dtype=dtype)
        for backend, projected in parts.items():
            projected.append(project(table, gpu=gpu, attention=backend, execution=execution))
    return pd.concat(parts["flash"], ignore_index=True), pd.concat(parts["eager"], ignore_index=True)


def scorecard(flash: pd.DataFrame, eager: pd.DataFrame) -> pd.DataFrame:
    """Every judged claim: what the paper says, what we get per model, and whether they agree.

    Columns: id, statement, paper (its value), ours, unit, low, high (our range over models), agrees_from, agrees_to,
    verdict (``agrees`` or ``differs``), how, models, source.
    """
    said = statements().set_index("id")
    return pd.DataFrame([_judged(claim, claim.value(flash, eager), said.loc[claim.id]) for claim in CLAIMS])


def _judged(claim: Claim, ours: pd.Series, said: pd.Series) -> dict[str, object]:
    one = ours.max() if claim.how.startswith("largest") else ours.median()
    low, high = claim.agrees
    return {
        "id": claim.id,
        "statement": said["statement"],
        "paper": claim.paper,
        "ours": round(float(one), 3),
        "unit": claim.unit,
        "low": round(float(ours.min()), 3),
        "high": round(float(ours.max()), 3),
        "agrees_from": low,
        "agrees_to": high,
        "verdict": "agrees" if low <= one <= high else "differs",
        "how": claim.how,
        "models": ", ".join(map(str, ours.index)),
        "source": said["source"],
    }


def statements() -> pd.DataFrame:
    """All statements that we know of, with where they stand; ``read`` says whether we saw them there."""
    path = REFERENCE / "claims.csv"
    if not path.is_file():
        raise ValueError("data/reference/claims.csv is missing; claims need a checkout of the repository")
    return pd.read_csv(path, keep_default_na=False)


def published_beside_projected(models: Collection[str] | None = None) -> pd.DataFrame:
    """Speeds that others published, of these models or of all, each beside our projection of the same configuration.

    What a projection cannot express (`published_speeds`) is left out; a rate in tokens/s is that of the decode stage.
    Columns: ``model, gpu, gpus, family, dtype, attention, execution, part, setting, unit, published, projected,
    difference_percent, source``; values in the row's unit.
    """
    rows = []
    for case in published_cases(models):
        told, published = predict(case, Rates(), Power()), case.asked["value"]
        ratio = 1 + told["latency_error"]
        projected = published / ratio if case.asked["unit"].endswith("/s") else published * ratio
        rows.append(case.asked | {"published": published, "projected": projected})
    columns = "model gpu gpus family dtype attention execution part setting unit published projected"
    table = pd.DataFrame(rows, columns=[*columns.split(), "source"])
    difference = 100 * (table["projected"].astype(float) / table["published"].astype(float) - 1)
    table.insert(len(table.columns) - 1, "difference_percent", difference)
    return table


def _share_of(category: str, families: Sequence[str]) -> Callable[[pd.DataFrame, pd.DataFrame], pd.Series]:
    return lambda flash, _eager: in_families(share_by_model(flash, flash["category"] == category), families)


def _flash_gain_ratio(flash: pd.DataFrame, eager: pd.DataFrame) -> pd.Series:
    """End-to-end gain of each diffusion model over that of each decode-like model."""
    gain = speedup_by_model(flash, eager)
    diffusion, decode = in_families(gain, DIFFUSION), in_families(gain, ("encoder_decoder", "autoregressive"))
    return pd.Series({f"{a} / {b}": x / y for a, x in diffusion.items() for b, y in decode.items()})


def _length_variation(flash: pd.DataFrame, _eager: pd.DataFrame) -> pd.Series:
    own = flash[(flash["category"] == "Attention") & flash["stage"].astype(str).str.startswith("denoise")]
    neighbours = variation(own, ("model", "stage", "attention")).groupby("model")["neighbours"].max()
    return in_families(neighbours, DIFFUSION)


def _suite(_flash: pd.DataFrame, _eager: pd.DataFrame) -> pd.Series:
    paper = {"llama", "imagen", "stable", "muse", "parti", "emu", "make", "phenaki"}
    return pd.Series({"zoo": len({name.split("-")[0] for name in zoo_names(PAPER)} & paper)})


def _near(value: float) -> tuple[float, float]:
    return value * (1 - NEAR), value * (1 + NEAR)


_OF_CONVOLUTION = "largest share of Convolution over diffusion image models, fused attention"
_OF_LINEAR = "largest share of Linear over transformer image and video models, fused attention"
_OF_GAIN = "median over pairs of end-to-end gain: diffusion over decode-like models"
_OF_LENGTHS = "largest ratio of self-attention lengths between neighbouring levels of a U-Net"
_OF_TEMPORAL = "median share of temporal in spatial and temporal attention cores"
CLAIMS = (
    Claim("c001", "up to 44", _near(44), "% of time", _OF_CONVOLUTION, _share_of("Convolution", DIFFUSION)),
    Claim("c002", "up to 49", _near(49), "% of time", _OF_LINEAR, _share_of("Linear", TRANSFORMER)),
    Claim("c003", "1.1 to 2.5", (1.1, 2.5), "x", _OF_GAIN, _flash_gain_ratio),
    Claim("c004", "up to 4", _near(4), "x", _OF_LENGTHS, _length_variation),
    Claim(
        "c005",
        "over 60",
        (60, 100),
        "% of attention time",
        _OF_TEMPORAL,
        lambda flash, _: in_families(temporal_share(flash), VIDEO),
    ),
    Claim("c006", "8", (8, 8), "models", "median number of the paper's models in the zoo", _suite),
)
