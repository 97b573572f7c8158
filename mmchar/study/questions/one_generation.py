"""One generation from every side: its networks and stages, arithmetic, lengths, time, memory, what was expected."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mmchar.counting import seqlen
from mmchar.counting.operator_table import count
from mmchar.measuring.profiling import summarize_measured
from mmchar.models.specs import ModelSpec
from mmchar.projection.data_sheets import get_gpu
from mmchar.provenance import processor
from mmchar.tables.totals import totals
from mmchar.tracing.attention import ITEM_BYTES

if TYPE_CHECKING:
    from mmchar.generation.recording import Stage

ROW = ["stage", "repeats", "module", "op", "category", "attention", "q_len", "kv_len", "flop", "read_bytes"]


def networks(spec: ModelSpec) -> pd.DataFrame:
    """A row per network of a model: ``component``, ``class``, ``source`` (of its configuration)."""
    rows = [(role, part.cls, part.source) for role, part in spec.components.items()]
    return pd.DataFrame(rows, columns=["component", "class", "source"])


def steps(plan: "Sequence[Stage]") -> pd.DataFrame:
    """A row per stage of a generation: ``stage``, what it ``runs``, ``repeats``, ``sizes`` of its inputs."""
    rows = [(stage.name, stage.component, stage.repeats, stage.sizes) for stage in plan]
    return pd.DataFrame(rows, columns=["stage", "runs", "repeats", "sizes"])


def lengths_by_form(spec: ModelSpec, plan: "Sequence[Stage]") -> pd.DataFrame | None:
    """The lengths of every attention, in the columns of `seqlen.closed_form`; None for a model without one."""
    return seqlen.closed_form_of(spec, plan) if seqlen.has_closed_form(spec) else None


def same_lengths(lengths: pd.DataFrame, seen: pd.DataFrame) -> bool:
    """Whether two tables of lengths are equal, row by row, in any order."""
    keys = list(seen.columns)
    return seen.sort_values(keys, ignore_index=True).equals(lengths.sort_values(keys, ignore_index=True))


def largest_matrix_bytes(lengths: pd.DataFrame, dtype: str) -> int:
    """Bytes of the largest similarity matrix of one call; 0 for a model without attention."""
    return int(seqlen.similarity_memory(lengths, ITEM_BYTES[dtype]).max()) if len(lengths) else 0


def published_params(spec: ModelSpec) -> dict[str, int]:
    """Published parameters of those networks of which a number was published."""
    return {role: part.published_params for role, part in spec.components.items() if part.published_params}


def built_over_published(table: pd.DataFrame, spec: ModelSpec) -> float:
    """Parameters as built over those published, of the networks that both are known of; 1 without any."""
    known = published_params(spec)
    return sum(table.attrs["params"][role] for role in known) / sum(known.values()) if known else 1.0


def expected(spec: ModelSpec, lengths: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """What sizes alone say before anything is counted: ``what``, ``expected``, ``from``."""
    many, item = sum(published_params(spec).values()), ITEM_BYTES[dtype]
    matrix = f"{largest_matrix_bytes(lengths, dtype) / 1e9:.3g}"
    rows = [
        ("published parameters", f"{many:,}", "sources in the model's file"),
        ("weights (GB)", f"{many * item / 1e9:.3g}", f"{item} bytes each"),
        ("largest similarity matrix (GB)", matrix, "closed form" if seqlen.has_closed_form(spec) else "the count"),
    ]
    return pd.DataFrame(rows, columns=["what", "expected", "from"])


def tera_flop(table: pd.DataFrame) -> pd.DataFrame:
    """TFLOP of one generation: a row per category and ``total``, a column per stage and ``all``."""
    cells = table[["category", "stage"]].astype(str).assign(flop=table["flop"] * table["repeats"])
    out = cells.pivot_table(index="category", columns="stage", values="flop", aggfunc="sum", sort=False)
    out = out.fillna(0) / 1e12
    out.loc["total"] = out.sum()
    return out.assign(all=out.sum(axis=1))


def heaviest(table: pd.DataFrame, rows: int = 5) -> pd.DataFrame:
    """The rows of an operator table with the most FLOP of all executions, in its main columns."""
    return table.loc[(table["flop"] * table["repeats"]).nlargest(rows).index, ROW]


def by_stage(flash: pd.DataFrame, eager: pd.DataFrame) -> pd.DataFrame:
    """Projected seconds of each stage and in ``total``: ``flash_s``, ``eager_s``, ``eager / flash``."""
    both = {"flash_s": flash, "eager_s": eager}
    out = pd.DataFrame({name: totals(each, ["stage"]).set_index("stage")["time_s"] for name, each in both.items()})
    out.loc["total"] = out.sum()
    return out.assign(**{"eager / flash": out["eager_s"] / out["flash_s"]})


def bounds(timed: pd.DataFrame) -> pd.DataFrame:
    """What bounds each stage, in whole percent of its projected time: ``% memory`` and so on."""
    sums = totals(timed, ["stage", "bound"]).pivot_table(index="stage", columns="bound", values="time_s", sort=False)
    return (100 * sums.div(sums.sum(axis=1), axis=0)).fillna(0).round(0).add_prefix("% ")


def measured_stages(measured: pd.DataFrame) -> pd.DataFrame:
    """A row per measured stage, with what it was measured on.

    Columns: ``stage, repeats``, ``median_s`` and ``iqr_s`` of one execution, ``coverage`` and ``coverage_of_run`` (how
    much of the operators' and of the stage's time is in rows), ``model, threads, dtype, machine, time_kind``.
    """
    shown = ["stage", "repeats", "median_s", "iqr_s", "coverage", "coverage_of_run"]
    about = {name: measured.attrs[name] for name in ("model", "threads", "dtype")}
    rows = pd.DataFrame(summarize_measured(measured)["stages"])[shown]
    return rows.assign(**about, machine=processor(), time_kind="measured")


def breakdown(runs: Mapping[str, pd.DataFrame], model: str) -> pd.DataFrame:
    """Time by category of several tables, named by ``run``: `totals.totals`, ``time_kind``, ``model``."""
    parts = [totals(t, ["category"]).assign(run=run, time_kind=t["time_kind"].iloc[0]) for run, t in runs.items()]
    return pd.concat(parts, ignore_index=True).assign(model=model)


def timeline(flash: pd.DataFrame, eager: pd.DataFrame) -> pd.DataFrame:
    """Activation bytes alive at every operator call: ``model, stage, module, live_bytes, live_eager_bytes``."""
    return flash[["model", "stage", "module", "live_bytes"]].assign(live_eager_bytes=eager["live_bytes"])


def floor_s(table: pd.DataFrame, gpu: str) -> float:
    """Seconds that the arithmetic would take at the peak of the GPU's data sheet."""
    return float((table["flop"] * table["repeats"]).sum() / get_gpu(gpu).peak(table.attrs["dtype"]))


