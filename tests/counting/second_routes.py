"""Second routes to what is counted: torch's own counter for FLOPs, closed forms for lengths."""

from contextlib import ExitStack
from unittest.mock import patch

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mmchar.counting.seqlen import COLUMNS, seen
from mmchar.generation.on_device import realized
from mmchar.tracing.known_values import readable, run
from mmchar.tracing.question import question

WITHOUT_CLOSED_FORM = [  # models of classes without a closed form
    "amused-256", "amused-512", "animatediff-v1.5.2", "audioldm2", "audioldm2-large", "blip2-opt-2.7b",
    "emu3-gen-8b", "hunyuan-dit-1.2", "idefics-80b-flamingo", "idefics-9b-flamingo", "latte-1",
    "llama-3.2-11b-vision", "mochi-1", "next-gpt-7b", "next-gpt-7b-video", "qwen2.5-omni-7b", "sana-1.5-1.6b",
    "sana-1.5-4.8b", "sana-1.6b-1024", "stable-audio-open-1.0", "svd-xt", "z-image-turbo",
]  # fmt: skip


def assert_same_lengths(form: pd.DataFrame, table: pd.DataFrame) -> None:
    """The attentions of a closed form are those of an operator table, row by row."""
    left, right = (rows.sort_values(list(COLUMNS), ignore_index=True) for rows in (form, seen(table)))
    pd.testing.assert_frame_equal(left, right)


class KnownValues(TorchDispatchMode):
    """Lets code on meta read what is known, as the tracer does, and adds up what torch's formulas say of each call."""

    def __init__(self):
        super().__init__()
        self.flop = 0
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            values = getattr(args[0], "known", None)
            return values.item() if values is not None else args[0].dtype == torch.bool or 0
        asked, inputs = question(args, kwargs)
        out = run(func, func.overloadpacket.__name__, args, kwargs, inputs, asked)
        if formula := flop_registry.get(func._overloadpacket):
            if (func, asked) not in self._known:
                self._known[func, asked] = formula(*args, **kwargs, out_val=out)
            self.flop += self._known[func, asked]
        return out


def torch_flop(model, stage, *, counter=True) -> int:
    """FLOP of one execution by torch's counter, with attention taken apart into matrix products.

    Without the counter by the formulas that it uses, of a call that is not run where one like it was.
    """
    network = model.components[stage.component]
    if model.device != "meta":
        stage = realized(stage, network, device=model.device, dtype=model.dtype)
    work, formulas, counted = stage.work(network), KnownValues(), FlopCounterMode(display=False)
    every_call = patch("mmchar.tracing.known_values.meta_output", lambda func, args, kwargs, _: func(*args, **kwargs))
    with torch.no_grad(), readable(), sdpa_kernel([SDPBackend.MATH]), ExitStack() as stack:
        for mode in (every_call, counted) if counter else ():
            stack.enter_context(mode)
        stack.enter_context(formulas)
        work()
    return counted.get_total_flops() if counter else formulas.flop


def flop_of_step(table: pd.DataFrame, step: int) -> int:
    now = table[(table["step"] <= step) & (step < table["step"] + table["repeats"])]
    return int(now["flop"].sum())


def ends(stage) -> set[tuple[int, int]]:
    """The shortest and the longest execution of a stage, each with its place by length, as the table has them."""
    if not stage.grows:
        return {(0, 0)}
    lengths = sorted(stage.growth.dims)
    return {(stage.growth.dims.index(dims), lengths.index(dims)) for dims in (lengths[0], lengths[-1])}
