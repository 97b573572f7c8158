"""Operators of newer models: experts, small products, recurrent networks, flex attention, transforms; kinds by tokens.

Whatever runs here runs twice, on ``meta`` and on real tensors, and gives the same rows.
"""

import json
from copy import deepcopy
from dataclasses import replace
from math import log2

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mmchar.cli.main import main
from mmchar.counting.operator_table import count
from mmchar.projection.roofline import project
from mmchar.projection.summary import summarize
from mmchar.tracing import attention, operator_flop, operators
from mmchar.tracing.operators import fft_flop, grouped_flop, recurrent_flop
from mmchar.tracing.trace import trace

DEVICES = ("meta", "cpu")


def rows_of(work, device="cpu"):
    """The rows of ``work(new)``, where ``new(*shape)`` makes a tensor on the device, outside what is counted."""
    torch.manual_seed(0)

    def new(*shape, dtype=torch.float32):
        with _disable_current_modes():
            return torch.rand(shape, device=device).to(dtype)

    return trace(nn.Identity(), lambda: work(new))


def facts(rows):
    """What must not hang on the device: all of a row but the memory that is alive, which is up to the kernels."""
    return [replace(row, live_bytes=0) for row in rows]


def total_flop(work, device):
    return sum(row.flop for row in rows_of(work, device))


# --- products


