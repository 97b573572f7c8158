"""Two generations side by side: models, GPUs, settings, traces or measured runs, by stage and by operator category.

What is compared is named in a text: a model, a table (``.parquet``), a trace (``.json``, ``.json.gz``) or the folder of
a measured run, and settings after commas: ``sdxl-base-1.0,steps=4,gpu=h100-sxm``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import COLUMNS, count
from mmchar.faults import did_you_mean
from mmchar.projection.roofline import project
from mmchar.request import FIELDS
from mmchar.runs.records import read_result
from mmchar.tables.stored import read_table
from mmchar.tables.totals import totals

SETTINGS = ("gpu", "dtype", "attention", "execution", "tiny")
SUMS = ("time_s", "flop", "bytes")
_MODEL_FILE_BYTES = 1_000_000
_FACTS = ("model", "gpu", "device", "dtype", "execution", "tiny")
_DEFAULTS = {"gpu": "a100-80gb", "dtype": "bfloat16", "attention": "flash", "execution": "eager", "tiny": False}


def compare(first: str | pd.DataFrame, second: str | pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Time, FLOPs and bytes of two generations, in all, by operator category and by stage.

    Parameters
    ----------
    first, second : str or DataFrame
        An operator table that was counted, projected or measured, or a text that names one (see the module). What has
        no time is projected.
    **settings
        ``gpu``, ``dtype``, ``attention``, ``execution``, ``tiny`` and fields of a request, for both; a text's own go
        first.

    Returns
    -------
    DataFrame
        A row per ``part``: the whole (``what`` is "total"), a "category", a "stage". ``first_s``, ``second_s`` and
        ``difference_s`` (second less first), ``ratio`` (second over first), the same of ``flop`` and ``bytes``
        without differences. What only one of the two has is 0 in the other. ``attrs`` holds a ``label`` of each, and
        ``differs``: the settings in which they do.

    Raises
    ------
    ValueError
        Before anything is counted: an unknown model, GPU, setting or request, or a file that is no such table.
    """
    asked = [_asked(each, settings) for each in (first, second)]
    tables = [_table(*each) for each in asked]
    labels = _labels([first, second], tables)
    return side_by_side(*tables, labels=labels)


def side_by_side(first: pd.DataFrame, second: pd.DataFrame, *, labels: tuple[str, str]) -> pd.DataFrame:
    """The table of `compare`, of two operator tables with times."""
    parts = []
    for what in ("total", "category", "stage"):
        sums = [totals(table.assign(total="all"), [what]).set_index(what) for table in (first, second)]
        names = list(dict.fromkeys([*sums[0].index, *sums[1].index]))
        one, two = (each.reindex(names, fill_value=0) for each in sums)
        part = pd.DataFrame({"what": what, "part": names, "first_s": one["time_s"].to_numpy()})
        part = part.assign(second_s=two["time_s"].to_numpy())
        part = part.assign(difference_s=part["second_s"] - part["first_s"])
        part["ratio"] = part["second_s"] / part["first_s"].replace(0, np.nan)
        for name in SUMS[1:]:
            part[f"first_{name}"], part[f"second_{name}"] = one[name].to_numpy(), two[name].to_numpy()
        parts.append(part.sort_values("difference_s", key=abs, ascending=False, kind="stable"))
    out = pd.concat(parts, ignore_index=True)
    kinds = [", ".join(kind for kind in table["time_kind"].astype(str).unique() if kind) for table in (first, second)]
    out.attrs = {"labels": list(labels), "time_kinds": kinds, "differs": _differs(first, second)}
    return out


def _asked(given: str | pd.DataFrame, settings: dict[str, Any]) -> tuple[str | pd.DataFrame, dict[str, Any]]:
    """What a text names, and its settings over those of both."""
    if isinstance(given, pd.DataFrame):
        name: str | pd.DataFrame = given
        own: dict[str, Any] = {}
    else:
        name, own = _read(given)
    both = {**settings, **own}
    known = [*SETTINGS, *FIELDS]
    for key in both:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"no setting {key!r}; {hint}there are {', '.join(known)}")
    return name, both


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """``name,key=value,…``; a value may hold commas itself, as ``steps=256,128`` does."""
    name, *pieces = text.split(",")
    own: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if equals:
            own[key.strip()] = value.strip()
        elif own:
            own[list(own)[-1]] += f",{piece}"
        else:
            raise ValueError(f"{text!r}: {piece!r} is no setting; write name=value, e.g. {name},steps=4")
    return name.strip(), {key: _value(key, value) for key, value in own.items()}


def _value(key: str, text: str) -> Any:
    """A setting stays a text; a field of a request is a number, or several of them."""
    if key in SETTINGS and key != "tiny":
        return text
    try:
        return json.loads(f"[{text}]" if "," in text else text)
    except ValueError:
        raise ValueError(f"{key}={text!r} is no number") from None


def _table(name: str | pd.DataFrame, asked: dict[str, Any]) -> pd.DataFrame:
    """An operator table with times."""
    how = {**_DEFAULTS, **{key: asked[key] for key in SETTINGS if key in asked}}
    request = {key: value for key, value in asked.items() if key in FIELDS}
    table = _kept(name) if isinstance(name, str) else name
    if table is None:
        table = count(name, dtype=how["dtype"], tiny=how["tiny"], **request)
    elif request:
        what = name if isinstance(name, str) else _told(name)
        raise ValueError(f"{', '.join(request)} can be asked of a model, and {what!r} is a table that is there")
    if missing := [column for column in COLUMNS if column not in table.columns and column not in ("m", "n", "k")]:
        raise ValueError(f"this is no operator table: it lacks {', '.join(missing)}")
    if table["time_s"].notna().any():
        return table
    return project(table, gpu=how["gpu"], attention=how["attention"], execution=how["execution"])


def _kept(name: str) -> pd.DataFrame | None:
    """The operator table in a file or the folder of a run; None for a model."""
    path = Path(name)
    if path.suffix == ".parquet":
        return read_table(path)
    if (path / "result.json").is_file():
        tables = read_result(path)["tables"]
        if len(tables) != 1:
            raise ValueError(f"{path.name} has {len(tables)} tables; name the file of one, in {path.name}/tables")
        return read_table(path / next(iter(tables.values()))["files"][0])
    if path.name.endswith((".json", ".json.gz")) and path.is_file() and _is_trace(path):
        from mmchar.measuring.recorded.table import read_trace

        return read_trace(path)
    return None


def _is_trace(path: Path) -> bool:
    """Whether a file is a trace, and no model file, which is small and has no events."""
    return path.suffix == ".gz" or path.stat().st_size > _MODEL_FILE_BYTES or b'"traceEvents"' in path.read_bytes()


def _labels(given: list[str | pd.DataFrame], tables: list[pd.DataFrame]) -> tuple[str, str]:
    first, second = (each if isinstance(each, str) else _told(table) for each, table in zip(given, tables, strict=True))
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _told(table: pd.DataFrame) -> str:
    where = table.attrs.get("gpu") or table.attrs.get("device")
    return f"{table.attrs.get('model', 'a generation')}{f' on {where}' if where else ''}"


def _differs(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, list[Any]]:
    """The settings of two tables that are not the same, each with both values; None where one has none."""
    one, two = ({name: table.attrs.get(name) for name in _FACTS} for table in (first, second))
    one, two = ({**facts, **(table.attrs.get("request") or {})} for facts, table in ((one, first), (two, second)))
    return {name: [one.get(name), two.get(name)] for name in {**one, **two} if one.get(name) != two.get(name)}
