"""Idle time and kernel names, from a trace in Kineto's form (synthetic, and it says so) and from intervals by hand."""

import contextlib
import gzip
import json

import pytest
import torch

from mmchar.measuring.kernel_names import kernel_category, kernel_name
from mmchar.measuring.kernels import (
    LAUNCH_BOUND,
    Kernel,
    busy_s,
    idle_facts,
    idle_share,
    launch_head,
    run_kernels,
    span_s,
    without_head,
)
from mmchar.provenance import SOURCE

TRACE = SOURCE / "tests" / "data" / "decode_synthetic_trace.json.gz"


def kernels(*intervals):
    return [Kernel("k", start, end) for start, end in intervals]


def read_trace():
    """The kernels and copies of the recorded trace, in order of start."""
    events = json.loads(gzip.decompress(TRACE.read_bytes()))["traceEvents"]
    on_gpu = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    found = [Kernel(event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in on_gpu]
    return sorted(found, key=lambda kernel: kernel.start_s)


def test_busy_time_is_the_union_of_the_intervals():
    assert busy_s(kernels((0, 2), (1, 3), (5, 6))) == 4  # 0 to 3 and 5 to 6
    assert busy_s(kernels((0, 10), (2, 3), (4, 5))) == 10  # inside another counts once
    assert busy_s(kernels((5, 6), (0, 1))) == 2  # in any order
    assert span_s(kernels((0, 10), (2, 3))) == 10


def test_idle_share_is_what_of_the_span_is_not_busy():
    assert idle_share(kernels((0, 2), (1, 3), (5, 6))) == pytest.approx(2 / 6)
    assert idle_share(kernels((1, 4))) == 0
    assert idle_share([]) is None, "no kernel, as on a CPU: absent, not zero"


def test_facts_of_a_stage_name_it_launch_bound():
    facts = idle_facts([kernels((0, 1), (3, 4)), kernels((0, 3), (3, 4)), kernels((0, 2), (3, 4))])
    assert facts["steps"] == pytest.approx([0.5, 0.0, 0.25])
    assert (facts["share"], facts["kernels"], facts["launch_bound"]) == (pytest.approx(0.25), 2, False)
    assert (facts["busy_s"], facts["span_s"]) == (3, 4)
    assert idle_facts([kernels((0, 1), (3, 4))])["launch_bound"] and LAUNCH_BOUND < 0.5
    assert idle_facts([[], []]) is None


def test_a_trace_of_kineto_is_replayed():
    found = read_trace()
    assert "SYNTHETIC" in json.loads(gzip.decompress(TRACE.read_bytes()))["note"]
    assert len(found) == 53, "kernels and copies; no host call, no flow arrow, no annotation"
    steps = found[:50]
    # 10 steps of 5 kernels of 2, 6, 3, 6 and 3 us, one started every 10 us; the last one ends after 3 of its 10 us
    assert busy_s(steps) == pytest.approx(10 * 20e-6)
    assert span_s(steps) == pytest.approx((49 * 10 + 3) * 1e-6)
    assert idle_share(steps) == pytest.approx(1 - 200 / 493)
    # 0 to 20 us on one stream, 5 to 30 us on another, then 2 us of copy without a gap
    assert busy_s(found[50:]) == pytest.approx(32e-6)
    assert idle_share(found[50:]) == pytest.approx(0, abs=1e-9)


def test_kernels_of_the_trace_have_categories_by_name():
    by_name = {kernel_name(k.name): kernel_category(k.name) for k in read_trace()}
    assert by_name == {
        "at::native::vectorized_elementwise_kernel": "Elementwise",
        "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT": "Linear",
        "pytorch_flash::flash_fwd_splitkv_kernel": "Attention",
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt": "Normalization",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn": "Linear",
        "cudnn::ops::nchwToNhwcKernel": "Data movement",
        "Memcpy DtoH": "Data movement",
    }


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "Attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "Attention"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "Convolution"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::BFloat16, float, int>", "Normalization"),
        ("triton_tem_fused_addmm_3", "Linear"),
        ("triton_poi_fused_native_group_norm_silu_7", "Normalization"),
        ("graph_0_cpp_fused_gelu_mul_0", "Elementwise"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_cat_mul_5", "Elementwise"),
        ("triton_poi_fused_convert_element_type_convolution_2", "Elementwise"),
        ("triton_red_fused__scaled_dot_product_flash_attention_add_native_layer_norm_9", "Normalization"),
        ("triton_tem_fused_flex_attention_0", "Attention"),
        ("aten::addmm", "Linear"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "Attention"),
        ("aten::as_strided", "Data movement"),
        ("someone_elses_kernel", "Uncounted"),
    ],
)
def test_category_of_a_kernel_by_its_name(name, category):
    assert kernel_category(name) == category


def test_kernels_in_an_anonymous_namespace_keep_their_names():
    name = "void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2u>, unsigned int, 4, 64, 64>(int)"
    assert kernel_name(name) == "at::native::CatArrayBatchedCopy"
    gemm = "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x6_tn_align8"
    assert kernel_name(f"void cutlass::Kernel2<{gemm}>({gemm}::Params)") == gemm


def test_what_a_session_starts_with_is_left_out_and_tells_whether_it_is_complete():
    head, gemm = Kernel("at::cuda::spin_kernel(long)", 0, 1), Kernel("nvjet_a", 2, 3)
    assert without_head([head, head, gemm]) == [gemm]
    with pytest.raises(RuntimeError, match="lost the first GPU kernels"):
        without_head([gemm])
    for nothing in ([], [head]):
        with pytest.raises(RuntimeError, match="saw no GPU kernel"):
            without_head(nothing)


def test_every_session_starts_with_more_kernels_than_the_one_before(monkeypatch):
    launched = []
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", launched.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: launched.append("end"))
    launch_head("cuda")
    first = len(launched) - 1
    launch_head("cuda")
    assert launched[-1] == "end" and len(launched) - 2 - first >= first + 1 > 100


def test_on_a_cpu_the_outermost_operators_stand_for_kernels():
    x = torch.randn(64, 64)
    found = run_kernels(lambda: torch.nn.functional.linear(x, x).relu(), "cpu")
    assert [kernel.name for kernel in found] == ["aten::linear", "aten::relu"]
    assert all(kernel.end_s > kernel.start_s for kernel in found)


@pytest.mark.gpu
def test_on_a_gpu_short_kernels_leave_it_idle_and_long_ones_do_not():
    long = torch.randn(8192, 8192, device="cuda")
    short = torch.randn(8, 8, device="cuda")

    def share(x, times):
        run_kernels(lambda: x @ x, "cuda")
        return idle_share(run_kernels(lambda: [x @ x for _ in range(times)], "cuda"))

    assert share(long, 10) < 0.1 < LAUNCH_BOUND < share(short, 100)