PRODUCTS = {
    # 2 * 5 * 7 = 70
    "mv": (lambda new: new(5, 7) @ new(7), 70),
    "addmv": (lambda new: torch.addmv(new(5), new(5, 7), new(7)), 70),
    "addmv_": (lambda new: new(5).addmv_(new(5, 7), new(7)), 70),
    # 2 * 7 = 14
    "dot": (lambda new: new(7) @ new(7), 14),
    "vdot": (lambda new: torch.vdot(new(7), new(7)), 14),
    # an outer product added to a matrix: one multiply-add for each of 5 * 7
    "addr": (lambda new: torch.addr(new(5, 7), new(5), new(7)), 70),
    # 2 * 3 batch * 5 * 7 * 4 = 840, added up over the batch
    "addbmm": (lambda new: torch.addbmm(new(5, 4), new(3, 5, 7), new(3, 7, 4)), 840),
    "baddbmm_": (lambda new: new(3, 5, 4).baddbmm_(new(3, 5, 7), new(3, 7, 4)), 840),
    # 2 * 5 * 7 * 4 = 280
    "addmm_": (lambda new: new(5, 4).addmm_(new(5, 7), new(7, 4)), 280),
    "_addmm_activation": (lambda new: torch._addmm_activation(new(4), new(5, 7), new(7, 4)), 280),
    # 2 * 32 * 16 * 24 = 24_576
    "_int_mm": (lambda new: torch._int_mm(new(32, 16, dtype=torch.int8), new(16, 24, dtype=torch.int8)), 24_576),
    # 2 * 5 * 7 * (3 * 4) + 2 * 5 * 4 * 3 = 960
    "_trilinear": (lambda new: F.bilinear(new(5, 7), new(5, 4), new(3, 7, 4)), 960),
    # 2 * 30 * 40 * (7 + 2) = 21_600: the squared norms ride along as two more columns
    "_euclidean_dist": (lambda new: torch.cdist(new(30, 7), new(40, 7)), 21_600),
    # 3 * 6 * 8 * 7 = 1008
    "_cdist_forward": (lambda new: torch.cdist(new(6, 7), new(8, 7)), 1008),
    # 5 + 2 padding on either side - 3 + 1 = 7 outputs; 2 * (7 * 2 batch * 6 out) * 3 * 4 in = 2016
    "conv_tbc": (lambda new: torch.conv_tbc(new(5, 2, 4), new(3, 4, 6), new(6), 2), 2016),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_small_products(name, device):
    work, expected = PRODUCTS[name]
    rows = {row.op: row for row in rows_of(work, device)}
    assert rows[name].flop == expected
    assert rows[name].category == (
        "Elementwise" if name == "_cdist_forward" else name == "conv_tbc" and "Convolution" or "Linear"
    )


KNOWN = {
    "mm": lambda new: new(5, 7) @ new(7, 4),
    "mm.out": lambda new: torch.mm(new(5, 7), new(7, 4), out=new(5, 4)),
    "addmm": lambda new: torch.addmm(new(4), new(5, 7), new(7, 4)),
    "bmm": lambda new: new(3, 5, 7) @ new(3, 7, 4),
    "baddbmm": lambda new: torch.baddbmm(new(3, 5, 4), new(3, 5, 7), new(3, 7, 4)),
    "linear": lambda new: F.linear(new(2, 3, 5), new(7, 5), new(7)),
    "einsum": lambda new: torch.einsum("bqhd,bkhd->bhqk", new(2, 3, 4, 5), new(2, 6, 4, 5)),
    "convolution": lambda new: F.conv2d(new(2, 4, 9, 7), new(6, 2, 3, 3), stride=2, groups=2),
    "transposed": lambda new: F.conv_transpose1d(new(2, 4, 9), new(4, 3, 5), stride=2, groups=2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_torchs_own_counter_agrees_where_it_has_a_formula(name):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        KNOWN[name](lambda *shape: torch.rand(shape))
    assert counter.get_total_flops() > 0
    assert [total_flop(KNOWN[name], device) for device in DEVICES] == [counter.get_total_flops()] * 2


def test_an_outer_product_is_a_broadcast_multiplication():
    assert [(row.op, row.category, row.flop) for row in rows_of(lambda new: torch.outer(new(5), new(7)))] == [
        ("mul", "Elementwise", 0)
    ]


# --- mixtures of experts


def grouped(rows, dtype=torch.float32, experts=4):
    ends = [rows] * experts
    return lambda new: F.grouped_mm(
        new(rows, 16, dtype=dtype),
        new(experts, 16, 32, dtype=dtype),
        offs=torch.tensor(ends, dtype=torch.int32).to(new(1).device),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_grouped_product_counts_each_row_once_and_reads_no_more_experts_than_rows(dtype):
    item = dtype.itemsize
    for rows, read_experts in ((3, 3), (4, 4), (9, 4)):
        found = [next(r for r in rows_of(grouped(rows, dtype), device) if r.flop) for device in DEVICES]
        assert found[0] == found[1]
        assert found[0].category == "Linear"
        # 2 * rows * 16 * 32; reads the rows, the weights of the experts and 4 ends of 4 bytes, writes rows * 32
        assert found[0].flop == 1024 * rows
        assert found[0].read_bytes == item * (rows * 16 + read_experts * 16 * 32) + 16
        assert found[0].write_bytes == item * rows * 32


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((8, 16), (4, 16, 32), 2 * 8 * 16 * 32),  # rows in groups
        ((4, 8, 16), (16, 24), 2 * 8 * 16 * 24),  # columns in groups
        ((4, 8, 16), (4, 16, 32), 4 * 2 * 8 * 16 * 32),  # one product per group
        ((16, 8), (8, 32), 2 * 16 * 8 * 32),  # groups along the inner dimension: one product, in parts
    ],
)
def test_groups_of_rows_of_columns_and_of_inner_places(a, b, expected):
    assert grouped_flop(a, b) == expected

    def work(new):
        ends = None
        if len(a) < 3 or len(b) < 3:
            last = b[-1] if len(a) > len(b) else a[-1] if len(a) == len(b) else a[0]
            ends = torch.tensor([last // 4, last // 2, last // 2, last], dtype=torch.int32).to(new(1).device)
        out = F.grouped_mm(new(*a, dtype=torch.bfloat16), new(*b, dtype=torch.bfloat16), offs=ends)
        shapes.append(tuple(out.shape))

    shapes: list[tuple[int, ...]] = []
    rows = [next(r for r in rows_of(work, device) if r.op == "_grouped_mm") for device in DEVICES]
    assert rows[0] == rows[1] and rows[0].flop == expected
    assert shapes[0] == shapes[1]


TINY_EXPERTS = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=8,
    num_experts_per_tok=2,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mixture_of_experts_of_transformers_is_the_same_on_both_devices(dtype):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(**TINY_EXPERTS)
    seen = []
    for device in DEVICES:
        with torch.device(device):
            model = Qwen3MoeForCausalLM._from_config(config, dtype=dtype).eval()
            ids = torch.zeros(1, 5, dtype=torch.int64)
        traced = trace(model, lambda model=model, ids=ids: model(ids))
        assert not any(row.category == "Uncounted" for row in traced)
        experts = [row for row in traced if row.op == "_grouped_mm"]
        # 5 tokens of 2 experts: 2 * 10 * 32 * 48 to gate and up, 2 * 10 * 24 * 32 back, in each of 2 layers
        assert sum(row.flop for row in experts) == 2 * (30_720 + 15_360)
        seen.append([(r.module, r.flop, r.read_bytes, r.write_bytes) for r in experts])
    assert seen[0] == seen[1]


def test_a_published_mixture_of_experts(tmp_path):
    config = {
        **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960},
        **{"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False},
    }
    part = {"library": "transformers", "class": "Qwen3MoeForCausalLM", "config": config, "source": "of Qwen3-30B-A3B"}
    spec = {
        **{"name": "experts", "family": "autoregressive", "year": 2025, "summary": "A mixture of experts."},
        **{"components": {"lm": part}, "tiny_request": {}},
        **{"request": {"batch": 1, "prompt_tokens": 512, "new_tokens": 3}, "request_source": "made up"},
    }
    (tmp_path / "experts.json").write_text(json.dumps(spec))
    table = count(str(tmp_path / "experts.json"), cache=False)
    experts = table[table["op"] == "_grouped_mm"]
    prefill, decode = experts[experts["stage"] == "prefill"], experts[experts["stage"] == "decode"]
    # 48 layers * 512 tokens * 8 experts * 3 matrices * 2 * 2048 * 768 = 1_855_425_871_872
    assert prefill["flop"].sum() == 1_855_425_871_872
    assert round(table.loc[table["stage"] == "prefill", "flop"].sum() / 1e9) == 3003
    # one token: 48 * 8 * 3 * 2048 * 768 weights of 2 bytes = 3_623_878_656; besides, per layer, 128 ends of 4 bytes to
    # each of two products, and of 8 rows 2048 numbers into the first and 768 into the second
    assert decode["read_bytes"].sum() == 3_623_878_656 + 48 * (2 * 128 * 4 + 8 * (2048 + 768) * 2)


# --- recurrent networks and torch's own transformer layers


def run_module(module, *shapes, device, **options):
    module = deepcopy(module).to(device).eval()
    inputs = [torch.rand(shape, device=device) for shape in shapes]
    return trace(module, lambda: module(*inputs, **options))


@pytest.mark.parametrize(
    ("make", "gates", "flop"),
    [
        # tokens 11 * 3 = 33; both directions of layer 1 take 5, of layer 2 take 2 * 7; each also its own 7:
        # 2 * 33 * (4 gates * 7) * 2 directions * ((5 + 7) + (14 + 7)) = 121_968
        (lambda: nn.LSTM(5, 7, 2, bidirectional=True), 4, 121_968),
        (lambda: nn.GRU(5, 7, 2, bidirectional=True), 3, 91_476),
        (lambda: nn.RNN(5, 7, 2, bidirectional=True), 1, 30_492),
    ],
)
def test_a_recurrent_network_counts_its_products_on_every_device(make, gates, flop):
    assert flop == 2 * 33 * gates * 7 * 2 * (12 + 21)
    module = make()
    weights = [weight.shape for weight in module.parameters() if weight.dim() == 2]
    assert recurrent_flop(33, weights) == flop
    for device in DEVICES:
        rows = run_module(module, (11, 3, 5), device=device)
        assert sum(row.flop for row in rows if row.category == "Linear") == flop
        assert "Uncounted" not in {row.category for row in rows}
    # what a GPU runs: all layers in one operator, its weights in a list, then a buffer of them and the first state
    new = lambda *shape: torch.empty(shape, device="meta")  # noqa: E731
    arguments = (new(11, 3, 5), [new(*shape) for shape in weights], 4, new(10_000), new(4, 3, 7), new(4, 3, 7))
    assert operator_flop.flop("_cudnn_rnn", arguments, []) == flop


@pytest.mark.parametrize("options", [{}, {"need_weights": False}])
def test_multi_head_attention_is_taken_apart_on_every_device(options):
    found = {}
    for device in DEVICES:
        module = nn.MultiheadAttention(12, 2, batch_first=True)
        rows = run_module(module, *[(3, 9, 12)] * 3, device=device, **options)
        found[device] = {kind: sum(r.flop for r in rows if r.category == kind) for kind in ("Linear", "Attention")}
        assert "Uncounted" not in {row.category for row in rows}
    # 27 tokens: four linear layers of 2 * 27 * 12 * 12 = 7_776; two products of 2 * 3 * 2 heads * 9 * 9 * 6 = 5_832
    assert found["meta"] == found["cpu"] == {"Linear": 31_104, "Attention": 11_664}
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_transformer_encoder_layer_has_the_same_rows_on_every_device():
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2)
    rows = [run_module(module, (3, 9, 12), device=device) for device in DEVICES]
    assert facts(rows[0]) == facts(rows[1])
    core = next(row for row in rows[1] if row.op == "scaled_dot_product_attention")
    assert (core.batch, core.heads, core.q_len, core.kv_len, core.head_dim) == (3, 2, 9, 9, 6)
    # per layer four linear layers of 7_776, two of 2 * 27 * 12 * 20 = 12_960, and the core of 11_664
    assert sum(row.flop for row in rows[1]) == 2 * (4 * 7_776 + 2 * 12_960 + 11_664)


# --- attention


class Flex(nn.Module):
    """An attention with a function for its bias and groups of heads that share keys."""

    def forward(self, q, k, v):
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j), enable_gqa=True)


def test_flex_attention_is_a_core_with_its_lengths_on_every_device():
    shapes = ((2, 4, 16, 8), (2, 2, 24, 8), (2, 2, 24, 12))
    cores = []
    for device in DEVICES:
        core = next(r for r in run_module(Flex(), *shapes, device=device) if r.op == "flex_attention")
        cores.append(core)
    assert cores[0] == cores[1]
    assert (core.category, core.attention, core.mask_bytes) == ("Attention", "cross", 0)
    assert (core.batch, core.heads, core.q_len, core.kv_len, core.head_dim) == (2, 4, 16, 24, 8)
    # 2 * 2 batch * 4 heads * 16 * 24 * (8 + 12) = 122_880
    assert core.flop == 122_880
    equal = [torch.empty(2, 4, n, 8) for n in (16, 24, 24)]
    counted = flop_registry[torch.ops.higher_order.flex_attention](*equal, out_val=None)
    assert counted == operator_flop.flop("flex_attention", tuple(equal), [])
    # q, k, v and the output, in 4 bytes
    assert core.read_bytes == 4 * 2 * (4 * 16 * 8 + 2 * 24 * 8 + 2 * 24 * 12)
    assert core.write_bytes == 4 * 2 * 4 * 16 * 12


def test_a_block_mask_takes_nothing_off():
    from torch.nn.attention.flex_attention import create_block_mask

    def causal(new):
        q = new(1, 2, 256, 8)
        mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 256, 256, device=str(q.device))
        return flex_attention(q, q, q, block_mask=mask)

    # 2 * 2 heads * 256 * 256 * (8 + 8), in full
    assert next(r.flop for r in rows_of(causal) if r.op == "flex_attention") == 4_194_304


