"""Formulas against hand arithmetic, and the category of every kind of operator."""

import pytest

from mmchar.tracing import operators


def test_matmul_flop_counts_a_multiply_add_as_two():
    # 2 * 3 rows * 5 inner * 7 columns = 210; four of them in a batch = 840
    assert operators.matmul_flop(3, 5, 7) == 210
    assert operators.matmul_flop(3, 5, 7, batch=4) == 840


def test_convolution_flop_of_a_2d_convolution():
    # 2 * batch 2 * (8 * 6 outputs) * (16 out * 4 in * 3 * 3) = 2 * 2 * 48 * 576 = 110_592
    assert operators.convolution_flop((8, 6), (16, 4, 3, 3), batch=2) == 110_592


def test_convolution_flop_of_a_depthwise_convolution_has_one_input_channel_per_group():
    # groups = 16: the weight is (16, 1, 3, 3): 2 * 1 * 48 * 144 = 13_824
    assert operators.convolution_flop((8, 6), (16, 1, 3, 3), batch=1) == 13_824


@pytest.mark.parametrize(
    ("op", "pointwise", "module", "expected"),
    [
        ("linear", False, "Linear", "Linear"),
        ("baddbmm", False, "Attention", "Attention"),
        ("convolution", False, "Conv2d", "Convolution"),
        ("scaled_dot_product_attention", False, "Attention", "Attention"),
        ("embedding", False, "Embedding", "Embedding"),
        ("native_group_norm", False, "GroupNorm", "Normalization"),
        ("mul", True, "LlamaRMSNorm", "Normalization"),
        ("_to_copy", True, "LlamaRMSNorm", "Normalization"),
        ("mul", True, "LlamaMLP", "Elementwise"),
        ("_softmax", False, "", "Elementwise"),
        ("clone", True, "Attention", "Data movement"),
        ("cat", False, "", "Data movement"),
        ("_fft_r2c", False, "", "Elementwise"),
        ("linalg_qr", False, "", "Uncounted"),
        ("_grouped_mm", False, "MixtralExperts", "Linear"),
        ("addmm_", False, "", "Linear"),
        ("mkldnn_rnn_layer", False, "LSTM", "Linear"),
        ("flex_attention", False, "Attention", "Attention"),
        ("_embedding_bag_forward_only", False, "EmbeddingBag", "Embedding"),
        ("_native_batch_norm_legit", False, "InstanceNorm2d", "Normalization"),
        ("grid_sampler_3d", False, "", "Data movement"),
        ("masked_fill_", False, "", "Elementwise"),
        ("index_add_", False, "", "Elementwise"),
        ("linear", False, "AdaLayerNorm", "Linear"),
    ],
)
def test_category(op, pointwise, module, expected):
    assert operators.category(op, pointwise=pointwise, module_type=module) == expected
    assert expected in operators.CATEGORIES
