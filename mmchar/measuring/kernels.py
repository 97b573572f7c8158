"""Which kernels ran and when, from a profiler pass that records nothing else.

With only the GPU's activities recorded, and no tracer, the host is slowed by about a microsecond per launch; this is
the pass from which idle time is read, and the one that attributes compiled executions, by the names of their kernels.
"""

import itertools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_HEAD = "spin_kernel"  # what torch.cuda._sleep launches, and no model does
_sessions = itertools.count(1)  # of this process


class Kernel(NamedTuple):
    """One kernel or copy: its name, and when it started and ended, in seconds of one clock."""

    name: str
    start_s: float
    end_s: float


def run_kernels(work: Callable[[], Any], device: str) -> list[Kernel]:
    """The kernels of one execution, in order of their start; on a CPU its outermost operators and compiled loops."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    if not on_gpu:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with torch.inference_mode(), profile(activities=[getattr(ProfilerActivity, "CUDA" if on_gpu else "CPU")]) as seen:
        if on_gpu:
            launch_head(device)
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = [
        Kernel(event.name(), event.start_ns() / 1e9, event.end_ns() / 1e9)
        for event in seen.profiler.kineto_results.events()
        if (_of_gpu(event) if on_gpu else _is_operator(event.name()))
    ]
    found.sort(key=lambda kernel: (kernel.start_s, -kernel.end_s))
    return without_head(found) if on_gpu else _outermost(found)


def launch_head(device: str) -> None:
    """Launch the kernels that a profiling session may lose, and wait for them.

    CUPTI of CUDA 12.6 to 13.0 gives wrong times to the first k kernels of the k-th session of a process, and Kineto
    drops them without a word (pytorch issue 192021; fixed in CUDA 13.1). So each session starts with more than that of
    a kernel of another name; where none of it is seen, what follows is not complete either.
    """
    import torch

    with torch.cuda.device(device):
        for _ in range(100 + 10 * next(_sessions)):
            torch.cuda._sleep(1)
        torch.cuda.synchronize()


def is_head(name: str) -> bool:
    """Whether a kernel is one of those that `launch_head` launched."""
    return _HEAD in name


def without_head(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that follow those of `launch_head`.

    Raises
    ------
    RuntimeError
        None of the head was recorded, so some of what follows may be missing as well, or nothing else was.
    """
    found = [kernel for kernel in kernels if not is_head(kernel.name)]
    if not found:
        raise RuntimeError("the profiler saw no GPU kernel; is another profiler attached, or CUPTI missing?")
    if len(found) == len(kernels):
        raise RuntimeError("the profiler lost the first GPU kernels of its session, so it may have lost more")
    return found


def _of_gpu(event: Any) -> bool:
    from torch.autograd import DeviceType

    return event.device_type() == DeviceType.CUDA and not event.is_user_annotation()


def _is_operator(name: str) -> bool:
    return name.startswith("aten::") or "cpp_fused" in name


def _outermost(events: Sequence[Kernel]) -> list[Kernel]:
    """Those that lie in no other; the events are ordered by start, the longer first."""
    kept: list[Kernel] = []
    for event in events:
        if not kept or event.end_s > kept[-1].end_s:
            kept.append(event)
    return kept


# In this order: the first pattern that a kernel's name holds says its category. Names as in CUDA 12 and 13 (cuBLAS,
# cuDNN, CUTLASS, PyTorch) and as Inductor writes them: the operators that a loop fuses are in its name.
_CATEGORIES = tuple(
    (re.compile(pattern, re.IGNORECASE), category)
    for pattern, category in (
        (r"(cpp_fused|triton_(poi|red|per)_fused).*(norm|rsqrt)", "Normalization"),
        (r"(cpp_fused|triton_(poi|red|per)_fused).*(embedding|index_select|gather)", "Embedding"),
        (r"cpp_fused|triton_(poi|red|per)_fused", "Elementwise"),  # also where named after the attention it feeds
        (r"flash|fmha|sdpa|scaled_dot_product|attention", "Attention"),
        (r"nchwtonhwc|nhwctonchw", "Data movement"),
        (r"conv|fprop|winograd|implicit_gemm", "Convolution"),
        (r"_tem_fused|gemm|gemv|nvjet|cublas|splitkreduce|aten::(add)?(b?mm|linear|baddbmm)|aten::_(int|scaled)_mm|"
         r"triton_mm|aten::addmm|aten::matmul|mkldnn_linear|aten::_weight_int8pack_mm", "Linear"),
        (r"norm|rowwisemoments|rsqrt", "Normalization"),
        (r"embedding|indexselect|index_select|gather", "Embedding"),
        (r"memcpy|memset|copy|catarray|transpose|aten::(cat|clone|contiguous|fill_|zero_|to)$", "Data movement"),
        (r"aten::(view|reshape|empty|as_strided|permute|unsqueeze|slice|select|expand|t|split|chunk)", "Data movement"),
        (r"elementwise|reduce_kernel|softmax|topk|sort|scan|index|arange|aten::", "Elementwise"),
    )
)  # fmt: skip


def kernel_category(name: str) -> str:
    """The operator category of a kernel, by its name; ``Uncounted`` where the name says nothing.

    A loop that fuses several operators belongs to Normalization where it holds one, and is Elementwise otherwise.
    """
    return next((category for pattern, category in _CATEGORIES if pattern.search(name)), "Uncounted")


def kernel_name(name: str) -> str:
    """A kernel's name without template arguments and without the numbers that a compiler adds, so that equals meet."""
    short = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "").split("<")[0].split("(")[0]
    return re.sub(r"^graph_\d+_|_\d+$", "", short.strip())[:80]
