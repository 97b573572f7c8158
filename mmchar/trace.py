"""Run one execution of a stage, on meta or on real tensors, and write down every operator call.

A dispatch mode under ``inference_mode`` sees composite operators before they are taken apart. It keeps attention,
``linear`` and interpolation whole and looks inside everything else, so a fused attention is one row with its real
lengths, on every device.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from mmchar import attention, operators

aten = torch.ops.aten
# Operators that GPUs run as one kernel, though torch could take them apart.
_WHOLE = {
    *operators.ATTENTION_CORES,
    *("linear", "_fused_rms_norm"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact2d", "upsample_bilinear2d"),
}
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
    dtype: str = ""
    backend: str = ""
    calls: int = 0
    flop: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    mask_bytes: int = 0
    live_bytes: int = 0


@dataclass
class Traced:
    """What one execution did: its rows in order of first call, and the operators nobody has a formula for."""

    rows: list[Row] = field(default_factory=list)

    @property
    def uncounted(self) -> list[str]:
        """Operators without a formula."""
        return sorted({row.op for row in self.rows if row.category == "Uncounted"})


def trace(module: nn.Module, work: Callable[[], Any], *, label: Callable[[int], Any] | None = None) -> Traced:
    """Run ``work`` once and return its operator rows.

    Parameters
    ----------
    module : nn.Module
        The component that ``work`` calls; its sub-modules give the rows their names.
    work : callable
        One execution of a stage, with its inputs already made.
    label : callable, optional
        ``label(row_index)`` gives a context to run each operator in; profiling uses it to name kernels by row.
    """
    with torch.inference_mode(), _module_stack(module) as stack, _Recorder(module, stack, label) as recorder:
        work()
    _name_spatial(recorder.rows)
    return Traced(recorder.rows)


@contextmanager
def _module_stack(root: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The stack of modules of ``root`` whose forward is running, as (path, module), root first."""
    names = {id(module): name for name, module in root.named_modules()}
    stack: list[tuple[str, nn.Module]] = [("", root)]

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