def flop_counted_and_measured(measured: pd.DataFrame, model: str, plan: "Sequence[Stage]") -> tuple[int, int]:
    """FLOP of the scaled-down generation as counted, and of the rows that were measured.

    Stages over a growing cache are left out, which are measured at the middle of their steps only.
    """
    growing = [stage.name for stage in plan if stage.grows]
    counted = count(model, dtype=measured.attrs["dtype"], tiny=True)
    rows = [table[~table["stage"].isin(growing)] for table in (counted, measured)]
    one, two = (int((table["flop"] * table["repeats"]).sum()) for table in rows)
    return one, two


def learned(flash: pd.DataFrame, eager: pd.DataFrame, gpu: str) -> str:
    """What came out, as a list in Markdown, from the two projected tables of a generation."""
    times, flop = by_stage(flash, eager), (flash["flop"] * flash["repeats"]).sum() / 1e12
    total_s, least_s, stage = times.at["total", "flash_s"], floor_s(flash, gpu), times["flash_s"].iloc[:-1].idxmax()
    share = 100 * totals(flash, ["category"]).set_index("category")["time_s"] / total_s
    of_stage, slower = 100 * times.at[stage, "flash_s"] / total_s, times.at["total", "eager / flash"]
    weights = sum(flash.attrs["params"].values()) * ITEM_BYTES[flash.attrs["dtype"]]
    gb, live, live_eager = (size / 1e9 for size in (weights, flash["live_bytes"].max(), eager["live_bytes"].max()))
    return f"""- One generation is {flop:,.3g} TFLOP and {total_s:.3g} s on {gpu} (projected, flash attention).
- Most of it is `{stage}`: {of_stage:.0f} % of the time. By operator it is {share.idxmax()}: {share.max():.0f} %. With
  eager attention the whole takes {slower:.2f} times as long.
- At the GPU's peak it would be {least_s:.3g} s, {100 * least_s / total_s:.2g} % of that. The rest is kernels that do
  not reach the peak, memory traffic and waiting for the host.
- Memory: {gb:.3g} GB of weights and up to {live:.3g} GB of activations ({live_eager:.3g} GB if eager)."""
