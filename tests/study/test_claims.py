"""The judged claims on hand-made tables, where every share is known, and one row for each of them."""

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


def test_temporal_share_is_of_cores_and_of_models_that_have_it():
    assert claims.temporal_share(table()).to_dict() == {VIDEO: pytest.approx(75)}  # 3 of 3 + 1


def test_a_block_is_a_core_with_its_projections():
    kinds = ("temporal", "spatial")
    blocks = {kind: table()["time_s"][claims.attention_block(table(), kind)].tolist() for kind in kinds}
    assert blocks == {"temporal": [3, 2], "spatial": [1, 4]}  # the feed-forward network in neither


def test_families_are_told_apart():
    values = pd.Series({SD: 1.0, LLAMA: 2.0, VIDEO: 3.0})
    assert list(claims.in_families(values, claims.DIFFUSION).index) == [SD]


def test_every_judged_claim_was_read_where_it_stands():
    said = claims.statements().set_index("id")
    assert set(said.loc[[claim.id for claim in claims.CLAIMS], "read"]) == {"read"}
    assert set(said["read"].str.split(" ").str[0]) <= {"read", "second-hand", "not"}


def test_the_scorecard_judges_by_the_stated_range(monkeypatch):
    claim = claims.Claim(
        "c001", "up to 44", (33, 55), "%", "largest", lambda flash, eager: pd.Series({"a": 20.0, "b": 50.0})
    )
    monkeypatch.setattr(claims, "CLAIMS", (claim, claim))
    card = claims.scorecard(table(), table())
    assert card.loc[0, ["ours", "low", "high", "verdict"]].tolist() == [50, 20, 50, "agrees"]
    monkeypatch.setattr(claims, "CLAIMS", (claims.Claim("c001", "", (60, 70), "%", "largest", claim.value),))
    assert claims.scorecard(table(), table())["verdict"].tolist() == ["differs"]


def test_the_whole_suite_is_judged():
    card = claims.scorecard(*claims.projected_suite(gpu="a100-80gb", progress=False)).set_index("id")
    assert list(card.index) == ["c001", "c002", "c003", "c004", "c005", "c006"]
    assert card["ours"].notna().all()
    assert (card["low"] <= card["ours"]).all() and (card["ours"] <= card["high"]).all()
    readme = (claims.REFERENCE.parent.parent / "README.md").read_text(encoding="utf-8")
    for name, row in card.iterrows():
        cells = f"| {row['ours']:.3g} | {row['low']:.3g} to {row['high']:.3g} | {row['verdict']} |"
        assert any(line.startswith(f"| {name}:") and line.endswith(cells) for line in readme.splitlines()), name
    assert card.loc["c006", "ours"] == 8
    assert card.loc["c004", "ours"] == 4  # halving both sides of an image quarters its positions
