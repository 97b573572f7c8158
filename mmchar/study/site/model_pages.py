"""A page per model of the zoo, and one table of all: what it is made of, what it is asked, where FLOPs and time go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mmchar.counting.operator_table import count
from mmchar.counting.seqlen import seen
from mmchar.files import atomic_write
from mmchar.models.loading import get_spec
from mmchar.models.specs import ModelSpec
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.roofline import project
from mmchar.projection.summary import summarize, summarize_memory
from mmchar.study.drawing.look import amount
from mmchar.study.site.bars import stacked_bars
from mmchar.study.site.breakdown import breakdown
from mmchar.study.zoo_page import published_cell, zoo_table
from mmchar.tables.stored import markdown
from mmchar.tables.totals import executions, totals

GPU = "a100-80gb"
_FOLDER = "zoo"


def stage_models(folder: Path, models: Sequence[str] | None = None, *, progress: bool = False) -> None:
    """Write the page of every model of the zoo (or of those named) into a folder, and the table of all of them."""
    zoo = zoo_table(models, progress=progress).set_index("model", drop=False)
    times = {}
    for name in tqdm(zoo.index, desc="pages of models", disable=not progress):
        timed = project(count(name), gpu=GPU)
        times[name] = float((timed["time_s"] * timed["repeats"]).sum())
        atomic_write(folder / _FOLDER / f"{name}.md", model_page(get_spec(name), timed, zoo.loc[name]))
    atomic_write(folder / _FOLDER / "index.md", _index(zoo.assign(time_s=pd.Series(times))))


def model_page(spec: ModelSpec, timed: pd.DataFrame, row: Mapping[str, Any]) -> str:
    """The page of one model, from its table projected on `GPU` and its row of `zoo_table`."""
    totals, memory = summarize(timed), summarize_memory(timed, get_gpu(GPU))
    facts = [
        f"**{row['built_params'] / 1e9:,.2f} B parameters** · {amount(row['tflop'])} TFLOP a generation",
        f"{amount(totals['time_s'])} s projected on {GPU}, {memory['peak_bytes'] / 1e9:,.1f} GB at the peak",
        f"{spec.family.replace('_', ' ')}, {spec.year}",
    ]
    parts = [
        "---\norphan: true\n---",
        f"# {spec.name}",
        "[The zoo](index.md)",
        spec.summary,
        " · ".join(facts),
        "## Architecture",
        _architecture(spec, timed),
    ]
    parts += ["## Request", markdown(_asked(spec)), f"Source: {spec.request_source}."]
    parts += [
        "## Stages",
        markdown(_stages(timed)),
        "## Where FLOPs go",
        stacked_bars(_by_category(timed, "flop"), "TFLOP"),
    ]
    parts += [f"## Where time goes on {GPU}", stacked_bars(_by_category(timed, "time_s"), "s"), _TIME]
    lengths = _lengths(timed)
    parts += ["## Sequence lengths", markdown(lengths) if len(lengths) else "No attention has a length here."]
    if spec.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in spec.notes)]
    again = f"mmchar project {spec.name} --gpu {GPU}"
    return "\n\n".join([*parts, "## Again", f"```\n{again}\n```"]) + "\n"


def _architecture(spec: ModelSpec, timed: pd.DataFrame) -> str:
    built = timed.attrs["params"]
    rows = [
        {
            "component": role,
            "class": f"`{part.cls}`",
            "library": part.library,
            "built": f"{built[role] / 1e6:,.1f} M",
            "published": f"{part.published_params / 1e6:,.1f} M" if part.published_params else "",
            "source": "; ".join(filter(None, (part.source, part.params_source))),
        }
        for role, part in spec.components.items()
    ]
    return markdown(pd.DataFrame(rows))


def _asked(spec: ModelSpec) -> pd.DataFrame:
    given = spec.resolve().given()
    limits = {name: ", ".join(_limit(spec, name)) for name in given}
    return pd.DataFrame(
        [{"field": name, "default": _plain(value), "limits": limits[name]} for name, value in given.items()]
    )


def _limit(spec: ModelSpec, name: str) -> list[str]:
    limit = spec.limits.get(name)
    if limit is None:
        return []
    said = [f"at least {limit.min}"] * (limit.min > 1) + [f"at most {limit.max}"] * (limit.max is not None)
    said += [f"a multiple of {limit.multiple_of}"] * (limit.multiple_of > 1)
    return said + ([f"{limit.of_form[0]} k + {limit.of_form[1]}"] if limit.of_form else [])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}"


def _stages(timed: pd.DataFrame) -> pd.DataFrame:
    runs = executions(timed)
    total = totals(timed, ["stage"]).set_index("stage")
    network = timed.groupby(timed["stage"].astype(str), sort=False)["component"].first()
    return pd.DataFrame(
        {
            "stage": total.index,
            "network": network.loc[total.index].astype(str).to_list(),
            "calls": [int(runs[name]) for name in total.index],
            "TFLOP": (total["flop"] / 1e12).map(amount).to_list(),
            "GB moved": (total["bytes"] / 1e9).map(amount).to_list(),
            f"s on {GPU}": total["time_s"].map(amount).to_list(),
        }
    )


def _by_category(timed: pd.DataFrame, column: str) -> pd.DataFrame:
    """Stage by category, for the whole generation: TFLOP, or seconds. A stage that has none of it is left out."""
    parts = breakdown(timed)
    wide = parts.pivot_table(index="stage", columns="category", values=column, sort=False).fillna(0.0)
    wide = wide.reindex(timed["stage"].astype(str).unique(), fill_value=0.0) / (1e12 if column == "flop" else 1)
    return wide[wide.sum(axis=1) > 0]


def _lengths(timed: pd.DataFrame) -> pd.DataFrame:
    """Shortest and longest query and key lengths of each stage, by kind of attention."""
    found = seen(timed)
    if found.empty:
        return found
    groups = found.assign(all=found["calls"] * found["repeats"]).groupby(["stage", "attention"], sort=False)
    spans = {
        name: groups[name].agg(lambda many: _span(many.min(), many.max())) for name in ("q_len", "kv_len", "heads")
    }
    spans["calls in a generation"] = groups["all"].sum().map("{:,}".format)
    return pd.DataFrame(spans).reset_index().rename(columns={"q_len": "query tokens", "kv_len": "key tokens"})


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _index(zoo: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "model": [f'<a href="{name}.html">{name}</a>' for name in zoo.index],
            "family": zoo["family"].str.replace("_", " ").to_list(),
            "year": zoo["year"].to_list(),
            "published": list(map(published_cell, zoo["published_params"], zoo["unpublished"])),
            "built (B)": (zoo["built_params"] / 1e9).round(2).to_list(),
            "TFLOP": zoo["tflop"].round(2).to_list(),
            f"s on {GPU}": zoo["time_s"].round(2).to_list(),
        }
    )
    table = _sortable(shown)
    raw = f"```{{raw}} html\n{table}\n```"
    return "\n\n".join(["# The zoo", _INDEX.format(models=len(zoo)), raw]) + "\n"


def _sortable(table: pd.DataFrame) -> str:
    """The table as HTML with the scripts of itables, which sort and search it, inside."""
    from itables import options as of_itables, to_html_datatable
    from itables.javascript import generate_init_offline_itables_html

    look: dict[str, Any] = {"classes": "display compact", "layout": {"topStart": "search", "topEnd": None}}
    look |= {"text_in_header_can_be_selected": False}  # a click anywhere on a header sorts
    options: dict[str, Any] = {"paging": False, "showIndex": False, "allow_html": True, "table_id": "zoo", **look}
    drawn = to_html_datatable(table, connected=False, order=[[1, "asc"]], **options)
    around = '<div class="scrolled" tabindex="0" role="region" aria-label="Models">'
    return f"{generate_init_offline_itables_html(of_itables.dt_bundle)}{around}{drawn}</div>"


_TIME = """The whole generation in bfloat16 with flash attention, eager. The stage *pipeline* is what runs between the
networks."""
_INDEX = """{models} models, counted without running them, at their default request; one multiply-add is 2 FLOP. A
click on a column sorts by it. [Another page](../docs/zoo.md) says how the counts agree with what is published, what
adaptors cost and what video models attend to."""
