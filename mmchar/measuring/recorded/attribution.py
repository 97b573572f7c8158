"""Which operator and which module each kernel of a trace comes from.

A kernel has the correlation of the call that launched it; operators and modules that are open on that thread then are
around it. Of the operators the one that counting would see is chosen: what it takes apart is not (``conv2d`` and
``matmul``, but not ``linear``), and what another one does inside belongs to that one. Autocasting calls an operator
inside itself, after it has cast the arguments: the inner one counts, and the casts.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mmchar.measuring.recorded.recording import Recording, Spans, Thread
from mmchar.tracing import operators
from mmchar.tracing.trace import WHOLE

_OPERATOR = re.compile(r"\w+::\w+")
# Attention kernels of packages, and those of PyTorch below scaled_dot_product_attention; all but the latter's take
# (batch, tokens, heads, head_dim).
HEADS_FIRST = re.compile(r"aten::_?scaled_dot_product_\w*attention(_math|_for_cpu|_for_mps|_overrideable)?")
TOKENS_FIRST = re.compile(r"\w+::(_?flash_attn_forward|_flash_attention_forward|_efficient_attention_forward"
                          r"|efficient_attention_forward_\w+|flash_fwd|mha_fwd)")  # fmt: skip
_SCRIPTED = re.compile(r"(\w+)\((\w+)\)::")


class Cause(NamedTuple):
    """What a kernel comes from: the numbers of the operator's event and call and of the innermost call, and a module.

    -1 where there is no operator. The module is its path and its class.
    """

    thread: Thread
    event: int
    call: int
    caller: int
    module: str
    module_type: str


NOTHING = Cause(("", ""), -1, -1, -1, "", "")


def causes(recording: Recording) -> list[Cause]:
    """The cause of each kernel, in their order."""
    found = [NOTHING] * len(recording.correlation)
    for thread, launches in _points(recording).items():
        times = [time for _, time in launches]
        inner, owner, calls = _operators_at(recording, thread, times)
        paths = _modules_at(recording, thread, times)
        for (kernel, _), caller, event, path in zip(launches, inner, owner, paths, strict=True):
            call = calls.what[event] if event >= 0 else -1
            scripted = _SCRIPTED.findall(recording.call[call].scripted) if call >= 0 else []
            path = (".".join(name for name, _ in scripted), scripted[-1][1]) if scripted else path
            found[kernel] = Cause(thread, event, call, calls.what[caller] if caller >= 0 else -1, *path)
    return found


def _points(recording: Recording) -> dict[Thread, list[tuple[int, float]]]:
    """The kernels whose launch, or else whose operator, is known: by thread the kernel and when it was launched."""
    points: dict[Thread, list[tuple[int, float]]] = defaultdict(list)
    for kernel, (launch, operator) in enumerate(zip(recording.correlation, recording.external, strict=True)):
        point = recording.launched.get(launch) if launch >= 0 else None
        point = point or (recording.recorded.get(operator) if operator > 0 else None)
        if point:
            points[point[0]].append((kernel, point[1]))
    return points


def _operators_at(recording: Recording, thread: Thread, times: Sequence[float]) -> tuple[list[int], list[int], Spans]:
    """Of each point in time the innermost operator and the one whose row it belongs to (-1: none), of the thread's."""
    spans = recording.operators.get(thread, Spans())
    parents, order = enclosing(spans, times)
    names = [*(recording.call[call].name for call in spans.what), *[""] * len(times)]
    casting = {above for name, above in zip(names, parents, strict=True) if above >= 0 and name == names[above]}
    owners = [(0, -1)] * len(parents)
    for event in order:  # what is around comes first
        best = owners[parents[event]] if parents[event] >= 0 else (0, -1)
        own = 0 if event in casting else rank(names[event])
        owners[event] = (own, event) if own > best[0] or own == best[0] == 1 else best
    first = len(spans.what)
    return parents[first:], [event for _, event in owners[first:]], spans


def _modules_at(recording: Recording, thread: Thread, times: Sequence[float]) -> list[tuple[str, str]]:
    """Of each point in time the path of the innermost module, by the names of all around it, and its class."""
    spans, names = recording.running.get(thread, Spans()), list(recording.modules)
    parents, order = enclosing(spans, times)
    paths = [""] * len(parents)
    for event in order:
        above = paths[parents[event]] if parents[event] >= 0 else ""
        own = names[spans.what[event]] if event < len(spans.what) else ""
        paths[event] = f"{above}.{own}".strip(".")
    return [(path, re.sub(r"_\d+$", "", path.rpartition(".")[2])) for path in paths[len(spans.what) :]]


def enclosing(spans: Spans, times: Sequence[float]) -> tuple[list[int], list[int]]:
    """Of each span, and of each point in time after them, the number of the innermost span around it, or -1.

    And the order in which they start, what is around first.
    """
    starts = np.concatenate([np.asarray(spans.start), np.asarray(times, dtype=float)])
    ends = starts + np.concatenate([np.asarray(spans.duration), np.zeros(len(times))])
    parents, around = [-1] * len(starts), list[int]()
    order = np.lexsort((-ends, starts)).tolist()
    for event in order:
        while around and ends[around[-1]] <= starts[event]:
            around.pop()
        if around:
            parents[event] = around[-1]
        around.append(event)
    return parents, order


@functools.cache
def rank(name: str) -> int:
    """How much a row belongs to what has this name, if several are around a kernel.

    3 to an operator that counting sees whole and whose category it knows, 2 to another that it sees whole (its category
    is that of its kernels), 1 to one that it takes apart, of which the innermost; 0 to what is no operator.
    """
    if not _OPERATOR.fullmatch(name):
        return 0
    forms = [] if is_attention(name) or op_of(name) in WHOLE else overloads(name)
    if forms and all(form._can_decompose() for form in forms):
        return 1
    return 3 if is_attention(name) or category_of(name) != "Uncounted" else 2


def is_attention(name: str) -> bool:
    """Whether the operator is an attention core, or the kernel of one."""
    return bool(HEADS_FIRST.fullmatch(name) or TOKENS_FIRST.fullmatch(name))


def category_of(name: str, module_type: str = "") -> str:
    """Category of an operator by its name, as counting has it."""
    if not name.startswith("aten::"):
        return "Uncounted"
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads(name))
    return operators.category(op_of(name), pointwise=pointwise, module_type=module_type)


def op_of(name: str) -> str:
    """The name in the operator table: an aten operator without its namespace, a core as the one that counting sees."""
    return "scaled_dot_product_attention" if is_attention(name) else name.removeprefix("aten::")


def overloads(name: str) -> list[torch._ops.OpOverload]:
    """The forms of an aten operator that this version of torch has, but for those that write into an argument."""
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"), None) if name.startswith("aten::") else None
    forms = [getattr(packet, form) for form in packet.overloads()] if packet is not None else []
    writes = [any(argument.is_out for argument in form._schema.arguments) for form in forms]
    return [f for f, out in zip(forms, writes, strict=True) if not out and torch._C._dispatch_has_kernel(f.name())]
