"""Attention formulas by hand, its kinds by name and by shape, and the two byte models."""

import pandas as pd
import pytest

from mmchar.tracing import attention


def test_attention_flop_of_the_largest_sd15_self_attention():
    # Q K^T and P V, each 2 * batch 2 * 8 heads * 4096 * 4096 * 40 = 21_474_836_480; two of them
    assert attention.attention_flop(4096, 4096, batch=2, heads=8, head_dim=40) == 2 * 21_474_836_480


def test_attention_flop_with_a_value_of_another_width():
    # 2 * 1 * 1 * 3 * 5 * (7 + 11) = 540
    assert attention.attention_flop(3, 5, batch=1, heads=1, head_dim=7, value_dim=11) == 540


def test_similarity_matrix_grows_with_the_fourth_power_of_the_image_side():
    def of_side(side):  # a U-Net's first level at a latent of side / 8
        tokens = (side // 8) ** 2
        return attention.similarity_bytes(tokens, tokens, batch=1, heads=8, item_bytes=2)

    # (512 / 8)^2 = 4096 tokens: 8 heads * 4096 * 4096 * 2 bytes = 268_435_456
    assert of_side(512) == 268_435_456
    assert of_side(1024) == 2**4 * of_side(512)


@pytest.mark.parametrize(
    ("module", "q_len", "kv_len", "flags", "kind"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1", 4096, 4096, {}, "self"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2", 4096, 77, {}, "cross"),
        ("down_blocks.0.temp_attentions.0.transformer_blocks.0.attn2", 16, 16, {}, "temporal"),
        ("transformer_in.transformer_blocks.0.attn1", 16, 16, {}, "temporal"),
        ("model.layers.0.self_attn", 1, 513, {"causal": True}, "causal"),
        ("model.decoder.layers.0.encoder_attn", 1, 128, {}, "cross"),
        ("mid_block.attentions.0", 64, 192, {"joint": True}, "joint"),
        ("some.name.that.says.nothing", 5, 5, {}, "self"),
        ("some.name.that.says.nothing", 5, 9, {}, "cross"),
    ],
)
def test_kind(module, q_len, kv_len, flags, kind):
    assert attention.attention_kind(module, q_len=q_len, kv_len=kv_len, **flags) == kind


@pytest.mark.parametrize("module", ["temp_attentions.0.attn1", "layers.0.attn1"])
def test_a_name_that_contradicts_the_shapes_is_loud(module):
    with pytest.warns(UserWarning, match="by its name, but q_len=16 and kv_len=77"):
        assert attention.attention_kind(module, q_len=16, kv_len=77) == "causal"
    with pytest.warns(UserWarning, match="say cross"):
        assert attention.attention_kind(module, q_len=77, kv_len=16) == "cross"


def rows():
    sizes = {"batch": 2, "heads": 8, "q_len": 64, "kv_len": 64, "head_dim": 40}
    core = {**sizes, "category": "Attention", "calls": 3, "read_bytes": 1000, "write_bytes": 400, "live_bytes": 50}
    other = {
        **dict.fromkeys(sizes, 0),
        "category": "Linear",
        "calls": 1,
        "read_bytes": 10,
        "write_bytes": 4,
        "live_bytes": 5,
    }
    table = pd.DataFrame([{**core, "mask_bytes": 0}, {**core, "mask_bytes": 128}, {**other, "mask_bytes": 0}])
    return table.assign(dtype="bfloat16", backend=["flash", "mem-efficient", ""])


def test_eager_writes_and_reads_the_similarity_matrix():
    eager = attention.use_backend(rows(), "eager")
    similarity = 2 * 8 * 64 * 64 * 2  # batch * heads * q * kv * bytes = 131_072
    # without a mask S and P are each written and read once: two passes, in each of 3 calls
    assert eager["read_bytes"][0] == 1000 + 3 * 2 * similarity
    assert eager["write_bytes"][0] == 400 + 3 * 2 * similarity
    # with a mask S is read and written once more
    assert eager["read_bytes"][1] == 1000 + 3 * 3 * similarity
    assert eager["live_bytes"][0] == 50 + 2 * similarity
    assert list(eager["backend"]) == ["eager", "eager", ""]
    assert eager.loc[2, ["read_bytes", "write_bytes", "live_bytes"]].tolist() == [10, 4, 5]


def test_there_and_back_gives_the_same_table():
    back = attention.use_backend(attention.use_backend(attention.use_backend(rows(), "eager"), "eager"), "flash")
    pd.testing.assert_frame_equal(back, rows(), check_dtype=False)


def test_a_measured_math_backend_counts_as_eager():
    math = attention.use_backend(rows(), "eager").assign(backend=["math", "math", ""])
    pd.testing.assert_frame_equal(attention.use_backend(math, "flash"), rows(), check_dtype=False)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown attention backend 'xformers'; choose one of flash, eager"):
        attention.use_backend(rows(), "xformers")


def test_kernels_and_eligibility():
    assert [attention.kernels_per_call("eager", m) for m in (False, True)] == [3, 4]
    assert [attention.kernels_per_call("flash", m) for m in (False, True)] == [1, 1]
    assert not attention.flash_eligible(has_mask=True, head_dim=64)
    assert not attention.flash_eligible(has_mask=False, head_dim=512)
