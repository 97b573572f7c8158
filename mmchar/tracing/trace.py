"""Run one execution of a stage, on meta or on real tensors, and write down every operator call.

A dispatch mode under ``inference_mode`` sees composite operators before they are taken apart. It keeps attention,
``linear`` and interpolation whole and looks inside everything else, so a fused attention is one row with its real
lengths, on every device.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_core
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from mmchar.tracing import attention, by_shape, known_values, operator_flop as costs, operators
from mmchar.tracing.plain_paths import plain_paths
from mmchar.tracing.question import OperatorCall, question, tensors
from mmchar.tracing.token_sources import CONTEXT, IMAGE, TokenSources

aten = torch.ops.aten
# Operators that GPUs run as one kernel, though torch could take them apart.
WHOLE = {"linear", "_fused_rms_norm", *operators.ATTENTION_CORES, *operators.RESIZING}
_DROPOUT = {"dropout", "feature_dropout", "alpha_dropout"}


@dataclass
class Row:
    """Totals of one call site in one execution of a stage; the key says which site."""

    module: str
    module_type: str
    op: str
    category: str
    attention: str = ""
    batch: int = 0
    heads: int = 0
    q_len: int = 0
    kv_len: int = 0
    head_dim: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    dtype: str = ""
    backend: str = ""
    calls: int = 0
    flop: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    mask_bytes: int = 0
    live_bytes: int = 0

    def add(self, cost: costs.Cost) -> None:
        """Add one call."""
        self.calls += 1
        self.flop += cost.flop
        self.m, self.n, self.k = cost.sizes
        self.read_bytes += cost.read_bytes
        self.write_bytes += cost.write_bytes


class _Nature(NamedTuple):
    """What an operator is, whatever it is called with."""

    name: str
    is_free: bool
    is_taken_apart: bool

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> "_Nature":
        name = func.overloadpacket.__name__
        is_taken_apart = name not in WHOLE and func.namespace == "aten" and func._can_decompose()
        return cls(name, func.is_view or name in operators.FREE, is_taken_apart)


class _Life(weakref.ref):
    """A storage that is alive, known by its address, with its bytes."""

    __slots__ = ("key", "size")
    key: int
    size: int


def trace(module: nn.Module, work: Callable[[], Any], *, label: Callable[[int], Any] | None = None) -> list[Row]:
    """Run ``work``, one execution of a stage, and return its operator rows, in the order of first calls.

    The sub-modules of the component that it calls give the rows their names. ``label(row_index)`` gives a context to
    run each operator in; profiling uses it to name kernels by row.
    """
    modules = dict(module.named_modules())
    with torch.inference_mode(), plain_paths(), known_values.readable(), _module_stack(modules) as stack:
        recorder = Recorder(modules.values(), stack, label)
        with recorder.token_sources.marking(modules.values()), recorder:
            work()
    _name_spatial(recorder.rows)
    return recorder.rows


@contextmanager
def _module_stack(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, nn.Module]]]:
    """The stack of modules, by path, whose forward is running, as (path, module), root first."""
    names = {id(module): name for name, module in modules.items()}
    stack: list[tuple[str, nn.Module]] = [("", modules[""])]

    def enter(module: nn.Module, _inputs: Any) -> None:
        stack.append((names.get(id(module), stack[-1][0]), module))

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.pop()

    before = nn_module.register_module_forward_pre_hook(enter)
    after = nn_module.register_module_forward_hook(leave, always_call=True)
    try:
        yield stack
    finally:
        before.remove()
        after.remove()


class Recorder(TorchDispatchMode):
    """Writes down every operator that runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled meanwhile, and torch's guard around each call costs as much as the call."""
        return False

    def __init__(
        self, modules: Iterable[nn.Module], stack: list[tuple[str, nn.Module]], label: Callable[[int], Any] | None
    ) -> None:
        super().__init__()
        self.token_sources = TokenSources()
        self.rows: list[Row] = []
        self._index: dict[tuple, int] = {}
        self._stack = stack
        self._label = label or (lambda _row: nullcontext())
        self._costs = costs.Costs(costs.distinct_bytes)
        own = (weight for part in modules for weight in (*part._parameters.values(), *part._buffers.values()))
        self._known = {weight.untyped_storage()._cdata for weight in own if weight is not None}
        self._alive: dict[int, _Life] = {}
        self._live_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name, is_free, is_taken_apart = _Nature.of(func)
        if name in _DROPOUT and not args[2]:
            return args[0]  # out of training it returns its input; torch's own decomposition would copy it
        if name == "copy_" and args[0].is_meta and not any(args[1].stride()):
            name = "fill_"  # x[...] = number: real tensors fill, meta expands the number and copies it
        call = OperatorCall.of(func, name, args, kwargs)
        if is_taken_apart:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if is_free:
            out = self._answer(call)
            self._track(call.inputs)
            self._track(tensors((out,)))
            return out
        self._track(call.inputs)
        row = self._row(call)
        with self._label(row):
            out = self._computed(call)
        written = out
        if name == "_native_batch_norm_legit_no_training":
            written = out[0]  # out of training it keeps no statistics, though on meta they have their shapes
        self._add(self.rows[row], call, written)
        return out

    def _answer(self, call: OperatorCall) -> Any:
        """A free operator; on meta a scalar that nobody knows is read as of a mask of all ones, or as zero."""
        if call.name == "_local_scalar_dense":
            known_values.note_read()
            if (number := call.inputs[0]).is_meta:
                values = known_values.known(number)
                return values.item() if values is not None else number.dtype == torch.bool or 0
        return self._computed(call)

    def _computed(self, call: OperatorCall) -> Any:
        if by_shape.is_answered(call.name, call.args):
            out = by_shape.answer(call.name, call.args, call.kwargs, call.asked)
        else:
            out = known_values.run(*call)
        self.token_sources.follow(call.name, call.args, call.inputs, out)
        return out

    def _row(self, call: OperatorCall) -> int:
        path, module = self._stack[-1]
        dtype = costs.dtype_of(call.inputs, call.kwargs.get("dtype"))
        core = self._attention(path, module, call) if call.name in operators.ATTENTION_CORES else {}
        shapes = [tensor.shape for tensor in call.inputs[:2]] if costs.has_sizes(call.name) else []
        key = (id(module), path, call.name, dtype, *core.values(), *shapes)
        if key not in self._index:
            pointwise, module_type = torch.Tag.pointwise in call.func.tags, type(module).__name__
            kind = operators.category(call.name, pointwise=pointwise, module_type=module_type)
            self._index[key] = len(self.rows)
            text = str(dtype).removeprefix("torch.") if dtype is not None else ""
            self.rows.append(Row(path, module_type, call.name, kind, dtype=text, **core))
        return self._index[key]

    def _attention(self, path: str, module: nn.Module, call: OperatorCall) -> dict[str, Any]:
        """Lengths, kind and backend of a call ``(q, k, v, mask or bias, …)``; q is [..., h, q, d]."""
        args, kwargs = call.args, call.kwargs
        batch, heads, q_len, kv_len, head_dim = costs.core_sizes(args)
        is_causal = bool(args[5] if len(args) > 5 else kwargs.get("is_causal", False))
        is_causal = is_causal or getattr(module, "is_causal", False) is True
        queries, keys = self.token_sources.sources(args[0]), self.token_sources.sources(args[1])
        elsewhere = keys == {CONTEXT} and queries == {IMAGE}
        kind = attention.attention_kind(
            path,
            q_len=q_len,
            kv_len=kv_len,
            causal=is_causal,
            joint=not is_causal and (keys == {IMAGE, CONTEXT} or (keys != {CONTEXT} and _adds_keys(module))),
            cross=elsewhere or _looks_elsewhere(module, q_len, kv_len),
        )
        has_mask = costs.mask_of(args, kwargs) is not None
        fused = "flash" if attention.flash_eligible(has_mask=has_mask, head_dim=head_dim) else "mem-efficient"
        sizes = dict(batch=batch, heads=heads, q_len=q_len, kv_len=kv_len, head_dim=head_dim)
        return {"attention": kind, **sizes, "backend": fused}

    def _add(self, row: Row, call: OperatorCall, out: Any) -> None:
        answered, outputs = question((out,), {})
        self._track(outputs)
        row.add(self._costs.of(call.name, (call.asked, answered), call.args, call.inputs, outputs))
        row.live_bytes = max(row.live_bytes, self._live_bytes)
        if row.attention and (mask := costs.mask_of(call.args, call.kwargs)) is not None:
            row.mask_bytes += costs.distinct_bytes(mask)

    def flex_attention(self, *args: Any, **kwargs: Any) -> Any:
        """An attention with a function for its mask or bias: counted as an attention core of all its lengths.

        That is in full, also where a block mask lets the kernel leave out blocks; what the function reads is left out.
        """
        call = OperatorCall.of(aten.scaled_dot_product_attention.default, "flex_attention", args[:3], {})
        self._track(call.inputs)
        row = self._row(call)
        with self._label(row):
            out = by_shape.flex_attention(*args[:3]) if args[0].is_meta else flex_attention_core(*args, **kwargs)
        self.token_sources.follow(call.name, call.args, call.inputs, out[0])
        self._add(self.rows[row], call, out[0])
        return out

    def _track(self, found: list[Tensor]) -> None:
        """Count a storage as live from when it is first seen until nothing refers to it; weights are not counted."""
        for tensor in found:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known or key in self._alive:
                continue
            life = self._alive[key] = _Life(storage, self._forget)
            life.key, life.size = key, storage.nbytes()
            self._live_bytes += life.size

    def _forget(self, life: _Life) -> None:
        del self._alive[life.key]
        self._live_bytes -= life.size


flex_attention_core.py_impl(Recorder)(Recorder.flex_attention)


def _looks_elsewhere(module: nn.Module, q_len: int, kv_len: int) -> bool | None:
    """What a module says of itself: whether its keys come from elsewhere; ``None`` where it says nothing.

    A cross attention that is as wide inside as outside and gets as many keys as queries has been given no context (as
    in AudioLDM), so it looks at its own tokens.
    """
    says = getattr(module, "is_cross_attention", None)
    widths = {getattr(module, name, None) for name in ("query_dim", "cross_attention_dim")}
    return says and not (q_len == kv_len and len(widths) == 1 and None not in widths)


def _adds_keys(module: nn.Module) -> bool:
    """What a module says of itself: that it has keys of a context besides those of its own tokens."""
    return getattr(module, "added_kv_proj_dim", None) is not None and not getattr(module, "only_cross_attention", False)


def _name_spatial(rows: list[Row]) -> None:
    """Where a component also attends over time, its self attention is over the positions of one frame."""
    if any(row.attention == "temporal" for row in rows):
        for row in rows:
            if row.attention == "self":
                row.attention = "spatial"
