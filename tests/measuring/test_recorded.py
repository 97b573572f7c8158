"""Traces of others: which operator a kernel belongs to, what it computes, and every way in which a file can be none."""

import functools
import gzip
import json
import sqlite3
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from recorded_traces import BF16, TraceMaker, block, recorded
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.profiler import ProfilerActivity, profile

import mmchar
from mmchar.measuring.kernel_names import kernel_kind
from mmchar.measuring.recorded import json_parts
from mmchar.measuring.recorded.json_parts import read_parts
from mmchar.measuring.recorded.table import kernel_table, read_trace

US = 1e-6


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return read_trace(block().write(tmp_path_factory.mktemp("traces") / "net.json.gz"))


def made(tmp_path, maker):
    return read_trace(maker.write(tmp_path / "made.json"))


def row(table, op, **more):
    (found,) = table[(table["op"] == op) & np.logical_and.reduce([table[k] == v for k, v in more.items()])].itertuples()
    return found


def test_a_row_is_an_operator_in_one_module_and_has_the_time_of_its_kernels(table):
    assert table["op"].tolist() == ["convolution", *2 * ["linear", "scaled_dot_product_attention"]]
    assert table["module"].tolist()[:3] == ["Net_0.Conv2d_0", "Net_0.Block_0.Linear_0", "Net_0.Block_0"]
    assert table["module_type"].tolist()[:3] == ["Conv2d", "Linear", "Block"]
    assert table["calls"].tolist() == [1, 1, 2, 1, 2], "two equal calls of attention in a block are one row"
    # 2 + 10 + 3 + 5 us around and in the convolution; 2 x 6.5 of attention
    assert table["time_s"].tolist() == pytest.approx([20 * US, *2 * [12 * US, 13 * US]])
    assert table["kernels"].tolist() == [4, 1, 2, 1, 2]
    assert set(table["time_kind"]) == {"measured"} and set(table["stage"]) == {"trace"} and set(table["repeats"]) == {1}
    assert table.attrs["model"] == "net" and table["shapes"].iloc[1] == "2x16x64, 192x64, 192"


def test_flop_bytes_and_lengths_follow_from_the_shapes(table):
    # 2 x 4 x 4 outputs of 64 channels, each a sum of 3 x 2 x 2 products
    assert row(table, "convolution").flop == 2 * 2 * 4 * 4 * 64 * 12
    linear = row(table, "linear", module="Net_0.Block_1.Linear_1")
    assert linear.flop == 2 * 32 * 64 * 192
    assert (linear.read_bytes, linear.write_bytes) == (2 * (32 * 64 + 192 * 64 + 192), 2 * 32 * 192)
    core = row(table, "scaled_dot_product_attention", module="Net_0.Block_0")
    assert (core.attention, core.backend, core.dtype, core.category) == ("causal", "flash", "bfloat16", "Attention")
    assert (core.batch, core.heads, core.q_len, core.kv_len, core.head_dim) == (2, 4, 16, 16, 16)
    assert core.flop == 2 * (4 * 2 * 4 * 16 * 16 * 16), "of both calls, in full"
    assert core.read_bytes == 2 * (3 * 2 * 4 * 16 * 16 * 2)


def test_kernels_have_kinds_and_what_a_convolution_launches_besides_has_its_own(table):
    kinds = kernel_table(table)
    spent = kinds.groupby("kind")["time_s"].sum()
    want = {"attention": 26, "matrix product": 24, "convolution": 10, "layout copy": 5, "bias add": 5}
    assert spent.to_dict() == pytest.approx({kind: us * US for kind, us in want.items()})
    assert kinds["time_s"].sum() == pytest.approx(table["time_s"].sum()) and kinds["share"].sum() == pytest.approx(1)
    assert kinds["launches"].sum() == table["kernels"].sum() == 10


