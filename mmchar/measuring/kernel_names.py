"""What a kernel is, by its name.

Names of CUDA 11 to 13 and ROCm 6 and 7: those of cuBLAS, cuDNN, CUTLASS, MIOpen, hipBLASLt, Composable Kernel, AOTriton
and PyTorch, and as Inductor writes them, where the operators that a loop fuses are in its name.
"""

import functools
import re
from typing import NamedTuple

_LOOP = r"(cpp_fused|triton_(poi|red|per)_fused)"
# In this order: the first pattern that a kernel's name holds says its kind and its operator category.
_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, category)
    for pattern, kind, category in (
        (rf"{_LOOP}.*(norm|rsqrt)", "fused loop", "Normalization"),
        (rf"{_LOOP}.*(embedding|index_select|gather)", "fused loop", "Embedding"),
        (_LOOP, "fused loop", "Elementwise"),  # also where named after the attention it feeds
        (r"nccl|rccl|all_?reduce|all_?gather|reduce_?scatter", "message", "Communication"),
        (r"flash|fmha|sdpa|scaled_dot_product|attention|attn_fwd|attn_bwd|bwd_kernel_d", "attention", "Attention"),
        # cuDNN's and MIOpen's change between channels first and channels last
        (r"nchwtonhwc|nhwctonchw|nchw2nhwc|nhwc2nchw|batched_transpose", "layout copy", "Data movement"),
        (r"conv(?!ert)|fprop|dgrad|wgrad|winograd|implicit_gemm|igemm|scudnn|cask_cudnn|fft2d|im2(d2)?col",
         "convolution", "Convolution"),
        (r"_tem_fused|gemm|gemv|nvjet|cublas|splitkreduce|Cijk_|wvsplitk|triton_mm|mkldnn_linear|"
         r"aten::((add)?(b?mm|linear|baddbmm)|_(int|scaled)_mm|addmm|matmul|_weight_int8pack_mm)",
         "matrix product", "Linear"),
        (r"softmax", "softmax", "Elementwise"),
        (r"^(void )?(at::native::)?reduce_kernel", "reduction", "Elementwise"),  # named after what it reduces
        (r"norm|rowwisemoments|rsqrt|GammaBeta|Compute\w*FusedParams|ComputeInternalGradients", "normalization",
         "Normalization"),
        (r"embedding|indexselect|index_select|gather", "embedding", "Embedding"),
        (r"^memcpy|^memset|FillFunctor|SubTensorOp|fillBuffer|aten::(fill_|zero_)", "memcpy, memset", "Data movement"),
        (r"copy|catarray|transpose|aten::(cat|clone|contiguous|to)$", "copy", "Data movement"),
        (r"pool|upsample|(reflection|replication|constant)_?pad", "copy", "Data movement"),
        (r"aten::(view|reshape|empty|as_strided|permute|unsqueeze|slice|select|expand|t|split|chunk)", "copy",
         "Data movement"),
        (r"topk|sort|scan|nonzero|cub::|rocprim", "reduction", "Elementwise"),
        (r"elementwise|dropout|index|arange|aten::", "elementwise", "Elementwise"),
    )
)  # fmt: skip

_CUTLASS = re.compile(r"(?:void )?cutlass\w*::Kernel\d*<(\w+)")


class Kind(NamedTuple):
    """The kind of a kernel, finer than the category of an operator, and that category."""

    kind: str
    category: str


@functools.cache
def kernel_kind(name: str, *, op: str = "", caller: str = "") -> Kind:
    """The kind of a kernel by its name and by what launched it: ``op`` of its row, and ``caller``, the innermost one.

    A convolution launches more than its kernel: copies between layouts, and an addition of the bias. Both have a kind
    of their own, and products by which it is computed (as im2col, FFT or Winograd) are convolutions. ``other`` where
    neither name says anything.
    """
    found = next((Kind(*rest) for pattern, *rest in _KINDS if pattern.search(name)), Kind("other", "Uncounted"))
    if "convolution" not in op:
        return found
    inner = caller.removeprefix("aten::").rstrip("_")
    if found.kind in ("elementwise", "copy") and inner == "add":
        return Kind("bias add", "Elementwise")
    if found.kind == "copy" and inner != "cat":
        return Kind("layout copy", "Data movement")
    return Kind("convolution", "Convolution") if found.kind in ("matrix product", "other") else found


def kernel_category(name: str) -> str:
    """The operator category of a kernel, by its name; ``Uncounted`` where the name says nothing.

    A loop that fuses several operators belongs to Normalization where it holds one, and is Elementwise otherwise.
    """
    return kernel_kind(name).category


@functools.cache
def kernel_name(name: str) -> str:
    """A kernel's name without template arguments and without the numbers that a compiler adds, so that equals meet.

    Of a kernel of CUTLASS the first argument is the name.
    """
    if own := _CUTLASS.match(name):
        return own[1][:80]
    short = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "").split("<")[0].split("(")[0]
    return re.sub(r"^graph_\d+_|_\d+$", "", short.strip())[:80]
