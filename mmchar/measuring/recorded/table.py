"""The operator table of a trace that someone else recorded: the time of the kernels that each operator launched."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmchar.counting.operator_table import AMOUNTS, COLUMNS, as_categories, rows_frame
from mmchar.measuring.kernel_names import kernel_kind, kernel_name
from mmchar.measuring.kernels import Kernel, idle_facts
from mmchar.measuring.operator_times import ran_by
from mmchar.measuring.recorded.attribution import Cause, category_of, causes, is_attention, op_of
from mmchar.measuring.recorded.recording import Call, Recording, read_recording
from mmchar.measuring.recorded.work import dtype_of, shapes_of, work_of
from mmchar.tables.shown import whole
from mmchar.tracing.attention import use_backend
from mmchar.tracing.trace import Row

STAGE = "trace"
_HOST_COPY = re.compile(r"(HtoD|DtoH|HostToDevice|DeviceToHost)")
KERNEL_COLUMNS = ("kind", "op", "shapes", "kernel", "launches", "time_s")


@dataclass
class _Site:
    """The calls of one operator with the same shapes in one module, or all kernels of one name without an operator."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by kernel's name
    launches: int = 0
    events: set[tuple] = field(default_factory=set)


def read_trace(path: str | Path) -> pd.DataFrame:
    """The operator table of a trace of torch.profiler, of an NVIDIA or AMD GPU: what its kernels took, by operator.

    A row is an operator with its shapes in one module; kernels belong to the operator that counting sees around their
    launch. FLOPs, bytes and lengths follow from recorded shapes (``record_shapes=True``), modules from recorded stacks
    (``with_stack=True``); without them they are 0 or empty. Kernels that no operator explains are rows by their name,
    with ``module_type`` ``kernel``. Files of gigabytes are read piece by piece.

    Parameters
    ----------
    path : str or Path
        As ``export_chrome_trace`` wrote it, ``.json`` or ``.json.gz``.

    Returns
    -------
    DataFrame
        Columns as in ``data/README.md`` and ``shapes``, of the tensors that the operator was given; ``time_kind`` is
        ``measured``, the only stage ``trace``. ``attrs`` has ``device``, ``idle``, ``coverage``, ``doubts`` and
        ``kernels`` (see `kernel_table`).

    Raises
    ------
    ValueError
        One line: a file that is no such trace, that is cut off or damaged, or that holds no kernel of a GPU.
    """
    recording = read_recording(path)
    found, kernels = causes(recording), _kernels(recording)
    sites, kinds = _sites(recording, found, kernels)
    own = _usual_type(recording)
    rows, more = _rows(recording, sites, own)
    model = re.sub(r"(\.pt)?(\.trace)?\.json(\.gz)?$", "", Path(path).name)
    frame = rows_frame(rows).assign(model=model, stage=STAGE, step=0, repeats=1, component="", time_kind="measured")
    table = frame.assign(**more)[[*COLUMNS, "shapes"]]
    table = as_categories(_as_it_ran(table))
    table.attrs = _attrs(recording, model, own, kernels, table, kinds)
    return whole(table)


def kernel_table(table: pd.DataFrame) -> pd.DataFrame:
    """What the kernels of a trace took, by kind and name, operator and its shapes, the longest first.

    Columns: ``kind, op, shapes, kernel, launches, time_s, share``. Copies between layouts and additions of a bias are
    kinds of their own, beside the convolutions that launch them.
    """
    kernels = pd.DataFrame(table.attrs["kernels"], columns=list(KERNEL_COLUMNS))
    kernels["share"] = kernels["time_s"] / kernels["time_s"].sum()
    return kernels.sort_values("time_s", ascending=False, ignore_index=True)


def _kernels(recording: Recording) -> list[Kernel]:
    """The kernels in the order of the file; their seconds count from the first one's start."""
    spans, names = recording.kernels, list(recording.names)
    first = min(spans.start)
    return [
        Kernel(names[what], (start - first) / 1e6, (start - first + duration) / 1e6)
        for start, duration, what in zip(spans.start, spans.duration, spans.what, strict=True)
    ]


def _sites(
    recording: Recording, found: list[Cause], kernels: list[Kernel]
) -> tuple[dict[tuple, _Site], dict[tuple, list[float]]]:
    """The sites in the order of their first kernels, and launches and seconds of `KERNEL_COLUMNS`."""
    sites: dict[tuple, _Site] = defaultdict(_Site)
    kinds: dict[tuple, list[float]] = defaultdict(lambda: [0, 0.0])
    shapes = [*map(shapes_of, recording.call), ""]  # the last is of what has no operator
    for at in np.argsort(np.asarray(recording.kernels.start), kind="stable").tolist():
        cause, kernel = found[at], kernels[at]
        call = recording.call[cause.call] if cause.call >= 0 else None
        caller = recording.call[cause.caller].name if cause.caller >= 0 else ""
        op, short = op_of(call.name) if call else "", kernel_name(kernel.name)
        seconds = recording.kernels.duration[at] / 1e6
        kind = kernel_kind(kernel.name, op=op, caller=caller)
        detail = (short, kind.category) if call is None else bool(_HOST_COPY.search(kernel.name))
        site = sites[cause.module, cause.module_type, cause.call, detail]
        site.seconds[kernel.name] += seconds
        site.launches += 1
        site.events.add((cause.thread, cause.event) if call else at)
        spent = kinds[kind.kind, op, shapes[cause.call], short]
        spent[0] += 1
        spent[1] += seconds
    return sites, kinds