@pytest.mark.parametrize(
    ("q", "k", "out", "options"),
    [
        ((1, 4, 6, 8), (3, 4, 9, 8), (3, 4, 6, 8), {}),
        ((3, 1, 6, 8), (3, 4, 9, 8), (3, 4, 6, 8), {}),
        ((3, 4, 6, 8), (1, 1, 9, 8), (3, 4, 6, 8), {}),
        ((3, 4, 6, 8), (3, 2, 9, 8), (3, 4, 6, 8), {"enable_gqa": True}),
        ((1, 4, 6, 8), (3, 2, 9, 8), (3, 4, 6, 8), {"enable_gqa": True}),
    ],
)
def test_a_batch_or_heads_of_one_serve_all_of_the_others(q, k, out, options):
    layouts = []

    def work(new):
        made = F.scaled_dot_product_attention(new(*q), new(*k), new(*k), **options)
        layouts.append((tuple(made.shape), made.stride()))

    cores = [rows_of(work, device)[0] for device in DEVICES]
    assert cores[0] == cores[1] and layouts[0] == layouts[1] and layouts[0][0] == out
    assert (cores[0].batch, cores[0].heads, cores[0].q_len, cores[0].kv_len) == (3, 4, 6, 9)
    assert cores[0].flop == 2 * 3 * 4 * 6 * 9 * (8 + 8)


