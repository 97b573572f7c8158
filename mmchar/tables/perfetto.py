"""The operator table as a trace that Perfetto and chrome://tracing show: tracks of stages, modules and operators.

Format: "Trace Event Format" (Google, 2016), the JSON object with ``traceEvents``; times are in us.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mmchar.files import atomic_write

_TRACKS = {"stages": 1, "modules": 2, "operators": 3}
_SHOWN = ("category", "module", "module_type", "attention", "q_len", "kv_len", "calls", "kernels", "flop",
          "read_bytes", "write_bytes", "dtype", "backend", "bound", "shapes")  # fmt: skip


class _Slice(NamedTuple):
    """A slice of a track from ``start`` to ``end``, in ns, inside ``depth`` others."""

    track: str
    start: int
    end: int
    depth: int
    name: str
    args: dict[str, Any]


def write_perfetto(path: str | Path, table: pd.DataFrame) -> Path:
    """The path, holding an operator table (counted, projected or measured) as a trace for https://ui.perfetto.dev.

    A stage is as long as all of its executions. The first one is drawn operator by operator, in the order of the rows;
    the others are one slice behind it, and ``otherData`` says how many. A counted table has no times: a microsecond
    stands for a GFLOP. A ValueError where the file cannot be written.
    """
    try:
        return atomic_write(path, json.dumps(perfetto(table), separators=(",", ":")))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; choose a folder you can write to") from error


def perfetto(table: pd.DataFrame) -> dict[str, Any]:
    """The trace of an operator table, as `write_perfetto` writes it."""
    kind = next((name for name in table["time_kind"].astype(str).unique() if name), "counted")
    spent = table["flop"] / 1e6 if kind == "counted" else table["time_s"].fillna(0.0) * 1e9  # ns
    runs, slices, at = dict[str, int](), list[_Slice](), 0
    for stage, rows in table.assign(spent=spent).groupby("stage", observed=True, sort=False):
        runs[str(stage)] = int((rows["step"] - rows["step"].min() + rows["repeats"]).max())
        found = list(_stage(str(stage), rows, at, runs[str(stage)]))
        slices += found
        at = found[0].end
    slices.sort(key=lambda each: (each.start, -each.end, each.depth))  # what is around comes first
    names = [_named("process_name", 0, str(table.attrs.get("model", "model")))]
    names += [_named("thread_name", number, name) for name, number in _TRACKS.items()]
    other = {key: table.attrs[key] for key in ("model", "gpu", "device", "execution") if table.attrs.get(key)}
    other |= {
        "time_kind": kind,
        "durations": "FLOP, of which 1 us is 1 GFLOP" if kind == "counted" else f"{kind} seconds",
        "folded": {stage: f"{many - 1} of {many} executions" for stage, many in runs.items() if many > 1},
    }
    return {"displayTimeUnit": "ms", "otherData": other, "traceEvents": [*names, *map(_event, slices)]}


def _stage(stage: str, rows: pd.DataFrame, at: int, runs: int) -> Iterator[_Slice]:
    """The slices of a stage that starts at a time; the first is its own."""
    first = rows[rows["step"] == rows["step"].min()]
    edges = (at + np.rint(np.cumsum([0.0, *first["spent"]])).astype("int64")).tolist()
    end = max(at + round(float((rows["spent"] * rows["repeats"]).sum())), edges[-1])
    yield _Slice("stages", at, end, 0, stage, {"executions": runs})
    if runs > 1:
        yield _Slice("stages", edges[-1], end, 1, f"{runs - 1} more executions", {})
    yield from _operators(first, edges)
    yield from _modules(first, edges)


def _operators(rows: pd.DataFrame, edges: list[int]) -> Iterator[_Slice]:
    shown = rows[[name for name in _SHOWN if name in rows]].to_dict("records")
    for at, (op, row) in enumerate(zip(rows["op"], shown, strict=True)):
        args = {name: value for name, value in row.items() if value not in ("", 0)}
        yield _Slice("operators", edges[at], edges[at + 1], 0, str(op), args)


def _modules(rows: pd.DataFrame, edges: list[int]) -> Iterator[_Slice]:
    """A slice of each module for as long as consecutive rows lie in it."""
    paths = (rows["component"].astype(str) + "." + rows["module"].astype(str)).str.strip(".").str.split(".").tolist()
    around: list[tuple[str, int]] = []
    for at, path in enumerate([*paths, []]):
        same = [name == part for (name, _), part in zip(around, path, strict=False)]
        kept = same.index(False) if False in same else len(same)
        for depth in range(len(around) - 1, kept - 1, -1):
            name, since = around.pop()
            yield _Slice("modules", since, edges[at], depth, name, {})
        around += [(part, edges[at]) for part in path[kept:] if part]


def _event(found: _Slice) -> dict[str, Any]:
    times = {"ts": found.start / 1e3, "dur": (found.end - found.start) / 1e3}
    of = {"cat": found.track, "name": found.name, "pid": 1, "tid": _TRACKS[found.track]}
    return {"ph": "X", **of, **times, "args": found.args}


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 1, "tid": track, "args": {"name": name}}