class _Recorder(TorchDispatchMode):
    def __init__(self, root: nn.Module, stack: list[tuple[str, nn.Module]], label: Callable[[int], Any] | None) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._index: dict[tuple, int] = {}
        self._component = type(root).__name__
        self._stack = stack
        self._label = label or (lambda _row: nullcontext())
        self._known = {t.untyped_storage()._cdata for t in (*root.parameters(), *root.buffers())}
        self._alive: dict[int, int] = {}
        self._live_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _DROPOUT and not args[2]:
            return args[0]  # out of training it returns its input; torch's own decomposition would copy it
        if name == "copy_" and args[0].is_meta and not any(args[1].stride()):
            name = "fill_"  # x[...] = number: real tensors fill, meta expands the number and copies it
        if name not in _WHOLE and func.namespace == "aten" and func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        inputs = _tensors(args) + _tensors(kwargs.values())
        if func.is_view or operators.is_free(name):
            out = self._answer(func, name, args, kwargs)
            self._track(inputs)
            self._track(_tensors((out,)))
            return out
        self._track(inputs)
        row = self._row(func, name, args, kwargs, inputs)
        with self._label(row):
            out = self._run(func, name, args, kwargs)
        outputs = _tensors((out,))
        if name == "_native_batch_norm_legit_no_training":
            outputs = outputs[:1]  # out of training it keeps no statistics, though on meta they have their shapes
        self._track(outputs)
        self._add(self.rows[row], name, args, kwargs, inputs, outputs)
        return out

    def _answer(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        """A free operator; on meta a scalar read is answered as of a mask of all ones, or of zero."""
        if name == "_local_scalar_dense" and args[0].is_meta:
            return args[0].dtype == torch.bool or 0
        return func(*args, **kwargs)

    def _run(self, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
        if name in operators.ATTENTION_CORES and args[0].is_meta:
            q, v = args[0], args[2]
            if q.shape[-1] == v.shape[-1]:
                return torch.empty_like(q)  # kernels lay the output out as the queries are
            if q.dim() < 4:
                return q.new_empty(*q.shape[:-1], v.shape[-1])
            # a fused kernel writes [b, q, h, d] and returns it transposed, so that merging the heads is free
            return q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-2, -3)
        return pick_by_mask(func, args) if selects_by_mask(name, args) else func(*args, **kwargs)

    def _row(self, func: Any, name: str, args: tuple, kwargs: dict, inputs: list[Tensor]) -> int:
        path, module = self._stack[-1]
        dtype = next(
            (t.dtype for t in inputs if t.is_floating_point()), inputs[0].dtype if inputs else kwargs.get("dtype")
        )
        core = self._attention(path, module, args, kwargs) if name in operators.ATTENTION_CORES else {}
        key = (id(module), path, name, dtype, *core.values())
        if key not in self._index:
            kind = operators.category(
                name, pointwise=torch.Tag.pointwise in func.tags, module_type=type(module).__name__
            )
            self._index[key] = len(self.rows)
            text = str(dtype).removeprefix("torch.") if dtype is not None else ""
            self.rows.append(Row(path, type(module).__name__, name, kind, dtype=text, **core))
        return self._index[key]

    def _attention(self, path: str, module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Lengths, kind and backend of a call ``(q, k, v, mask or bias, …)``; q is [..., h, q, d]."""
        q, k = args[0], args[1]
        has_mask = _mask(args, kwargs) is not None
        heads = q.shape[-3] if q.dim() > 3 else 1
        q_len, kv_len, head_dim = q.shape[-2], k.shape[-2], q.shape[-1]
        is_causal = bool(args[5] if len(args) > 5 else kwargs.get("is_causal", False))
        kind = attention.attention_kind(
            path,
            q_len=q_len,
            kv_len=kv_len,
            causal=is_causal or getattr(module, "is_causal", False) is True,
            joint=attention.is_one_sequence(self._component, path)
            or (
                getattr(module, "added_kv_proj_dim", None) is not None
                and not getattr(module, "only_cross_attention", False)
            ),
            cross=_looks_elsewhere(module, q_len, kv_len),
        )
        fused = "flash" if attention.flash_eligible(has_mask=has_mask, head_dim=head_dim) else "mem-efficient"
        sizes = {"batch": q.numel() // (heads * q_len * head_dim), "heads": heads, "q_len": q_len, "kv_len": kv_len}
        return {"attention": kind, **sizes, "head_dim": head_dim, "backend": fused}

    def _add(self, row: Row, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        written = sum(_bytes(t) for t in outputs)
        row.calls += 1
        row.flop += _flop(name, args, kwargs, inputs, outputs)
        row.write_bytes += written
        row.read_bytes += _read_bytes(name, args, inputs, written)
        row.live_bytes = max(row.live_bytes, self._live_bytes)
        if name in operators.ATTENTION_CORES and (mask := _mask(args, kwargs)) is not None:
            row.mask_bytes += _bytes(mask)

    def _track(self, tensors: list[Tensor]) -> None:
        """Count a storage as live from when it is first seen until nothing refers to it; weights are not counted."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known or key in self._alive:
                continue
            size = storage.nbytes()
            self._alive[key] = size
            self._live_bytes += size
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._alive.pop(key, 0)


def _looks_elsewhere(module: nn.Module, q_len: int, kv_len: int) -> bool | None:
    """What a module says of itself: whether its keys come from elsewhere; ``None`` where it says nothing.

    A cross attention that is as wide inside as outside and gets as many keys as queries has been given no context (as
    in AudioLDM), so it looks at its own tokens.
    """
    says = getattr(module, "is_cross_attention", None)
    widths = {getattr(module, name, None) for name in ("query_dim", "cross_attention_dim")}
    return says and not (q_len == kv_len and len(widths) == 1 and None not in widths)


def selects_by_mask(name: str, args: tuple) -> bool:
    """Whether this is ``x[mask]``, ``~mask`` or ``nonzero`` on meta: its shape hangs on what the mask holds."""
    if name == "nonzero":
        return args[0].is_meta
    if name == "bitwise_not":
        return args[0].is_meta and args[0].dtype == torch.bool
    return name == "index" and args[0].is_meta and any(t is not None and t.dtype == torch.bool for t in args[1])


def pick_by_mask(func: Any, args: tuple) -> Tensor:
    """``x[mask]`` and the like on meta, as of a mask of all ones: it keeps everything, its negation nothing."""
    if func.overloadpacket.__name__ == "nonzero":
        return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta")
    if len(args) == 1:
        out = func(*args)
        out.keeps_nothing = not getattr(args[0], "keeps_nothing", False)
        return out
    picks: list[Tensor | None] = []
    for mask in args[1]:
        if mask is None or mask.dtype != torch.bool:
            picks.append(mask)
            continue
        kept = 0 if getattr(mask, "keeps_nothing", False) else mask.numel()
        picks += [torch.empty(kept, dtype=torch.int64, device="meta")] * mask.dim()
    return func(args[0], picks)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_tensors(value))
    return found


def _mask(args: tuple, kwargs: dict) -> Tensor | None:
    return args[3] if len(args) > 3 else kwargs.get("attn_mask")


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: a dimension that was broadcast (stride 0) is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride != 0:
            size *= length
    return size


def _read_bytes(name: str, args: tuple, inputs: list[Tensor], written: int) -> int:
    if operators.reads_only_what_it_picks(name):
        return written + sum(_bytes(t) for t in inputs[1:] if not t.is_floating_point())
    if name in ("copy_", "fill_", "zero_", "normal_", "uniform_"):
        inputs = inputs[1:]  # the destination is written, not read
    return sum(_bytes(t) for t in inputs)


def _flop(name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    if name == "linear":
        x, weight = args[:2]
        return operators.matmul_flop(x.numel() // x.shape[-1], weight.shape[1], weight.shape[0])
    if name in ("mm", "addmm"):
        a, b = args[-2:]
        return operators.matmul_flop(a.shape[0], a.shape[1], b.shape[1])
    if name in ("bmm", "baddbmm"):
        a, b = args[-2:]
        return operators.matmul_flop(a.shape[1], a.shape[2], b.shape[2], batch=a.shape[0])
    if name == "convolution":
        image = inputs[0] if args[6] else outputs[0]  # args[6]: transposed
        return operators.convolution_flop(image.shape[2:], args[1].shape, batch=image.shape[0])
    if name in operators.ATTENTION_CORES:
        q, k, v = args[:3]
        heads = q.shape[-3] if q.dim() > 3 else 1
        batch = q.numel() // (heads * q.shape[-2] * q.shape[-1])
        return attention.attention_flop(
            q.shape[-2], k.shape[-2], batch=batch, heads=heads, head_dim=q.shape[-1], value_dim=v.shape[-1]
        )
    return 0


def _name_spatial(rows: list[Row]) -> None:
    """Where a component also attends over time, its self attention is over the positions of one frame."""
    if any(row.attention == "temporal" for row in rows):
        for row in rows:
            if row.attention == "self":
                row.attention = "spatial"