def test_core_sizes_without_a_dimension_for_heads_and_with_more_outer_ones():
    assert attention.core_sizes((5, 6, 8), (1, 9, 8), (1, 9, 8)) == (5, 1, 6, 9, 8)
    assert attention.core_sizes((6, 8), (9, 8), (9, 8)) == (1, 1, 6, 9, 8)
    assert attention.core_sizes((2, 3, 4, 6, 8), (1, 3, 1, 9, 8), (1, 3, 1, 9, 8)) == (6, 4, 6, 9, 8)


# --- Fourier transforms


def test_a_fourier_transform_takes_5_n_log2_n():
    # 5 * 8 * 3 = 120; 5 * 12 * log2(12) = 215.09…
    assert fft_flop(8, transforms=3) == 360
    assert fft_flop(12, transforms=1) == 215 == round(60 * log2(12))
    assert fft_flop(1, transforms=7) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("work", "flop"),
    [
        (lambda new: torch.fft.fft(new(3, 8)), 360),
        (lambda new: torch.fft.rfft(new(3, 8)), 360),
        (lambda new: torch.fft.irfft(torch.fft.rfft(new(3, 8))), 720),
        # 2 transforms of 4 * 8 = 32 points each: 2 * 5 * 32 * 5
        (lambda new: torch.fft.fft2(new(2, 4, 8)), 1600),
        (lambda new: torch.fft.rfftn(new(2, 4, 8), dim=(1, 2)), 1600),
        # 1 + 400 // 16 = 26 windows of 64 points each, for each of 2 signals: 52 * 5 * 64 * 6
        (lambda new: torch.stft(new(2, 400), 64, 16, window=new(64), return_complex=True), 99_840),
    ],
)
def test_transforms(device, work, flop):
    rows = [row for row in rows_of(work, device) if row.op in operators.FFT]
    assert sum(row.flop for row in rows) == flop
    assert {row.category for row in rows} == {"Elementwise"}


