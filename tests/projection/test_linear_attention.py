"""SANA on several GPUs: linear attention by heads and in a ring, by hand."""

import pytest

import mmchar
from mmchar.projection.columns import denoising
from mmchar.projection.parallel.layout import parallelize

SANA, STEPS, BLOCKS = "sana-1.6b-1024", 20, 20
HEADS, DEPTH, TOKENS, BATCH, CHANNELS, SIDE = 70, 32, 1024, 2, 11_200, 32  # the batch is guidance's; 32 x 32 tokens


@pytest.fixture(scope="module")
def table():
    return mmchar.count(SANA)


def denoiser(table):
    return table[denoising(table)]


def products(table):
    rows = denoiser(table)
    return rows[rows["op"] == "bmm"]


def total(rows, column):
    return int((rows[column] * rows["repeats"]).sum())


def sent(shared, op):
    rows = denoiser(shared)
    return total(rows[rows["op"] == op], "write_bytes") / (STEPS * BLOCKS)


@pytest.mark.parametrize("degrees", [{"ulysses": 2}, {"ring": 2}, {"ulysses": 2, "ring": 4}])
def test_all_but_the_conditioning_is_shared_out(table, degrees):
    shared, whole = denoiser(parallelize(table, **degrees)), denoiser(table)
    many = degrees.get("ulysses", 1) * degrees.get("ring", 1)
    once = whole["module"].str.contains("attn2.to_[kv]|time_embed|caption") & ~whole["module"].str.contains("norm")
    mine = ~shared["module"].isin(whole["module"][once]) & (shared["op"] != "bmm")
    rest = total(whole[~once & (whole["op"] != "bmm")], "flop")
    assert total(shared[mine], "flop") == pytest.approx(rest / many, rel=1e-3)


def test_ulysses_shares_the_heads_and_sends_four_tensors(table):
    shared = parallelize(table, ulysses=2)
    for column in ("flop", "read_bytes", "write_bytes"):
        assert 2 * total(products(shared), column) == total(products(table), column)
    assert total(products(shared), "calls") == total(products(table), "calls")
    local = BATCH * HEADS * DEPTH * TOKENS // 2
    assert sent(shared, "all_to_all") == (3 * 2 + 4) * local / 2  # q, k and v in half, what comes back in float32
    messages = denoiser(shared).query("op == 'all_to_all'")
    assert (messages["calls"] == 4).all() and (messages["peers"] == 1).all() and len(messages) == BLOCKS


def test_a_ring_passes_keys_and_values_and_saves_none_of_the_products(table):
    shared = parallelize(table, ring=4)
    assert total(products(shared), "flop") == total(products(table), "flop")
    assert total(products(shared), "calls") == 4 * total(products(table), "calls")
    assert set(products(shared)["k"]) == {DEPTH, TOKENS // 4}
    local = BATCH * HEADS * TOKENS // 4 * 2  # bytes of one number of each token and head
    edges = 2 * BATCH * CHANNELS * SIDE * 2  # of the convolutions of each channel: the row above and the one below
    assert sent(shared, "send_recv") == 3 * local * (DEPTH + DEPTH + 1) + edges
    assert "all_to_all" not in set(shared["op"])


@pytest.mark.parametrize(
    ("degrees", "reason"),
    [
        ({"ulysses": 4}, "ulysses=4 does not divide the 70 heads"),
        ({"ring": 3}, "= 3 does not divide the 1024 image tokens"),
    ],
)
def test_degrees_that_do_not_divide_are_refused(table, degrees, reason):
    with pytest.raises(ValueError, match=reason):
        parallelize(table, **degrees)


def test_it_can_be_validated_like_any_other():
    import pandas as pd

    from mmchar.projection.evidence.validation import validate

    row = {"model": SANA, "gpu": "h100-sxm", "latency_s": 1.0}
    rows = [
        row,
        row | {"ulysses": 2, "ring": 2},
        row | {"ulysses": 2, "ring": 2, "batch": 4},
        row | {"ring": 4, "cfg": 2},
    ]
    table = validate(pd.DataFrame(rows))
    assert table.attrs["problems"] == [] and (table["predicted_s"] > 0).all()
