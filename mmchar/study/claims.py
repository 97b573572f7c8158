"""Shares and gains of operator tables that claims are about, the statements themselves, and published speeds.

Statements are data (``data/reference/claims.csv``); `verdicts` judges them.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate

import pandas as pd

from mmchar.models.loading import get_spec
from mmchar.projection.energy_model import Power
from mmchar.projection.evidence.cases import predict, published_cases
from mmchar.projection.roofline import Rates
from mmchar.provenance import REFERENCE
from mmchar.tables.totals import totals

DIFFUSION = ("latent_diffusion", "cascaded_diffusion")
TRANSFORMER = ("parallel_decode", "encoder_decoder", "video_transformer")
NEAR = 0.25  # "up to X" agrees when our maximum is within a quarter of X: other models, other hardware, other year


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