# --- a category for everything


SURVEY = {
    "grid_sample": lambda new: F.grid_sample(new(2, 4, 8, 8), new(2, 5, 5, 2), align_corners=False),
    "grid_sample 3d": lambda new: F.grid_sample(new(2, 4, 6, 6, 6), new(2, 5, 5, 5, 3), align_corners=False),
    "affine_grid": lambda new: F.affine_grid(new(2, 2, 3), [2, 4, 5, 5], align_corners=False),
    "instance_norm": lambda new: F.instance_norm(new(2, 4, 8, 8)),
    "batch_norm": lambda new: F.batch_norm(new(2, 4, 8), None, None, training=True),
    "pixels": lambda new: [f(new(2, 4, 8, 8), 2) for f in (F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle)],
    "fold": lambda new: F.fold(F.unfold(new(2, 4, 8, 8), 3), (8, 8), 3),
    "pool": lambda new: (F.max_pool3d(new(2, 4, 6, 6, 6), 2), F.adaptive_max_pool2d(new(2, 4, 8, 8), 3)),
    "mean pool": lambda new: (F.adaptive_avg_pool3d(new(2, 4, 6, 6, 6), 3), F.lp_pool2d(new(2, 4, 8, 8), 2, 2)),
    "unpool": lambda new: F.max_unpool2d(*F.max_pool2d(new(2, 4, 8, 8), 2, return_indices=True), 2),
    **{
        f"resize {mode}": lambda new, mode=mode: F.interpolate(new(2, 4, 8, 8), size=(5, 7), mode=mode, antialias=True)
        for mode in ("bilinear", "bicubic")
    },
    **{
        f"{mode} {len(sizes)}d": lambda new, mode=mode, sizes=sizes: F.interpolate(new(2, 4, *sizes), size=9, mode=mode)
        for mode, sizes in (
            *[("linear", [5]), ("nearest-exact", [5]), ("bicubic", [5, 4]), ("area", [5, 4])],
            *[("trilinear", [5, 4, 3]), ("nearest-exact", [5, 4, 3])],
        )
    },
    "pad": lambda new: [F.pad(new(2, 4, 6, 6, 6), [1] * 6, mode=mode) for mode in ("reflect", "replicate", "circular")],
    "activations": lambda new: [
        f(new(2, 6))
        for f in (F.hardswish, F.logsigmoid, F.mish, F.selu, F.glu, F.softsign, F.hardsigmoid, F.tanhshrink, F.rrelu)
    ],
    "prelu": lambda new: F.prelu(new(2, 6), new(6)),
    "in place": lambda new: (new(2, 6).masked_fill_(new(2, 6) > 0.5, 0), new(2, 6).clamp_(0, 1), new(2, 6).softmax(-1)),
    "reduce": lambda new: [
        f(new(3, 6)) for f in (torch.nansum, torch.std_mean, torch.aminmax, torch.median, torch.count_nonzero)
    ],
    "scan": lambda new: [f(new(3, 6), 1) for f in (torch.cummax, torch.cummin, torch.logcumsumexp, torch.mode)],
    "order": lambda new: (torch.kthvalue(new(3, 6), 2), torch.renorm(new(3, 6), 2, 0, 1.0), torch.trace(new(4, 4))),
    "bins": lambda new: (torch.histc(new(6), 5, 0, 1), torch.bucketize(new(6), new(4)), torch.isin(new(6), new(2))),
    "scatter": lambda new: [
        getattr(new(3, 6), name)(1, torch.zeros(3, 2, dtype=torch.int64, device=new(1).device), new(3, 2))
        for name in ("scatter", "scatter_", "scatter_add", "scatter_add_")
    ],
    "index": lambda new: [
        getattr(new(3, 6), name)(1, torch.zeros(2, dtype=torch.int64, device=new(1).device), new(3, 2))
        for name in ("index_add", "index_add_", "index_copy", "index_copy_")
    ],
    "fill": lambda new: new(3, 6).index_fill_(1, torch.zeros(2, dtype=torch.int64, device=new(1).device), 1.0),
    "make": lambda new: (
        torch.randperm(5, device=new(1).device),
        torch.rand_like(new(3)),
        torch.bernoulli(new(3)),
        torch.hann_window(8, device=new(1).device),
        torch.logspace(0, 1, 4, device=new(1).device),
        torch.normal(0.0, 1.0, (3,), device=new(1).device),
        torch.multinomial(new(3, 6), 2),
        new(3).exponential_(),
    ),
    "dropout": lambda new: (F.dropout(new(3, 6), 0.5, True), F.dropout2d(new(3, 6, 4, 4), 0.5, True)),
    "losses": lambda new: [
        f(new(3, 6), new(3, 6)) for f in (F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy)
    ],
    "shapes": lambda new: (torch.rot90(new(3, 3)), torch.diag_embed(new(3)), torch.block_diag(new(2, 2), new(3, 3))),
    "splits": lambda new: (torch.unsafe_split(new(4, 6), 2), torch.unsafe_chunk(new(4, 6), 2)),
    "cell": lambda new: nn.LSTMCell(6, 6, device=new(1).device)(new(3, 6)),
    "views in place": lambda new: new(3, 6, 1).transpose_(0, 1).squeeze_().mul_(2),
}