def test_idle_time_coverage_and_the_gpu(table):
    facts = table.attrs
    idle = facts["idle"]["trace"]
    # from 110 to 220.5 us; 70 us of kernels that do not overlap
    assert (idle["busy_s"], idle["span_s"]) == (pytest.approx(70 * US), pytest.approx(110.5 * US))
    assert facts["idle_share"]["trace"] == pytest.approx(1 - 70 / 110.5)
    assert facts["coverage"]["trace"] == {"of_operators": 1.0, "with_sizes": 1.0}
    assert facts["device"] == "NVIDIA H100 80GB HBM3" and facts["dtype"] == "bfloat16" and facts["steps"] == 1
    assert [doubt for doubt in facts["doubts"]["trace"] if "idle 37%" in doubt]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.project = nn.Linear(8, 24)

    def forward(self, x):
        x = silu(self.norm(self.up(self.conv(x)))).flatten(2).transpose(1, 2)
        q, k, v = self.project(self.layer_norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return torch.cat([out, x], dim=1) @ x.mT


def test_what_torch_records_is_counted_as_counting_counts_it(tmp_path):
    net, x = Net().eval(), torch.randn(2, 3, 6, 5)
    with torch.inference_mode():
        net(x)
        found = made(tmp_path, recorded(lambda: net(x)))
    counted = mmchar.count(net, x)
    same = ["op", "category", "attention", "batch", "heads", "q_len", "kv_len", "head_dim", "calls", "flop",
            "read_bytes", "write_bytes", "dtype"]  # fmt: skip
    by_op = [each[same].astype(object).sort_values(["op", "flop"]).values.tolist() for each in (found, counted)]
    assert by_op[0] == by_op[1] and len(by_op[0]) == len(counted) >= 9
    norm = row(found, "native_group_norm")
    assert norm.module == "Net_0.GroupNorm_0" and norm.module_type == "GroupNorm"


def test_casts_of_autocast_are_rows_and_what_is_cast_for_runs_in_its_type(tmp_path):
    net, x = nn.Linear(8, 24), torch.randn(4, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        net(x)
        found = made(tmp_path, recorded(lambda: net(x)))
    assert found["op"].tolist() == ["_to_copy", "_to_copy", "_to_copy", "linear"]
    assert found["dtype"].tolist() == ["float32"] * 3 + ["bfloat16"]
    assert row(found, "linear").read_bytes == 2 * (4 * 8 + 8 * 24 + 24)


def test_a_scripted_module_says_its_path(tmp_path):
    maker = TraceMaker()
    maker.op("aten::silu", 0, 10, ([4, 4], "float"))
    maker.events[-1]["args"]["Module Hierarchy"] = "TOP(Net)::forward.block(Block)::forward.act(SiLU)::forward."
    maker.kernel("k", 5, 20, 1)
    found = row(made(tmp_path, maker), "silu")
    assert (found.module, found.module_type) == ("TOP.block.act", "SiLU")


def test_norm_modules_and_attention_modules_give_their_operators_a_category(tmp_path):
    maker = TraceMaker()
    for number, name in enumerate(("LlamaRMSNorm_3", "GemmaAttention_0")):
        maker.module(name, 100 * number, 100 * number + 90)
        maker.op("aten::mul", 100 * number + 1, 100 * number + 20, ([2, 8], BF16), ([8], BF16))
        maker.kernel("elementwise_kernel", 100 * number + 2, 300 + number, 1)
        maker.op("aten::matmul", 100 * number + 21, 100 * number + 40, ([2, 4, 8], BF16), ([2, 8, 4], BF16))
        maker.op("aten::bmm", 100 * number + 22, 100 * number + 39, ([2, 4, 8], BF16), ([2, 8, 4], BF16))
        maker.kernel("gemm", 100 * number + 25, 400 + number, 1)
    found = made(tmp_path, maker)
    assert row(found, "mul", module_type="LlamaRMSNorm").category == "Normalization"
    assert row(found, "mul", module_type="GemmaAttention").category == "Elementwise"
    assert row(found, "bmm", module_type="GemmaAttention").category == "Attention"


def test_kernels_of_one_graph_and_of_no_launch_are_rows_by_their_names(tmp_path):
    maker = TraceMaker()
    maker.op("aten::relu", 0, 9, ([8], "float"), ext=5)
    maker.kernel("void at::native::vectorized_elementwise_kernel<4, relu>(int)", 3, 30, 1)
    maker.kernel("void at::native::vectorized_elementwise_kernel<4, relu>(int)", 3, 40, 2, launch=False, ext=5)
    for at in (50, 60):
        maker.kernel("sm90_xmma_gemm_bf16", 20, at, 4, launch=at == 50)
        maker.events[-1]["args"]["correlation"] = 3  # of the launch of the graph
    maker.kernel("void at::native::elementwise_kernel<direct_copy_kernel_cuda>(int)", 0, 70, 1, launch=False)
    maker.kernel("void at::native::elementwise_kernel<MulFunctor>(int)", 0, 80, 3, launch=False)
    found = made(tmp_path, maker)
    relu = row(found, "relu")
    assert (relu.kernels, relu.calls, relu.time_s) == (2, 1, pytest.approx(3 * US)), "by launch and by external id"
    graph = row(found, "sm90_xmma_gemm_bf16")
    assert (graph.module_type, graph.category, graph.kernels, graph.flop) == ("kernel", "Linear", 2, 0)
    loose = found[found["op"] == "at::native::elementwise_kernel"]
    assert loose["category"].tolist() == ["Data movement", "Elementwise"] and loose["time_s"].tolist() == [
        1 * US,
        3 * US,
    ]
    assert found.attrs["coverage"]["trace"]["of_operators"] == pytest.approx(3 / 15)
    assert any("explain 20%" in doubt for doubt in found.attrs["doubts"]["trace"])


def test_an_operator_that_counting_does_not_know_has_the_category_of_its_kernels(tmp_path):
    maker = TraceMaker()
    maker.op("vllm::rms_norm", 0, 9, ([8, 64], BF16))
    maker.kernel("void vllm::rms_norm_kernel<c10::BFloat16>(int)", 3, 30, 1)
    maker.op("aten::item", 20, 29, ([], "bool"))
    maker.op("aten::_local_scalar_dense", 21, 28, ([], "bool"))
    maker.kernel("Memcpy DtoH (Device -> Pageable)", 23, 40, 2, cat="gpu_memcpy")
    maker.op("triton_poi_fused_add_1", 50, 59, ([8, 64], BF16))
    maker.kernel("triton_poi_fused_add_1", 53, 60, 4)
    found = made(tmp_path, maker)
    assert row(found, "vllm::rms_norm").category == "Normalization" and row(found, "vllm::rms_norm").dtype == "bfloat16"
    assert row(found, "_local_scalar_dense").category == "Data movement"
    assert row(found, "triton_poi_fused_add").module_type == "kernel", "a compiled loop is no operator"
    assert found.attrs["coverage"]["trace"]["with_sizes"] == 0


def test_copies_from_the_host_have_no_bytes_of_the_gpu(tmp_path):
    maker = TraceMaker()
    maker.op("aten::_to_copy", 0, 9, ([8], "float"), "15", "", "", "", "False", "")
    maker.kernel("Memcpy HtoD (Pageable -> Device)", 3, 30, 7, cat="gpu_memcpy")
    maker.op("aten::_to_copy", 10, 19, ([8], "float"), "15", "", "", "", "False", "")
    maker.kernel("void at::native::unrolled_elementwise_kernel<bfloat16_copy_kernel_cuda>(int)", 13, 40, 2)
    found = made(tmp_path, maker)
    assert found["time_s"].tolist() == [7 * US, 2 * US]
    assert found["read_bytes"].tolist() == [0, 8 * 4] and found["write_bytes"].tolist() == [0, 8 * 2]


@pytest.mark.parametrize(
    ("name", "arguments", "want"),
    [
        # q, k, v, bias, compute_log_sumexp, dropout, causal: [2, 3 heads, 5 | 7, 8]
        ("aten::_scaled_dot_product_efficient_attention", "bhsd mask", ("cross", 3, 5, 7)),
        ("aten::_flash_attention_forward", "bshd", ("cross", 3, 5, 7)),
        ("flash_attn::_flash_attn_forward", "bshd", ("cross", 3, 5, 7)),
        ("flash_attn::_flash_attn_forward", "bshd causal", ("causal", 3, 5, 7)),
    ],
)
def test_attention_kernels_called_by_themselves_have_lengths(tmp_path, name, arguments, want):
    q, kv = ([2, 3, 5, 8], [2, 3, 7, 8]) if "bhsd" in arguments else ([2, 5, 3, 8], [2, 7, 3, 8])
    mask = ([2, 3, 5, 7], BF16) if "mask" in arguments else ""
    rest = (mask, "False", "0.", "False") if "mask" in arguments else ("0.", "0.25", str("causal" in arguments))
    maker = TraceMaker()
    maker.op(name, 0, 9, (q, BF16), (kv, BF16), (kv, BF16), *rest)
    maker.kernel("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", 3, 30, 1)
    found = row(made(tmp_path, maker), "scaled_dot_product_attention")
    assert (found.attention, found.heads, found.q_len, found.kv_len) == want
    assert found.flop == 4 * 2 * 3 * 5 * 7 * 8 and found.backend == "mem-efficient"
    assert found.mask_bytes == (2 * 3 * 5 * 7 * 2 if "mask" in arguments else 0)


def test_attention_that_runs_as_products_and_a_softmax_has_their_bytes(tmp_path):
    q = ([1, 2, 16, 8], BF16)
    maker = TraceMaker()
    maker.op("aten::scaled_dot_product_attention", 0, 20, q, q, q, "", "0.", "False", "", "False")
    maker.op("aten::_scaled_dot_product_attention_math", 1, 19, q, q, q, "", "0.", "False", "", "", "False")
    for at, name in enumerate(("sm80_gemm", "softmax_warp_forward", "sm80_gemm")):
        maker.kernel(name, 3 + at, 30 + 10 * at, 5)
    found = row(made(tmp_path, maker), "scaled_dot_product_attention")
    # q, k, v and out, and S and P = softmax(S), each written and read: 2 heads x 16 x 16
    assert (found.backend, found.kernels) == ("math", 3)
    assert (found.read_bytes, found.write_bytes) == (2 * (3 * 256 + 2 * 512), 2 * (256 + 2 * 512))


def test_a_trace_of_an_amd_gpu(tmp_path):
    maker = TraceMaker({"id": 0, "name": "AMD Instinct MI300X"}, host="hip")
    maker.op("aten::convolution", 0, 30, ([1, 4, 8, 8], BF16), ([4, 4, 1, 1], BF16), "", "[1, 1]", "[0, 0]", "[1, 1]",
             "False", "[0, 0]", "1")  # fmt: skip
    maker.op("aten::miopen_convolution", 1, 29, ([1, 4, 8, 8], BF16), ([4, 4, 1, 1], BF16))
    maker.kernel("batched_transpose_32x32_half", 3, 40, 1)
    maker.kernel("igemm_fwd_gtcx3_nhwc_bf16_bx0_ex1_bt128x256x32", 4, 50, 2, device=2)
    maker.kernel("Cijk_Ailk_Bljk_BBS_BH_MT256x256x32", 5, 60, 4, device=2)
    found = made(tmp_path, maker)
    kinds = kernel_table(found).groupby("kind")["time_s"].sum().to_dict()
    assert kinds == pytest.approx({"layout copy": 1 * US, "convolution": 6 * US})
    assert found.attrs["device"] == "AMD Instinct MI300X", "the only one that is named"
    assert row(found, "convolution").flop == 2 * 64 * 4 * 4


@pytest.mark.parametrize(
    ("name", "kind", "category"),
    [
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT320x224x64", "matrix product", "Linear"),
        ("nvjet_hsh_128x128_64x4_1x2_h_bz_coopA_TNT", "matrix product", "Linear"),
        (
            "void cutlass::Kernel2<cutlass_75_tensorop_bf16_s1688gemm_bf16_256x128_tn_align1>",
            "matrix product",
            "Linear",
        ),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized>", "convolution", "Convolution"),
        ("_ZN2ck16tensor_operation6device12_GLOBAL__N_139kernel_grouped_conv_fwd_xdl", "convolution", "Convolution"),
        ("batched_transpose_32x32_half", "layout copy", "Data movement"),
        ("void cudnn::ops::nhwcToNchwKernel<float>", "layout copy", "Data movement"),
        ("attn_fwd", "attention", "Attention"),
        ("MIOpenBatchNormFwdTrainSpatial", "normalization", "Normalization"),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, NormTwoOps<float> > >", "reduction", "Elementwise"),
        ("void (anonymous namespace)::softmax_warp_forward<c10::BFloat16>", "softmax", "Elementwise"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevComm*)", "message", "Communication"),
        ("Memset (Device)", "memcpy, memset", "Data movement"),
        ("triton_red_fused_add_addmm_mul_native_layer_norm_16", "fused loop", "Normalization"),
        ("someone_elses_kernel", "other", "Uncounted"),
    ],
)
def test_the_kind_of_a_kernel_by_its_name(name, kind, category):
    assert kernel_kind(name) == (kind, category)


def test_parts_of_a_file_are_the_same_in_pieces_of_any_size(tmp_path, monkeypatch):
    events = [{"n": 'a "b" \\ \u00fc\U0001f600 }]', "x": [[], {}, [1, -2.5e-3, None, True]]}, {}, {"e": 10}]
    content = {"first": 12, "b": [1, [2]], "traceEvents": events, "none": None, "last": 1234567}
    path = tmp_path / "t.json"
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(json_parts, "_PIECE", size)
        for text in (json.dumps(content), json.dumps(content, indent=2, ensure_ascii=False)):
            path.write_text(text, encoding="utf-8-sig")
            parts = list(read_parts(path))
            assert [value for key, value in parts if key == "traceEvents"] == events
            assert dict(parts) | {"traceEvents": events} == content


def test_what_is_wrong_is_found_at_its_character(tmp_path, monkeypatch):
    monkeypatch.setattr(json_parts, "_PIECE", 7)
    for text, says in (('{"a": 1, "b": [1, 2] "c": 3, "much": "more to come"}', "Expecting ',' or '}' at character 21"),
                       ('{"a": [1, 2, 3], "b": [1 2, 3, 4, 5, 6, 7, 8, 9]}', "delimiter at character 25"),
                       ('{"a": [1, 2, 3], "b": [1, 2', "it ends at character 27"),
                       ('{"a": [1, 2, 3] ', "it ends at character 16")):  # fmt: skip
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            list(read_parts(tmp_path / "t.json"))


def test_a_control_character_in_a_name_is_read(tmp_path):
    (tmp_path / "t.json").write_text('{"a": "x\ty"}')
    assert list(read_parts(tmp_path / "t.json")) == [("a", "x\ty")]


def _files(folder):
    whole = json.dumps(block().content()).encode()
    packed = gzip.compress(whole)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.ones(3).sum()
    seen.export_chrome_trace(str(folder / "cpu.json"))
    connection = sqlite3.connect(folder / "nsys.sqlite")
    connection.execute("create table kernels (name text)")
    connection.commit()
    chrome = {"traceEvents": [{"ph": "X", "cat": "toplevel", "name": "task", "ts": 1, "dur": 2, "pid": 1, "tid": 1}]}
    kernel = {"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 2, "pid": 0, "tid": 7, "args": {}}
    return {
        "cut.json": (whole[: len(whole) // 2], "is cut off"),
        "no-end.json": (whole[:-1], "is cut off"),
        "cut.json.gz": (packed[: len(packed) // 2], "is cut off"),
        "empty.json": (b"", "is cut off"),
        "empty.json.gz": (gzip.compress(b""), "is cut off"),
        "bent.json.gz": (packed[:200] + b"\0" * 50 + packed[250:], "bent.json.gz"),
        "text.json": (b"hello", "does not hold a JSON object"),
        "named.json.gz": (b"not gzip", "does not hold a JSON object"),
        "binary.json": (bytes(range(256)) * 9, "does not hold a JSON object"),
        "list.json": (b'[{"ph": "X"}]', "does not hold a JSON object"),
        "broken.json": (whole.replace(b'"pid"', b"pid", 1), "Expecting property name"),
        "deep.json": (b'{"a":' + b"[" * 100_000, "deep.json"),
        "other.json": (b'{"layers": [1, 2]}', "holds no traceEvents"),
        "no-list.json": (b'{"traceEvents": {"a": 1}}', "are no list"),
        "numbers.json": (b'{"traceEvents": [1, 2]}', "holds 1 among its traceEvents"),
        "chrome.json": (json.dumps(chrome).encode(), "no kernel of a GPU"),
        "zip.json.gz": (b"PK\x03\x04rest", "zip archive"),
        "no-time.json": (json.dumps({"traceEvents": [{**kernel, "ts": None}]}).encode(), "is damaged"),
        "no-dur.json": (json.dumps({"traceEvents": [{"cat": "kernel", "ts": 1}]}).encode(), "is damaged"),
        "nan.json": (json.dumps({"traceEvents": [{**kernel, "ts": float("nan")}]}).encode(), "time is no number"),
        "still.json": (json.dumps({"traceEvents": [{**kernel, "dur": 0}]}).encode(), "take no time"),
        "sheets.json": (json.dumps({"deviceProperties": 7, "traceEvents": [kernel]}).encode(), "is damaged"),
        "cpu.json": (None, "ProfilerActivity.CUDA"),
        "nsys.sqlite": (None, "Nsight Systems"),
        "missing.json": (None, "cannot read"),
        ".": (None, "cannot read"),
    }


def test_every_file_that_is_no_trace_of_a_gpu_is_one_line(tmp_path):
    for name, (content, answer) in _files(tmp_path).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read_trace(tmp_path / name)
        line = str(caught.value)
        assert answer in line and line.isprintable() and len(line) < 300 + len(str(tmp_path)), (name, line)


def test_a_trace_cut_off_anywhere_is_refused_or_whole(tmp_path):
    whole = json.dumps(block().content()).encode()
    for end in range(1, len(whole) - 1, 997):
        (tmp_path / "cut.json").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="is cut off"):
            read_trace(tmp_path / "cut.json")


def places(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


PLACES = [place for place in places(block().content()) if place]
JUNK = [None, -1, 0, 1e300, float("nan"), 2**70, "", "x", "1e9", True, [], {}, [[]], [None], [1, [2]], {"a": 1}]


@given(st.sampled_from(PLACES), st.sampled_from(JUNK))
def test_a_trace_with_anything_anywhere_is_read_or_refused_in_one_line(tmp_path_factory, place, junk):
    content = block().content()
    *around, last = place
    functools.reduce(lambda value, key: value[key], around, content)[last] = junk
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_text(json.dumps(content))
    try:
        found = read_trace(path)
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 500
    else:
        assert (found["time_s"] >= 0).all() and (found[["flop", "read_bytes", "write_bytes"]] >= 0).all(axis=None)


def test_without_operators_shapes_or_the_name_of_the_gpu_the_table_says_so(tmp_path):
    maker = TraceMaker(device=None)
    maker.kernel("sm90_xmma_gemm", 0, 10, 5)
    found = made(tmp_path, maker)
    assert found["module_type"].tolist() == ["kernel"] and found.attrs["device"] == ""
    assert any("no operators are recorded" in doubt for doubt in found.attrs["doubts"]["trace"])
    bare = TraceMaker()
    bare.span("cpu_op", "aten::linear", 0, 9, **{"External id": 3})
    bare.kernel("sm90_xmma_gemm", 4, 10, 5)
    found = made(tmp_path, bare)
    assert (row(found, "linear").flop, row(found, "linear").category) == (0, "Linear")
    assert any("are known of 0%" in doubt for doubt in found.attrs["doubts"]["trace"])


def test_the_table_survives_parquet(table, tmp_path):
    from mmchar.tables.stored import read_table, write_table

    back = read_table(write_table(tmp_path / "t.parquet", table))
    assert back.attrs == table.attrs and back["flop"].tolist() == table["flop"].tolist()


def test_a_large_file_is_not_held_in_memory(tmp_path):
    stack = {"ph": "X", "cat": "python_function", "name": "f" * 400, "pid": 1, "tid": 1, "ts": 1, "dur": 1, "args": {}}
    content = block().content()
    with open(tmp_path / "large.json", "w") as file:
        file.write(json.dumps(content)[: -len(', "traceName": "made.json"}') - 1])
        file.writelines("," + json.dumps({**stack, "ts": at}) for at in range(40_000))
        file.write("]}")
    size = (tmp_path / "large.json").stat().st_size
    read_trace(block().write(tmp_path / "small.json"))  # what is imported and kept on first use
    tracemalloc.start()
    try:
        found = read_trace(tmp_path / "large.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 20e6 and peak < 12e6 and found["kernels"].sum() == 10
