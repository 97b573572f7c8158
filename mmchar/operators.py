"""Operators: what category an aten operator belongs to, and its FLOPs and bytes from shapes alone.

Formulas take ints and return ints. Source of the FLOP formulas: ``torch/utils/flop_counter.py`` (mm, bmm,
convolution), against which the tests hold them to the integer.
"""

from collections.abc import Sequence
from math import prod

CATEGORIES = (
    "Attention",
    "Convolution",
    "Linear",
    "Normalization",
    "Elementwise",
    "Embedding",
    "Data movement",
    "Communication",
    "Uncounted",
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NORMALIZATION = _words(
    "native_group_norm native_layer_norm native_batch_norm _native_batch_norm_legit_no_training _fused_rms_norm"
    " cudnn_batch_norm _weight_norm_interface"
)
ATTENTION_CORES = ("scaled_dot_product_attention", "pointwise_attention")  # the second is HSTU's, without softmax
_MATMUL = _words("linear mm addmm bmm baddbmm")
_REDUCTION = _words(
    "mean sum var var_mean std amax amin max min argmax argmin all any prod cumsum cumprod logsumexp _softmax"
    " _log_softmax _safe_softmax linalg_vector_norm norm sort topk nonzero native_dropout tril triu glu floor_divide"
)
_POINTWISE = _words("polar complex")  # pointwise, but not tagged so in torch
_MOVEMENT = _words(
    "clone copy_ copy _to_copy contiguous cat stack repeat repeat_interleave roll flip constant_pad_nd"
    " reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d slice_scatter"
    " select_scatter index_put index_put_ index_copy index_copy_ scatter scatter_ masked_scatter upsample_nearest1d"
    " upsample_nearest2d upsample_nearest3d upsample_bilinear2d _upsample_nearest_exact2d pixel_shuffle"
    " pixel_unshuffle im2col col2im fill_ zero_ max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d"
    " _adaptive_avg_pool2d"
)
_FACTORY = _words(
    "zeros ones full arange linspace eye zeros_like ones_like full_like rand randn randn_like normal_"
    " new_zeros new_ones new_full tril_indices one_hot uniform_ randint range"
)
_GATHER = _words("embedding index _unsafe_index index_select gather take masked_select")
_FREE = _words(
    "empty empty_like empty_strided new_empty new_empty_strided detach detach_ alias lift_fresh _unsafe_view"
    " _reshape_alias scalar_tensor is_same_size set_ resize_ _local_scalar_dense _assert_async _assert_scalar equal"
)


def category(op: str, *, pointwise: bool, module_type: str = "") -> str:
    """Category of an aten operator, or ``"Uncounted"`` where we have no formula for it.

    ``pointwise`` is the operator's own tag in torch. Whatever a module named ``…Norm…`` does besides matrix products
    (an RMSNorm written out as casts, powers and means) is Normalization, which is what the module computes.
    """
    if op in ("bmm", "baddbmm") and ("Attention" in module_type or "Attn" in module_type):
        return "Attention"  # an attention written out as matrix products (linear attention, soft-capped logits)
    if op in _MATMUL:
        return "Linear"
    if op == "convolution":
        return "Convolution"
    if op in ATTENTION_CORES:
        return "Attention"
    if op == "embedding":
        return "Embedding"
    moves = op in _MOVEMENT or op in _FACTORY or op in _GATHER
    computes = pointwise or op in _REDUCTION or op in _POINTWISE
    if op in _NORMALIZATION or ("Norm" in module_type and (moves or computes)):
        return "Normalization"
    if moves:
        return "Data movement"
    return "Elementwise" if computes else "Uncounted"


def is_free(op: str) -> bool:
    """Whether the operator moves no data: allocation, alias, metadata."""
    return op in _FREE


def reads_only_what_it_picks(op: str) -> bool:
    """Whether the operator reads just the rows it returns (embedding, index, gather), not the whole source."""
    return op in _GATHER


def matmul_flop(rows: int, inner: int, columns: int, *, batch: int = 1) -> int:
    """FLOP of ``[batch, rows, inner] @ [batch, inner, columns]``."""
    return 2 * batch * rows * inner * columns


def convolution_flop(image: Sequence[int], weight: Sequence[int], *, batch: int) -> int:
    """FLOP of a convolution of any rank and grouping.

    Parameters
    ----------
    image : sequence of int
        Spatial sizes of the output; of the input for a transposed convolution.
    weight : sequence of int
        Shape of the weight, ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` if transposed.
    """
    return 2 * batch * prod(image) * prod(weight)