@pytest.mark.parametrize("name", SURVEY)
def test_nothing_common_is_uncounted(name):
    rows = [rows_of(SURVEY[name], device) for device in DEVICES]
    assert {row.op for row in rows[0] if row.category == "Uncounted"} == set()
    assert facts(rows[0]) == facts(rows[1])


def test_an_embedding_bag_reads_the_rows_that_it_adds_up():
    def bag(new):
        return F.embedding_bag(torch.zeros(2, 3, dtype=torch.int64, device=new(1).device), new(50, 16))

    found = [next(r for r in rows_of(bag, device) if "embedding_bag" in r.op) for device in DEVICES]
    assert {row.category for row in found} == {"Embedding"}
    # 2 * 3 rows of 16 numbers of 4 bytes, 6 ids and 2 starts of bags of 8 bytes; not the table of 3_200 bytes
    assert [row.read_bytes for row in found] == [384 + 48 + 16] * 2


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize(
    "work",
    [torch.relu, lambda t: t @ torch.rand(4, 4), lambda t: t.contiguous() + 1, lambda t: F.linear(t, torch.rand(3, 4))],
)
def test_a_nested_tensor_is_refused_in_one_line(layout, work):
    nested = torch.nested.nested_tensor([torch.rand(3, 4), torch.rand(5, 4)], layout=layout)
    with pytest.raises(ValueError, match="nested tensors are not counted; pad the sequences to one length"):
        trace(nn.Identity(), lambda: work(nested))


def test_a_projection_names_the_operators_that_it_leaves_out(monkeypatch, capsys):
    table = count("parti-350m", tiny=True)
    counted = summarize(project(table, gpu="a100-80gb"))
    assert counted["uncounted"] == []
    attrs, table = table.attrs, table.astype({"op": str, "category": str})
    table.loc[table.index[:2], ["op", "category"]] = [["linalg_qr", "Uncounted"], ["linalg_inv_ex", "Uncounted"]]
    table.attrs = attrs
    monkeypatch.setattr("mmchar.projection.planning.decoders.count", lambda *_, **__: table)
    assert main(["project", "parti-350m", "--gpu", "a100-80gb"]) == 0
    assert "uncounted operators: linalg_inv_ex, linalg_qr\n" in capsys.readouterr().out
    assert main(["project", "parti-350m", "--gpu", "a100-80gb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncounted"] == ["linalg_inv_ex", "linalg_qr"]