def _rows(recording: Recording, sites: dict[tuple, _Site], own: torch.dtype) -> tuple[list[Row], dict[str, list]]:
    """A row of each site, and the columns that counting has not."""
    rows, more = list[Row](), defaultdict[str, list[Any]](list)
    done: dict[int, Row | None] = {}
    for (module, module_type, number, detail), site in sites.items():
        longest, calls = max(site.seconds, key=site.seconds.__getitem__), len(site.events)
        if number < 0:
            name, category = detail
            row = Row(module, "kernel", name, category, calls=calls)
            row.backend = ran_by(longest) if row.category == "Attention" else ""
        else:
            call = recording.call[number]
            if number not in done:
                done[number] = work_of(call, own)
            row = _row(call, None if detail is True else done[number], module, module_type, longest, calls)
        rows.append(row)
        more["shapes"].append(shapes_of(recording.call[number]) if number >= 0 else "")
        more["time_s"].append(sum(site.seconds.values()))
        more["kernels"].append(site.launches)
    return rows, more


def _row(call: Call, work: Row | None, module: str, module_type: str, longest: str, calls: int) -> Row:
    """The row of some calls of an operator; the category of one that counting does not know is that of its kernels."""
    op, core = op_of(call.name), is_attention(call.name)
    category = "Attention" if core else category_of(call.name, module_type)
    if category == "Uncounted":
        category = kernel_kind(longest).category
    row = Row(**vars(work)) if work else Row("", "", op, category, dtype=_own_type(call))
    row.module, row.module_type, row.op, row.category = module, module_type, op, category
    row.calls, row.live_bytes = calls, 0
    for amount in AMOUNTS[1:]:
        setattr(row, amount, calls * getattr(row, amount))
    if core:
        taken_apart = kernel_kind(longest).kind in ("matrix product", "softmax", "elementwise", "copy")
        row.backend = ran_by(longest) or ("math" if taken_apart else row.backend)
    return row


def _own_type(call: Call) -> str:
    known = (dtype_of(argument.type) for argument in call.arguments)
    return next((str(dtype).removeprefix("torch.") for dtype in known if dtype is not None), "")


def _usual_type(recording: Recording) -> torch.dtype:
    """The real number type of most recorded tensors; float32 where none is recorded."""
    types = Counter(argument.type for call in recording.call for argument in call.arguments)
    known = ((dtype_of(name), many) for name, many in types.items())
    real = {dtype: many for dtype, many in known if dtype is not None and dtype.is_floating_point}
    return max(real, key=real.__getitem__, default=torch.float32)


def _as_it_ran(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the bytes of attention that ran as products and a softmax."""
    ran = table["backend"]
    eager = use_backend(table.assign(backend="flash"), "eager")
    return table.where(ran != "math", eager).assign(backend=ran).astype(table.dtypes)


def _attrs(
    recording: Recording, model: str, own: torch.dtype, kernels: list[Kernel], table: pd.DataFrame, kinds: dict
) -> dict[str, Any]:
    total, by_operator = table["time_s"].sum(), table["module_type"] != "kernel"
    sized = (table["flop"] + table["read_bytes"] + table["write_bytes"]) > 0
    idle = idle_facts([kernels])
    covered = {
        "of_operators": float(table["time_s"][by_operator].sum() / total) if total else 0.0,
        "with_sizes": float(table["time_s"][sized].sum() / total) if total else 0.0,
    }
    device = recording.devices.most_common(1)[0][0]
    sheet = next((sheet for sheet in recording.sheets if sheet.get("id") == device), dict(*recording.sheets[:1]))
    return {
        "model": model,
        "request": {},
        "dtype": str(own).removeprefix("torch."),
        "tiny": False,
        "params": {},
        "device": str(sheet.get("name", "")),
        "memory_bytes": sheet.get("totalGlobalMem"),
        "devices": len(recording.devices),
        "steps": recording.steps,
        "idle_share": {STAGE: idle and idle["share"]},
        "idle": {STAGE: idle},
        "coverage": {STAGE: covered},
        "kernels": [dict(zip(KERNEL_COLUMNS, (*key, *spent), strict=True)) for key, spent in kinds.items()],
        "doubts": {STAGE: list(_doubts(recording, covered, idle))},
    }


def _doubts(recording: Recording, covered: dict[str, float], idle: dict[str, Any] | None) -> Iterator[str]:
    if not recording.operators:
        yield "no operators are recorded: add ProfilerActivity.CPU; rows are kernels by name"
    elif covered["of_operators"] < 0.95:
        yield f"operators explain {covered['of_operators']:.0%} of the kernels' time; the rest is by the kernels' names"
    if recording.operators and covered["with_sizes"] < 0.95:
        yield f"FLOPs and bytes are known of {covered['with_sizes']:.0%} of the kernels' time, as shapes were recorded"
    if len(recording.devices) > 1:
        yield f"kernels of {len(recording.devices)} GPUs are added up; busy is when any of them is"
    if recording.steps > 1:
        yield f"{recording.steps} steps of the profiler are added up"
    if idle and idle["launch_bound"]:
        yield f"the GPU is idle {idle['share']:.0%} of the span; a profiler that records stacks slows the host"
