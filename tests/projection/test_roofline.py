"""Projection on tables small enough to do by hand. Numbers for the A100-80GB: 312e12 FLOP/s, 2039e9 B/s, 108 SMs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mmchar.projection.columns import columns_of, merge_equal
from mmchar.projection.data_sheets import get_gpu, list_gpus
from mmchar.projection.efficiency import Efficiency
from mmchar.projection.energy_model import Power
from mmchar.projection.roofline import fuse_pointwise, project
from mmchar.projection.scaling import sweep
from mmchar.projection.summary import summarize
from mmchar.projection.tiles import padded_attention_flop

PERFECT = Efficiency(
    fed=1e12, fed_convolution=1e12, fed_convolution_hopper=1e12, fill_depth=0.0, unaligned=1.0, plain=1.0,
    joules_12nm=1e-30, joules_8nm=1e-30, joules_7nm=1e-30, joules_4nm=1e-30, flash=1.0, flash_mma=1e9,
    softmax_depth=0.0, fill_keys=0.0, causal=1.0, mem_efficient=1.0, bandwidth=1.0, product=1.0, layout=1.0,
    one_by_one=1e9, statistics=1e9, cache_share=0.0, kernel_s=0.0, kernel_compiled_s=0.0, dispatch_s=0.0,
    dispatch_compiled_s=0.0,
)  # fmt: skip
RATES = Efficiency()
BLANK = {
    "model": "m", "stage": "s", "step": 0, "repeats": 1, "component": "c", "module": "", "module_type": "", "op": "",
    "category": "Elementwise", "attention": "", "batch": 0, "heads": 0, "q_len": 0, "kv_len": 0, "head_dim": 0,
    "m": 0, "n": 0, "k": 0, "calls": 1, "flop": 0, "read_bytes": 0, "write_bytes": 0, "mask_bytes": 0, "live_bytes": 0,
    "dtype": "bfloat16", "backend": "", "time_s": np.nan, "time_kind": "", "kernels": 0,
}  # fmt: skip


def table(*rows):
    return pd.DataFrame([BLANK | row for row in rows])


def linear(m, n, k, *, calls=1, **more):
    sizes = {"flop": 2 * m * n * k * calls, "read_bytes": 2 * (m * k + n * k) * calls, "write_bytes": 2 * m * n * calls}
    return {"category": "Linear", "op": "linear", "calls": calls, "m": m, "n": n, "k": k, **sizes, **more}


def convolution(side, channels, out, *, taps=9, batch=1, **more):
    """One on square maps, with as many outputs as inputs."""
    m, k = batch * side**2, channels * taps
    read = 2 * (m * channels + out * k)
    sizes = {"flop": 2 * m * out * k, "read_bytes": read, "write_bytes": 2 * m * out, "m": m, "n": out, "k": k}
    return {"category": "Convolution", "op": "convolution", **sizes, **more}


def group_norm(samples, groups, each, **more):
    moved = 2 * samples * groups * each
    sizes = {"m": samples * groups, "k": each, "read_bytes": moved, "write_bytes": moved}
    return {"category": "Normalization", "op": "native_group_norm", **sizes, **more}


def pointwise(numbers, **more):
    return {"op": "add", "read_bytes": 4 * numbers, "write_bytes": 2 * numbers, **more}


def core(q_len, kv_len, *, batch=1, heads=8, head_dim=64, backend="flash", attention="self", **more):
    rows = batch * heads
    return {
        "category": "Attention", "op": "scaled_dot_product_attention", "attention": attention, "backend": backend,
        "batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len, "head_dim": head_dim,
        "flop": 4 * rows * q_len * kv_len * head_dim,
        "read_bytes": 2 * rows * (q_len + 2 * kv_len) * head_dim, "write_bytes": 2 * rows * q_len * head_dim, **more,
    }  # fmt: skip


# one row, by hand


def test_large_linear_is_compute_bound():
    # 6912 x 8192 outputs = 54 x 64 tiles of 128 x 128 = 3456 = 32 full waves of 108
    # 2 * 6912 * 8192 * 4096 = 463_856_467_968 FLOP at 312e12 take 1.5 ms, and longer for filling the pipeline of each
    # tile and for its operands: 2048 FLOP per clock want 2 B * 256 / (2 * 128 * 128) each = 32 B;
    # 2 * (6912 * 4096 + 8192 * 4096 + 6912 * 8192) = 236_978_176 B at 2039e9 take 0.1 ms
    needed = 2 * 256 / (2 * 128**2) * 312e12 / (19.5e12 / 128)
    assert needed == pytest.approx(32, rel=1e-3)
    reached = 312e12 * 4096 / (4096 + RATES.fill_depth) * RATES.fed / (RATES.fed + needed)
    out = project(table(linear(6912, 8192, 4096)), gpu="a100-80gb")
    assert out["bound"].item() == "compute"
    assert out["time_s"].item() == pytest.approx(463_856_467_968 / reached + RATES.kernel_s)


def test_sizes_that_a_table_does_not_say_follow_from_its_bytes():
    known = linear(6912, 8192, 4096)
    unknown = known | {"m": 0, "n": 0, "k": 0}
    one, other = project(table(known), gpu="a100-80gb"), project(table(unknown), gpu="a100-80gb")
    assert other["time_s"].item() == pytest.approx(one["time_s"].item())


def test_one_tile_too_many_takes_another_wave():
    full, spilled = table(linear(128, 108 * 128, 64)), table(linear(128, 109 * 128, 64))
    slow = replace(get_gpu("a100-80gb"), bandwidth_bytes_s=1e18)
    small_off = replace(PERFECT, fed=1e-3)  # only the largest tiles are fed well enough
    one = project(full, gpu=slow, efficiency=small_off)["time_s"].item()
    two = project(spilled, gpu=slow, efficiency=small_off)["time_s"].item()
    # tiles of 128 x 64 take half as long and read 3/4 as many operands: 218 of them are three waves of 108
    assert two / one == pytest.approx(min(2, 3 / 2 * 1.5))


def test_the_faster_tensor_cores_are_the_smaller_is_the_share_that_they_reach():
    rows = table(linear(2**14, 2**14, 2**14, dtype="float16"))
    names = ("rtx-4090", "v100-32gb", "a100-80gb", "h100-sxm")  # 512, 1024, 2048 and 4096 FLOP per clock
    unlimited = replace(RATES, joules_12nm=1e-30)
    times = [project(rows, gpu=name, efficiency=unlimited)["time_s"].item() for name in names]
    shares = [2 * 2**42 / (s * get_gpu(name).peak("float16")) for name, s in zip(names, times, strict=True)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 and shares[-1] < 0.85


def test_a_tight_power_limit_holds_tensor_cores_back():
    rows = table(linear(2**13, 2**13, 2**13, dtype="float16"))
    board = get_gpu("a100-80gb")
    times = [project(rows, gpu=replace(board, tdp_w=w))["time_s"].item() for w in (1000, 400, 200)]
    assert times[0] == times[1] < times[2]
    assert times[2] == pytest.approx(2 * 2**39 * RATES.joules_7nm / 200 + RATES.kernel_s)


def test_rows_that_vectors_cannot_load_are_slow():
    even, odd = linear(96 * 3136, 3136, 64, op="bmm"), linear(96 * 3136, 3137, 64, op="bmm")
    even_s, odd_s = project(table(even, odd), gpu="h100-sxm")["time_s"]
    assert even_s / odd_s == pytest.approx(RATES.unaligned, rel=0.02)


def test_large_elementwise_is_memory_bound():
    # 6 B * 1e8 at 2039e9 B/s take 294 us; the last-level cache of 40 MiB holds half of its size
    out = project(table(pointwise(100_000_000)), gpu="a100-80gb", efficiency=replace(RATES, cache_share=0.0))
    assert out["bound"].item() == "memory"
    assert out["time_s"].item() == pytest.approx(6e8 / (2039e9 * RATES.bandwidth) + RATES.kernel_s)


def test_small_maps_are_still_in_the_cache():
    # 3e6 numbers, 18 MB: of the 72 MB of an RTX 4090's cache half still holds what was written before
    board = get_gpu("rtx-4090")
    quick_host = replace(RATES, dispatch_s=0.0)
    kernel_s = project(table(pointwise(3_000_000)), gpu=board, efficiency=quick_host)["time_s"].item() - RATES.kernel_s
    assert kernel_s == pytest.approx(18e6 / (RATES.cache_bytes * board.peak("float32") / 256))
    assert kernel_s < 18e6 / 1008e9


def test_a_broadcast_computes_an_index_for_each_number():
    # one number of 2 B for each row of 1536 is read beside 2 B per number; clocks: 66.9e12 / 256
    rows = [pointwise(50_331_648, op="mul"), pointwise(50_331_648, op="mul", read_bytes=2 * 50_331_648 + 65536)]
    whole_s, broadcast_s = project(table(*rows), gpu="h100-sxm")["time_s"] - RATES.kernel_s
    assert broadcast_s == pytest.approx(50_331_648 / (RATES.one_by_one * 66.9e12 / 256))
    scalar = pointwise(50_331_648, op="mul", read_bytes=2 * 50_331_648 + 4)
    scalar_s = project(table(scalar), gpu="h100-sxm")["time_s"].item() - RATES.kernel_s
    assert scalar_s < whole_s < broadcast_s * 1.5
    assert scalar_s == pytest.approx(whole_s * 2 / 3, rel=0.05)  # 4 of 6 B


def test_a_copy_to_a_wider_type_takes_number_by_number_and_one_to_a_narrower_streams():
    # bfloat16 to float32 and back: 2 and 4 B of each number; clocks: 66.9e12 / 256
    numbers = 50_331_648
    wider = {"op": "_to_copy", "read_bytes": 2 * numbers, "write_bytes": 4 * numbers}
    narrower = {"op": "_to_copy", "read_bytes": 4 * numbers, "write_bytes": 2 * numbers, "dtype": "float32"}
    rates = replace(RATES, cache_share=0.0)
    wider_s, narrower_s = project(table(wider, narrower), gpu="h100-sxm", efficiency=rates)["time_s"] - RATES.kernel_s
    assert wider_s == pytest.approx(numbers / (RATES.one_by_one * 66.9e12 / 256))
    assert narrower_s == pytest.approx(6 * numbers / (3350e9 * RATES.bandwidth))


@pytest.mark.parametrize("op", ["mul", "mul_"])
def test_numbers_of_a_product_of_two_types_are_counted_once(op):
    # bfloat16 numbers times a float32 for each of 32,768 rows: 4 B of each number are written, in the time of one
    numbers = 50_331_648
    mixed = {"op": op, "read_bytes": 2 * numbers + 4 * 32_768, "write_bytes": 4 * numbers}
    time_s = project(table(mixed), gpu="h100-sxm")["time_s"].item() - RATES.kernel_s
    assert time_s == pytest.approx(numbers / (RATES.one_by_one * 66.9e12 / 256), rel=2e-3)


def test_tiny_row_is_launch_bound():
    out = project(table(pointwise(16, calls=3)), gpu="a100-80gb")
    assert out["bound"].item() == "launch"
    assert out["kernels"].item() == 3
    assert out["time_s"].item() == pytest.approx(3 * RATES.dispatch_s)


def test_row_that_does_nothing_costs_nothing():
    out = project(table({"op": "view"}), gpu="a100-80gb")
    assert (out["time_s"].item(), out["bound"].item(), out["kernels"].item()) == (0.0, "", 0)


def test_convolution_pays_for_its_layout_copies_and_its_bias():
    row = convolution(1024, 128, 128)
    out = project(table(row), gpu="a100-80gb", efficiency=PERFECT)
    copied, bias = 2 * (row["read_bytes"] + row["write_bytes"]), 2 * row["write_bytes"]
    waves = np.ceil(8192 / 108) * 108 / 8192  # 1024 * 1024 / 128 tiles
    assert out["time_s"].item() == pytest.approx(row["flop"] / 312e12 * waves + (copied + bias) / 2039e9, rel=1e-3)


def test_a_compiled_convolution_is_channels_last_and_so_is_one_of_a_single_position():
    row, single = convolution(1024, 128, 128), convolution(1024, 128, 128, taps=1)
    compiled, eager = (
        project(table(row), gpu="a100-80gb", execution=e)["time_s"].item() for e in ("compiled", "eager")
    )
    copied = 2 * (row["read_bytes"] + row["write_bytes"])
    assert eager - compiled > copied / 2039e9
    columns = columns_of(table(row, single))
    assert columns.spatial_kernel.tolist() == [True, False]


def test_a_depthwise_convolution_runs_on_the_plain_cores():
    row = convolution(64, 1024, 1024) | {"m": 64 * 64 * 1024, "n": 1, "k": 9, "flop": 2 * 64 * 64 * 1024 * 9}
    out = project(table(row), gpu="a100-80gb", efficiency=replace(PERFECT, bandwidth=1e9, layout=1e9, product=1e9))
    assert out["time_s"].item() == pytest.approx(row["flop"] / 19.5e12)


def test_a_group_norm_of_one_image_is_as_slow_as_its_32_blocks():
    # 32 blocks on 132 multiprocessors take as long as 128: each adds up numbers on its own multiprocessor
    one, four = group_norm(1, 32, 2**22), group_norm(4, 32, 2**22)
    one_s, four_s = project(table(one, four), gpu="h100-sxm")["time_s"]
    statistics_s = 2**22 / (RATES.statistics * 66.9e12 / 256 / 132)
    assert statistics_s < one_s < four_s < 2 * statistics_s
    assert project(table(one), gpu="h100-sxm")["bound"].item() == "launch"
    compiled = project(table(one), gpu="h100-sxm", execution="compiled")["time_s"].item()
    assert compiled < one_s / 5


def test_a_compiled_group_norm_reads_twice_and_a_written_out_norm_does_not():
    rows = [{"category": "Normalization", "op": op, "module": op, "read_bytes": 10**9, "write_bytes": 10**9} for op in
            ("native_group_norm", "mul")]  # fmt: skip
    out = project(table(*rows), gpu="a100-80gb", efficiency=PERFECT, execution="compiled")
    assert out["time_s"].tolist() == pytest.approx([3e9 / 2039e9, 2e9 / 2039e9])


def test_what_runs_between_the_networks_is_never_compiled():
    rows = table(pointwise(16), pointwise(16, stage="pipeline", module="p"))
    out = project(rows, gpu="a100-80gb", execution="compiled")
    assert out["time_s"].tolist() == pytest.approx([RATES.dispatch_compiled_s, RATES.dispatch_s])


def test_float32_convolution_uses_tf32_and_linear_does_not():
    size = linear(108 * 128 * 10, 1280, 2000, dtype="float32")
    rows = table(*(size | {"category": category} for category in ("Convolution", "Linear")))
    unlimited = replace(get_gpu("a100-80gb"), bandwidth_bytes_s=1e18)
    convolution_s, linear_s = project(rows, gpu=unlimited, efficiency=PERFECT)["time_s"]
    assert convolution_s == pytest.approx(size["flop"] / 156e12, rel=1e-6)
    assert linear_s == pytest.approx(size["flop"] / 19.5e12, rel=1e-6)


# attention: whole tiles


def real_flop(row, gpu="a100-80gb"):
    flop, filled = padded_attention_flop(columns_of(table(row)), get_gpu(gpu), 0.0)
    return flop[0], filled[0]


def test_temporal_attention_computes_tiles_that_are_mostly_empty():
    # 4096 positions * 8 heads, 16 frames: one 128 x 128 tile each, where 16 x 16 is needed: 8 * 8 = 64 times the FLOP
    row = core(16, 16, batch=4096, attention="temporal")
    flop, filled = real_flop(row)
    assert flop == 4 * 4096 * 8 * 128 * 128 * 64 == 64 * row["flop"]
    assert filled == 1.0


def test_temporal_attention_takes_longer_than_spatial_attention_of_64_times_the_flop():
    # 65536 tokens, attending within 64 sequences of 1024 (spatial) or within 4096 sequences of 16 (temporal)
    spatial, temporal = core(1024, 1024, batch=64, attention="spatial"), core(16, 16, batch=4096, attention="temporal")
    assert spatial["flop"] == 64 * temporal["flop"]
    spatial_s, temporal_s = project(table(spatial, temporal), gpu="a100-80gb")["time_s"] - RATES.kernel_s
    # blocks of 128 queries: 64 * 8 * 8 of them walk over 1024 keys, 4096 * 8 over one tile of 128; each starts and ends
    blocks, keys = (64 * 8 * 8, 4096 * 8), (1024 + RATES.fill_keys, 128 + RATES.fill_keys)
    assert temporal_s / spatial_s == pytest.approx(blocks[1] * keys[1] / (blocks[0] * keys[0]))
    assert temporal_s > 1.5 * spatial_s


@pytest.mark.parametrize(("head_dim", "computed"), [(32, 32), (40, 64), (64, 64), (80, 96), (160, 192), (300, 300)])
def test_head_dim_is_padded_to_a_built_kernel(head_dim, computed):
    flop, _ = real_flop(core(4096, 4096, head_dim=head_dim))
    assert flop == 4 * 8 * 4096 * 4096 * computed


def test_flash_skips_tiles_above_the_diagonal():
    # 4 query tiles of 128 x 4 key tiles of 128: 10 of 16 are at or below the diagonal
    flop, _ = real_flop(core(512, 512, batch=16, attention="causal"))
    assert flop == 4 * 16 * 8 * 512 * 512 * 64 * 10 / 16


def test_decode_splits_the_keys_to_fill_the_gpu():
    # 32 heads on 108 multiprocessors: split along 4096 keys in tiles of 64 (head_dim 128); 64 queries per tile
    flop, filled = real_flop(core(1, 4096, heads=32, head_dim=128, attention="causal"))
    assert flop == 4 * 32 * 64 * 4096 * 128
    assert filled == 1.0
    assert project(table(core(1, 65536, heads=32, head_dim=128)), gpu="a100-80gb")["bound"].item() == "memory"


def test_few_long_sequences_of_the_memory_efficient_kernel_leave_multiprocessors_idle():
    # 2 heads * 4096 / 64 queries = 128 blocks: all of 108; 1 head * 1024 / 64 = 16 blocks
    assert real_flop(core(4096, 4096, heads=2, backend="mem-efficient"))[1] == 1.0
    assert real_flop(core(1024, 1024, heads=1, backend="mem-efficient"))[1] == pytest.approx(16 / 108)


def test_eager_attention_pads_its_matrix_products():
    # [77 -> 128 keys]: 4096 * 128 * 48 for QK^T (depth 40 -> 48), 4096 * 80 (depth 77 -> 80) * 64 for PV
    flop, _ = real_flop(core(4096, 77, head_dim=40, backend="eager"))
    assert flop == 2 * 8 * (4096 * 128 * 48 + 4096 * 80 * 64)


def test_gpus_before_ampere_have_no_flash_kernel():
    a100, _ = real_flop(core(16, 16, batch=4096, dtype="float16"))
    t4, _ = real_flop(core(16, 16, batch=4096, dtype="float16"), "t4")
    assert a100 / t4 == (128 / 64) ** 2


def test_eager_attention_is_slower_than_flash_and_more_so_for_long_sequences():
    def gain(tokens):
        rows = table(core(tokens, tokens, head_dim=40))
        eager, flash = (project(rows, gpu="a100-80gb", attention=a) for a in ("eager", "flash"))
        assert eager["kernels"].item() == 3 and flash["kernels"].item() == 1
        return eager["time_s"].item() / flash["time_s"].item()

    assert gain(16384) > gain(1024) > 1
    assert gain(16384) > 2


def attention_flop_s(gpu, head_dim):
    """FLOP/s of a long self attention, as projected."""
    row = table(core(16384, 16384, heads=16, head_dim=head_dim))
    return float(row["flop"].item() / (project(row, gpu=gpu)["time_s"].item() - RATES.kernel_s))


def test_flash_attention_is_within_a_quarter_of_what_was_published_for_it():
    # TFLOP/s of a forward without a causal mask at 16k tokens. A100: arXiv 2307.08691, figure 5; H100: arXiv 2407.08608
    published = {("a100-80gb", 64): 190, ("a100-80gb", 128): 225, ("h100-sxm", 64): 324, ("h100-sxm", 128): 370}
    for (gpu, head_dim), speed in published.items():
        assert attention_flop_s(gpu, head_dim) / 1e12 == pytest.approx(speed, rel=0.25), (gpu, head_dim)


def test_kernels_of_ampere_do_not_follow_the_tensor_cores_of_later_gpus():
    h100, b200 = get_gpu("h100-sxm"), get_gpu("b200")
    clocks = b200.peak("float32") / h100.peak("float32")  # multiprocessors x clock
    assert attention_flop_s(b200, 128) / attention_flop_s(h100, 128) == pytest.approx(clocks)
    assert clocks < 1.2 < 2.2 < b200.peak("bfloat16") / h100.peak("bfloat16")


def test_a_short_sum_pays_for_filling_the_pipeline():
    rates = replace(PERFECT, fill_depth=512.0)
    rows = table(linear(54 * 128, 64 * 128, 512), linear(54 * 128, 64 * 128, 5120))
    short_s, long_s = project(rows, gpu=replace(get_gpu("a100-80gb"), bandwidth_bytes_s=1e18), efficiency=rates)[
        "time_s"
    ]
    assert long_s / short_s == pytest.approx((5120 + 512) / (512 + 512))


# stages, GPUs, execution


def test_a_stage_takes_the_longer_of_host_and_device():
    # large: 1e8 numbers, 600 MB / 2039e9 = 294 us on the device; 20 tiny rows of 10 us host time each = 200 us
    rates = replace(PERFECT, dispatch_s=10e-6)
    tiny = [pointwise(1, module=str(i)) for i in range(20)]
    hidden = project(table(pointwise(100_000_000), *tiny), gpu="a100-80gb", efficiency=rates)
    assert hidden["time_s"].sum() == pytest.approx(6e8 / 2039e9, rel=1e-3)  # the host ran ahead
    waiting = project(table(pointwise(10_000_000), *tiny), gpu="a100-80gb", efficiency=rates)
    assert waiting["time_s"].sum() == pytest.approx(21 * 10e-6)
    assert waiting["bound"].tolist() == ["memory"] + ["launch"] * 20


def test_host_and_device_are_compared_per_stage_and_weighted_by_repeats():
    rates = replace(PERFECT, dispatch_s=10e-6)
    rows = table(
        pointwise(100_000_000, stage="a"),
        pointwise(1, stage="b", repeats=30),
        pointwise(10_000_000, stage="b"),  # 29.4 us once, against 31 * 10 us on the host
    )
    out = project(rows, gpu="a100-80gb", efficiency=rates)
    total = (out["time_s"] * out["repeats"]).groupby(out["stage"]).sum()
    assert total["a"] == pytest.approx(6e8 / 2039e9)
    assert total["b"] == pytest.approx(31 * 10e-6)


MIXED = (
    linear(4096, 320, 1280, repeats=50, module="ff"),
    pointwise(40_000_000, repeats=50, module="ff"),
    core(4096, 4096, head_dim=40, repeats=50),
    core(16, 16, batch=64, attention="temporal", repeats=50),
    {"category": "Convolution", "op": "convolution", "flop": 10**11, "read_bytes": 10**7, "write_bytes": 10**7},
)


@pytest.mark.parametrize("field", ["bandwidth_bytes_s", "peak_flop_s"])
def test_a_better_gpu_is_never_slower(field):
    old = get_gpu("a100-80gb")
    value = getattr(old, field)
    better = {k: 2 * v for k, v in value.items()} if isinstance(value, dict) else 2 * value
    before, after = (project(table(*MIXED), gpu=gpu)["time_s"] for gpu in (old, replace(old, **{field: better})))
    assert after.sum() < before.sum()
    assert (after <= before + 1e-15).all()


def test_compiled_keeps_the_largest_pointwise_row_of_a_module():
    rows = table(
        pointwise(1_000_000, module="a"),
        pointwise(2_000_000, module="a", op="mul"),
        pointwise(500_000, module="a", op="mean", category="Normalization"),
        pointwise(3_000_000, module="b"),
        linear(64, 64, 64, module="a"),
    ).assign(kernels=1)
    fused = fuse_pointwise(rows)
    assert fused["kernels"].tolist() == [0, 1, 0, 1, 1]
    assert fused["read_bytes"].tolist() == [0, 8_000_000, 0, 12_000_000, 2 * 2 * 64 * 64]
    assert rows["kernels"].tolist() == [1] * 5
    compiled, eager = (project(rows, gpu="a100-80gb", execution=e) for e in ("compiled", "eager"))
    assert compiled["time_s"].sum() < eager["time_s"].sum()
    assert compiled["bound"].tolist()[0] == ""


def test_compiled_kernels_read_and_write_the_model_s_own_type():
    # 8 B a number read and 4 written in float32; the kernel that a compiler makes of it reads 4 and writes 2
    rows = table({**pointwise(1_000_000, dtype="float32"), "read_bytes": 8_000_000, "write_bytes": 4_000_000})
    rows.attrs = {"dtype": "bfloat16"}
    fused = fuse_pointwise(rows.assign(kernels=1))
    assert (fused["read_bytes"].item(), fused["write_bytes"].item()) == (4_000_000, 2_000_000)


def test_project_leaves_the_table_alone_and_takes_categoricals():
    rows = table(*MIXED)
    rows.attrs = {"model": "m"}
    before = rows.copy()
    text = [column for column in rows.columns if isinstance(BLANK[column], str)]
    packed = rows.astype(dict.fromkeys(text, "category"))
    for attention in (None, "eager"):
        for execution in ("eager", "compiled"):
            plain = project(rows, gpu="a100-80gb", attention=attention, execution=execution)
            same = project(packed, gpu="a100-80gb", attention=attention, execution=execution)
            np.testing.assert_array_equal(plain["time_s"], same["time_s"])
            assert set(plain["time_kind"]) == {"projected"}
            assert list(plain.columns) == [*BLANK, "bound"]
            assert plain.attrs["model"] == "m"
    pd.testing.assert_frame_equal(rows, before)


def test_project_of_nothing():
    assert project(table(*MIXED)[:0], gpu="a100-80gb")["time_s"].sum() == 0


def test_a_large_table_projects_each_row_as_a_small_one_does():
    small = project(table(*MIXED), gpu="a100-80gb")["time_s"].to_numpy()
    large = project(pd.concat([table(*MIXED)] * 500, ignore_index=True), gpu="a100-80gb")["time_s"].to_numpy()
    assert (large.reshape(500, -1) == small).all()


# many projections


def test_a_sweep_says_what_each_projection_says():
    rows = table(*MIXED, linear(4096, 320, 1280, repeats=50, module="twin"))
    gpus = ["a100-80gb", "h100-sxm", "b200"]
    for attention, execution in ((None, "eager"), ("eager", "eager"), ("flash", "compiled")):
        out = sweep({"one": rows, "half": rows[:3]}, gpus, attention=attention, execution=execution)
        assert list(zip(out["name"], out["gpu"], strict=True)) == [
            (name, gpu) for name in ("one", "half") for gpu in gpus
        ]
        for row in out.itertuples():
            part = rows if row.name == "one" else rows[:3]
            summary = summarize(project(part, gpu=row.gpu, attention=attention, execution=execution))
            assert row.time_s == pytest.approx(summary["time_s"])
            assert (row.compute_s, row.memory_s, row.launch_s) == pytest.approx(tuple(summary["bound"].values()))


def test_a_sweep_skips_gpus_that_lack_the_type():
    out = sweep({"m": table(*MIXED)}, ["t4", "a100-80gb"])
    assert np.isnan(out["time_s"][0]) and out["time_s"][1] > 0


def test_merging_equal_rows_keeps_every_total():
    rows = table(*[linear(64, 64, 64, module=str(i), repeats=50) for i in range(20)], pointwise(7, repeats=3))
    columns = columns_of(rows)
    merged = merge_equal(columns)
    assert (len(columns), len(merged)) == (21, 2)
    for name in ("flop", "read_bytes", "write_bytes", "launches"):
        before, after = ((getattr(c, name) * c.repeats).sum() for c in (columns, merged))
        assert before == after, name


def test_ten_thousand_projections_need_no_frame_each(monkeypatch):
    tables = {str(n): table(*MIXED) for n in range(3)}
    made = []
    real = pd.DataFrame.assign
    monkeypatch.setattr(pd.DataFrame, "assign", lambda self, **new: made.append(1) or real(self, **new))
    sweep(tables, list(list_gpus()["name"])[2:] * 50)
    assert len(made) <= 2 * len(tables)  # per table, whatever the number of GPUs


# summary and errors


def test_summary_adds_up():
    summary = summarize(project(table(*MIXED), gpu="a100-80gb"))
    assert set(summary) == {"time_s", "energy_j", "mfu", "stages", "categories", "bound", "uncounted"}
    for part in (
        summary["categories"],
        summary["bound"],
        {s["stage"]: s["time_s"] * s["repeats"] for s in summary["stages"]},
    ):
        assert sum(part.values()) == pytest.approx(summary["time_s"])
    drawn_w = {bound: 400 * getattr(Power(), bound) for bound in summary["bound"]}  # of a board of 400 W
    assert summary["energy_j"] == pytest.approx(sum(drawn_w[bound] * s for bound, s in summary["bound"].items()))
    assert set(summary["bound"]) == {"compute", "memory", "launch"}


def test_summary_counts_executions_of_expanded_decode_stages():
    rows = [linear(1, 64, 64, stage="decode", repeats=7)] + [core(1, 8 + i, stage="decode", step=i) for i in range(7)]
    summary = summarize(project(table(*rows), gpu="a100-80gb"))
    assert [(s["stage"], s["repeats"]) for s in summary["stages"]] == [("decode", 7)]
    # 8 rows, all launch bound; 7 runs of 2 kernels
    assert summary["time_s"] == pytest.approx(14 * RATES.dispatch_s)


def test_summary_counts_executions_where_every_row_is_expanded():
    rows = [core(1, 8 + i, stage="decode", step=i) for i in range(7)]
    assert summarize(project(table(*rows), gpu="a100-80gb"))["stages"][0]["repeats"] == 7


def test_summary_of_a_table_without_times_says_what_to_do():
    with pytest.raises(ValueError, match="call project"):
        summarize(table(*MIXED))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpu": "a100-8ogb"}, "^unknown gpu 'a100-8ogb'; did you mean 'a100-80gb'"),
        ({"gpu": "t4"}, "^t4 has no bfloat16; use float16 or float32$"),
        ({"gpu": "a100-80gb", "attention": "fast"}, "^unknown attention backend 'fast'; choose one of flash, eager$"),
        ({"gpu": "a100-80gb", "execution": "jit"}, "^unknown execution 'jit'; choose one of eager, compiled$"),
    ],
)
def test_bad_input_is_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        project(table(*MIXED), **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"fed": -0.1}, {"flash": float("nan")}, {"kernel_s": "3us"}])
def test_an_efficiency_that_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Efficiency(**wrong)
