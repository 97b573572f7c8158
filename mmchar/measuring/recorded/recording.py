"""What a trace says of kernels, of their launches, and of the operators and modules around: no more is kept."""

import math
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mmchar.measuring.recorded.json_parts import EVENTS, read_parts

Thread = tuple[int | str, int | str]  # process and thread
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset"}  # the last two until PyTorch 1.12
_OPERATORS = {"cpu_op", "operator"}
_LAUNCHES = re.compile("launch|memcpy|memset", re.IGNORECASE)
_MODULE = "nn.Module: "
_STEP = "ProfilerStep#"


class _Args(msgspec.Struct):
    """What an event says of itself; -1 where a number is missing."""

    correlation: int = -1
    device: int = 0
    external: int = msgspec.field(name="External id", default=-1)
    shapes: list[list[int | list[int]]] = msgspec.field(name="Input Dims", default_factory=list)
    types: list[str] = msgspec.field(name="Input type", default_factory=list)
    strides: list[Any] = msgspec.field(name="Input Strides", default_factory=list)
    values: list[Any] = msgspec.field(name="Concrete Inputs", default_factory=list)
    scripted: str = msgspec.field(name="Module Hierarchy", default="")


class _Event(msgspec.Struct):
    name: str
    ts: float
    dur: float
    pid: int | str
    tid: int | str
    args: _Args = msgspec.field(default_factory=_Args)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ts) and math.isfinite(self.dur)):
            raise ValueError("its time is no number")

    @property
    def thread(self) -> Thread:
        return self.pid, self.tid


class Argument(NamedTuple):
    """What was recorded of an argument; empty where nothing was. The shape of a list of tensors is a list of shapes."""

    shape: list[Any]
    type: str
    strides: list[Any]
    value: str


class Call(NamedTuple):
    """An operator's call; ``scripted`` is the path of a module of TorchScript."""

    name: str
    arguments: list[Argument]
    scripted: str


@dataclass
class Spans:
    """Intervals on one thread, start and duration in us, each with the number of what ran."""

    start: array = field(default_factory=lambda: array("d"))
    duration: array = field(default_factory=lambda: array("d"))
    what: array = field(default_factory=lambda: array("q"))

    def add(self, event: _Event, what: int) -> None:
        """Add an event."""
        self.start.append(event.ts)
        self.duration.append(max(event.dur, 0.0))
        self.what.append(what)


@dataclass
class Recording:
    """Kernels in the order of the file, calls and modules by thread, and which point in time a kernel comes from.

    Attributes
    ----------
    calls, modules, names : dict
        Every operator call, module and kernel's name that there is, with its number.
    launched, recorded : dict
        Thread and time of what a correlation (of a launch) and an external id (of an operator) stand for.
    correlation, external : array
        Of each kernel; -1 where it has none.
    """

    calls: dict[tuple[str, ...], int] = field(default_factory=dict)
    call: list[Call] = field(default_factory=list)
    modules: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    operators: dict[Thread, Spans] = field(default_factory=dict)
    running: dict[Thread, Spans] = field(default_factory=dict)  # modules
    kernels: Spans = field(default_factory=Spans)
    correlation: array = field(default_factory=lambda: array("q"))
    external: array = field(default_factory=lambda: array("q"))
    launched: dict[int, tuple[Thread, float]] = field(default_factory=dict)
    recorded: dict[int, tuple[Thread, float]] = field(default_factory=dict)
    devices: Counter = field(default_factory=Counter)  # of kernels
    sheets: list[dict[str, Any]] = field(default_factory=list)  # what the devices say of themselves
    steps: int = 0

    def add(self, event: dict[str, Any]) -> None:
        """Keep what matters of an event; a ValueError says what is wrong with one that matters."""
        kind, name = str(event.get("cat", "")).lower(), str(event.get("name", ""))
        if kind in _KERNELS:
            self._add_kernel(_typed(event))
        elif kind in _OPERATORS:
            self._add_operator(_typed(event))
        elif kind.endswith(("runtime", "driver")) and _LAUNCHES.search(name):  # of CUDA, HIP, …
            launch = _typed(event)
            self.launched[launch.args.correlation] = launch.thread, launch.ts
        elif kind == "python_function" and name.startswith(_MODULE):
            module = _typed(event)
            number = _number(self.modules, name.removeprefix(_MODULE))
            self.running.setdefault(module.thread, Spans()).add(module, number)
        elif kind == "user_annotation" and name.startswith(_STEP):
            self.steps += 1

    def _add_kernel(self, kernel: _Event) -> None:
        self.kernels.add(kernel, _number(self.names, kernel.name))
        self.correlation.append(kernel.args.correlation)
        self.external.append(kernel.args.external)
        self.devices[kernel.args.device] += 1

    def _add_operator(self, event: _Event) -> None:
        args = event.args
        recorded = args.shapes, args.types, args.strides, args.values
        number = _number(self.calls, (event.name, *map(str, recorded), args.scripted))
        if number == len(self.call):
            arguments = [
                Argument(shape or [], kind or "", strides or [], "" if value is None else str(value))
                for shape, kind, strides, value in zip_longest(*recorded)
            ]
            self.call.append(Call(event.name, arguments, args.scripted))
        self.operators.setdefault(event.thread, Spans()).add(event, number)
        self.recorded[args.external] = event.thread, event.ts


def read_recording(path: str | Path) -> Recording:
    """What a trace of torch.profiler says; it is read once and kept in part, so that a large one fits into memory.

    Raises
    ------
    ValueError
        One line: a file that is no such trace, that is cut off or damaged, or that holds no kernel of a GPU.
    """
    found, seen = Recording(), False
    for key, value in read_parts(path):
        seen |= key == EVENTS
        try:
            if key == EVENTS:
                found.add(value)
            elif key == "deviceProperties":
                found.sheets = [dict(sheet) for sheet in value]
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: it holds {value!r:.80} among its {key} ({error})") from error
    if not found.names:
        lacks = "no kernel of a GPU; record it with ProfilerActivity.CUDA" if seen else f"no {EVENTS}"
        raise ValueError(f"{path} is no trace of a GPU by torch.profiler: it holds {lacks}")
    if not sum(found.kernels.duration) > 0:
        raise ValueError(f"{path} is damaged: its kernels take no time")
    return found


def _number(known: dict[Any, int], key: Any) -> int:
    return known.setdefault(key, len(known))


def _typed(event: dict[str, Any]) -> _Event:
    return msgspec.convert(event, _Event, strict=False)  # some write numbers as texts
