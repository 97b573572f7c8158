"""Operators: what category an aten operator belongs to, and its FLOPs and bytes from shapes alone.

Formulas take ints and return ints. Source of the FLOP formulas: ``torch/utils/flop_counter.py`` (mm, bmm,
convolution), against which the tests hold them to the integer.
"""

from collections.abc import Iterable, Sequence
from math import log2, prod

CATEGORIES = ("Attention", "Convolution", "Linear", "Normalization", "Elementwise", "Embedding", "Data movement",
              "Communication", "Uncounted")  # fmt: skip


def words(text: str) -> frozenset[str]:
    """Names of operators, of one line."""
    return frozenset(text.split())


_NORMALIZATION = words(
    "native_group_norm native_layer_norm native_batch_norm _native_batch_norm_legit"
    " _native_batch_norm_legit_no_training _fused_rms_norm cudnn_batch_norm miopen_batch_norm"
    " _weight_norm_interface renorm"
)
# Normalizations that one operator computes; others are written out in pointwise ones.
WHOLE_NORMS = words("native_group_norm native_layer_norm _fused_rms_norm")
SOFTMAX = words("_softmax _log_softmax _safe_softmax")
# The second is HSTU's, without softmax.
ATTENTION_CORES = ("scaled_dot_product_attention", "pointwise_attention", "flex_attention")
# Products of rows with the weights of the expert that each row was given to.
GROUPED = words("_grouped_mm grouped_mm grouped_mm_fallback _scaled_grouped_mm")
FFT = words("_fft_r2c _fft_c2c _fft_c2r")
# All layers and time steps of an LSTM, a GRU or a plain recurrent network in one operator, which a device may have.
RECURRENT = words("mkldnn_rnn_layer _cudnn_rnn miopen_rnn")
# Products of two operands, alone or added to a first argument.
PRODUCTS = words("linear mm bmm mv _int_mm _scaled_mm _weight_int8pack_mm _weight_int4pack_mm")
SUMS = words("addmm _addmm_activation baddbmm addmv")
_RARE = words("addbmm dot vdot addr _trilinear _euclidean_dist _linalg_solve_ex linalg_solve_triangular")
_MATMUL = PRODUCTS | SUMS | GROUPED | RECURRENT | _RARE
_CONVOLUTION = words("convolution conv_tbc")
_EMBEDDING = words("embedding embedding_renorm_ _embedding_bag _embedding_bag_forward_only")
_REDUCTION = words(
    "mean sum nansum var var_mean std std_mean amax amin aminmax max min argmax argmin all any prod count_nonzero trace"
    " cumsum cumprod cummax cummin logcumsumexp logsumexp _softmax _log_softmax _safe_softmax linalg_vector_norm norm"
    " _is_all_true _is_any_true dist _cdist_forward"
    " _pdist_forward sort topk kthvalue median nanmedian mode nonzero histc bincount bucketize"
    " searchsorted isin _unique2 unique_dim unique_consecutive multinomial segment_reduce native_dropout tril triu glu"
    " floor_divide linalg_cross allclose scatter_add scatter_reduce index_add index_reduce _foreach_add"
    " mse_loss smooth_l1_loss huber_loss nll_loss_forward nll_loss2d_forward binary_cross_entropy"
    " binary_cross_entropy_with_logits"
)
# Pointwise, but not tagged so in torch.
_POINTWISE = FFT | words(
    "polar complex hardswish log_sigmoid_forward _prelu_kernel rrelu_with_noise masked_fill index_fill"
    " fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask quantize_per_tensor"
    " quantize_per_channel dequantize _thnn_fused_lstm_cell _thnn_fused_gru_cell"
)
RESIZING = words(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d"
    " _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa"
)
MOVEMENT = RESIZING | words(
    "clone copy_ copy _to_copy contiguous cat stack repeat repeat_interleave roll flip rot90 constant_pad_nd"
    " reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
    " slice_scatter select_scatter diagonal_scatter as_strided_scatter index_put index_copy put scatter masked_scatter"
    " unsafe_split unsafe_split_with_sizes split_copy split_with_sizes_copy unbind_copy unfold_backward block_diag"
    " diag_embed channel_shuffle pixel_shuffle pixel_unshuffle im2col col2im _pack_padded_sequence fill zero"
    " affine_grid_generator grid_sampler_2d grid_sampler_3d max_pool2d_with_indices max_pool3d_with_indices"
    " avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d"
    " adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d"
)
_FACTORY = words(
    "zeros ones full arange linspace logspace eye zeros_like ones_like full_like rand rand_like randn randn_like normal"
    " new_zeros new_ones new_full tril_indices triu_indices one_hot uniform randint randint_like randperm range random"
    " bernoulli exponential cauchy geometric log_normal poisson hann_window hamming_window blackman_window"
    " bartlett_window kaiser_window fft_fftfreq fft_rfftfreq"
)
# They read just the rows that they return, not the whole source.
GATHER = words("embedding index _unsafe_index index_select gather take masked_select")
# They move no data: allocation, alias, metadata.
FREE = words(
    "empty empty_like empty_strided new_empty new_empty_strided detach detach_ alias lift_fresh _unsafe_view"
    " _reshape_alias scalar_tensor is_same_size set_ resize_ _local_scalar_dense _assert_async _assert_scalar equal"
    " transpose_ squeeze_ unsqueeze_ t_ as_strided_ _linalg_check_errors"
)


