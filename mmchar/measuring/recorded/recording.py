"""What a trace says of kernels, of their launches, and of the operators and modules around: no more is kept."""

import math
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from mmchar.measuring.recorded.json_parts import EVENTS, read_parts

Thread = tuple[Any, Any]  # process and thread
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset"}  # the last two until PyTorch 1.12
_OPERATORS = {"cpu_op", "operator"}
_LAUNCHES = re.compile("launch|memcpy|memset", re.IGNORECASE)
_MODULE = "nn.Module: "
_STEP = "ProfilerStep#"
_RECORDED = ("Input Dims", "Input type", "Input Strides", "Concrete Inputs")


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

    def add(self, event: dict[str, Any], what: int) -> None:
        """Add an event."""
        self.start.append(float(event["ts"]))
        self.duration.append(max(float(event["dur"]), 0.0))
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
        """Keep what matters of an event."""
        kind, name = str(event.get("cat", "")).lower(), event.get("name", "")
        if kind in _KERNELS:
            self._add_kernel(event, name)
        elif kind in _OPERATORS:
            self._add_operator(event, name)
        elif kind.endswith(("runtime", "driver")) and _LAUNCHES.search(name):  # of CUDA, HIP, …
            self.launched[event.get("args", {}).get("correlation", -1)] = _thread(event), float(event["ts"])
        elif kind == "python_function" and name.startswith(_MODULE):
            number = _number(self.modules, name.removeprefix(_MODULE))
            self.running.setdefault(_thread(event), Spans()).add(event, number)
        elif kind == "user_annotation" and name.startswith(_STEP):
            self.steps += 1

    def _add_kernel(self, event: dict[str, Any], name: str) -> None:
        args = event.get("args", {})
        self.kernels.add(event, _number(self.names, name))
        self.correlation.append(args.get("correlation", -1))
        self.external.append(_external(args))
        self.devices[args.get("device", 0)] += 1

    def _add_operator(self, event: dict[str, Any], name: str) -> None:
        args, thread = event.get("args", {}), _thread(event)
        recorded, scripted = [args.get(key, ()) for key in _RECORDED], args.get("Module Hierarchy", "")
        number = _number(self.calls, (name, *map(str, recorded), scripted))
        if number == len(self.call):
            self.call.append(Call(name, [Argument(*each) for each in zip_longest(*recorded, fillvalue="")], scripted))
        self.operators.setdefault(thread, Spans()).add(event, number)
        self.recorded[_external(args)] = thread, float(event["ts"])


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
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: it holds {value!r:.80} among its {key}") from error
    if not found.names:
        lacks = "no kernel of a GPU; record it with ProfilerActivity.CUDA" if seen else f"no {EVENTS}"
        raise ValueError(f"{path} is no trace of a GPU by torch.profiler: it holds {lacks}")
    if not (math.isfinite(sum(found.kernels.start)) and 0 < sum(found.kernels.duration) < math.inf):
        raise ValueError(f"{path} is damaged: its kernels have no times, or times that are no numbers")
    return found


def _number(known: dict[Any, int], key: Any) -> int:
    return known.setdefault(key, len(known))


def _thread(event: dict[str, Any]) -> Thread:
    return event["pid"], event["tid"]


def _external(args: dict[str, Any]) -> int:
    return args.get("External id", args.get("external id", -1))
