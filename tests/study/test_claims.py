"""Shares and gains on hand-made tables, where every one is known."""

import pandas as pd
import pytest

from mmchar.study import claims

SD, LLAMA, VIDEO = "stable-diffusion-1.5", "llama-2-7b", "make-a-video"


def row(model, category, time_s, **more):
    base = {"stage": "denoise", "module": "a.b", "attention": "", "repeats": 1, "flop": 1, "q_len": 0, "kv_len": 0}
    base |= {"calls": 1, "read_bytes": 1, "write_bytes": 1}
    return {**base, "model": model, "category": category, "time_s": time_s, **more}


def table():
    core = {"category": "Attention", "repeats": 10}
    return pd.DataFrame(
        [
            row(SD, "Convolution", 0.4, repeats=10),
            row(SD, time_s=0.1, attention="self", q_len=4096, **core),
            row(SD, time_s=0.1, attention="self", q_len=1024, **core),
            row(SD, "Linear", 2.0),
            row(LLAMA, "Linear", 3.0),
            row(LLAMA, "Attention", 1.0, attention="causal", q_len=1, kv_len=9),
            row(VIDEO, "Attention", 3.0, attention="temporal", module="down.temp.attn1"),
            row(VIDEO, "Attention", 1.0, attention="spatial", module="down.attn.attn1"),
            row(VIDEO, "Linear", 2.0, module="down.temp.attn1.to_q"),
            row(VIDEO, "Linear", 4.0, module="down.attn.attn1.to_q"),
            row(VIDEO, "Linear", 9.0, module="down.attn.ff"),
        ]
    )


def test_share_counts_repeats():
    shares = claims.share_by_model(table(), table()["category"] == "Convolution")
    # 10 * 0.4 of 10 * (0.4 + 0.1 + 0.1) + 2.0 = 4 of 8
    assert shares[SD] == pytest.approx(50)
    assert shares[LLAMA] == 0


def test_speedup_is_eager_over_fused():
    eager = table().assign(time_s=lambda t: t["time_s"].where(t["attention"] == "", 3 * t["time_s"]))
    gain = claims.speedup_by_model(table(), eager)
    assert gain[LLAMA] == pytest.approx(6 / 4)
    assert claims.speedup_by_model(table(), eager, attention_only=True)[LLAMA] == pytest.approx(3)


def test_a_block_is_a_core_with_its_projections():
    kinds = ("temporal", "spatial")
    blocks = {kind: table()["time_s"][claims.attention_block(table(), kind)].tolist() for kind in kinds}
    assert blocks == {"temporal": [3, 2], "spatial": [1, 4]}  # the feed-forward network in neither


def test_families_are_told_apart():
    values = pd.Series({SD: 1.0, LLAMA: 2.0, VIDEO: 3.0})
    assert list(claims.in_families(values, ("latent_diffusion",)).index) == [SD]


def test_statements_say_whether_they_were_read():
    assert set(claims.statements()["read"].str.split(" ").str[0]) <= {"read", "second-hand", "not"}