def category(op: str, *, pointwise: bool, module_type: str = "") -> str:
    """Category of an aten operator, or ``"Uncounted"`` where we have no formula for it.

    A Fourier transform is Elementwise, like sorting: it does little for each number that it reads (`fft_flop`).

    ``pointwise`` is the operator's own tag in torch. Whatever a module named ``…Norm…`` does besides matrix products
    (an RMSNorm written out as casts, powers and means) is Normalization, which is what the module computes.
    """
    op = out_of_place(op)
    if op in ("bmm", "baddbmm") and ("Attention" in module_type or "Attn" in module_type):
        return "Attention"  # an attention written out as matrix products (linear attention, soft-capped logits)
    if op in _MATMUL:
        return "Linear"
    if op in _CONVOLUTION:
        return "Convolution"
    if op in ATTENTION_CORES:
        return "Attention"
    if op in _EMBEDDING:
        return "Embedding"
    moves = op in MOVEMENT or op in _FACTORY or op in GATHER
    computes = pointwise or op in _REDUCTION or op in _POINTWISE
    if op in _NORMALIZATION or ("Norm" in module_type and (moves or computes)):
        return "Normalization"
    if moves:
        return "Data movement"
    return "Elementwise" if computes else "Uncounted"


def out_of_place(op: str) -> str:
    """The name of the operator that does the same without writing over its first argument: ``addmm`` of ``addmm_``."""
    return op.removesuffix("_")


def overwrites(op: str) -> bool:
    """Whether the operator writes over its first argument without reading it: ``copy_``, ``zero_``, ``normal_``."""
    return op.endswith("_") and (op in ("copy_", "fill_", "zero_") or out_of_place(op) in _FACTORY)


def makes_new(op: str) -> bool:
    """Whether the operator makes numbers of its own, if in another tensor's shape: ``zeros_like``, ``new_empty``."""
    return op in _FACTORY or op.startswith(("empty", "new_empty"))


def matmul_flop(rows: int, inner: int, columns: int, *, batch: int = 1) -> int:
    """FLOP of ``[batch, rows, inner] @ [batch, inner, columns]``."""
    return 2 * batch * rows * inner * columns


def convolution_flop(image: Sequence[int], weight: Sequence[int], *, batch: int) -> int:
    """FLOP of a convolution of any rank, from the spatial sizes of its output, or its input where it is transposed.

    The weight is ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` if transposed.
    """
    return 2 * batch * prod(image) * prod(weight)


def grouped_flop(a: Sequence[int], b: Sequence[int]) -> int:
    """FLOP of a grouped product, from the shapes of its operands; every row is multiplied with one group's matrix.

    ``[rows, k] @ [groups, k, n]``, ``[groups, m, k] @ [k, columns]``, ``[groups, m, k] @ [groups, k, n]``, or, with
    groups along the inner dimension, ``[m, rows] @ [rows, n]``. How many rows each group has does not matter.
    """
    rows = prod(a[1:-1]) if len(a) > len(b) else prod(a[:-1])  # with groups of columns, each column meets one matrix
    return matmul_flop(rows, a[-1], b[-1])


def recurrent_flop(tokens: int, weights: Iterable[Sequence[int]]) -> int:
    """FLOP of the matrix products of a recurrent network, each weight ``(out, in)`` once per token of the sequences."""
    return sum(matmul_flop(tokens, *shape) for shape in weights)


def fft_flop(size: int, *, transforms: int) -> int:
    """FLOP of Fourier transforms of ``size`` points each (the product of the transformed dimensions): 5 n log2 n.

    Of real input or output the same, though half of it would do. **Source**: the convention of FFTW's benchmarks
    (fftw.org/speed, "mflops"), which is the count of the radix-2 algorithm.
    """
    return round(5 * size * log2(size)) * transforms if size > 1 else 0
