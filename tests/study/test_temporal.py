"""Attention over frames beside attention over positions: found, read from tables by hand, and measured."""

import pandas as pd
import pytest

from mmchar.study.temporal import measure_cores, temporal_readings, with_temporal_attention


def test_temporal_attention_is_asked_for_where_there_is_some():
    names = ["hunyuanvideo", "animatediff-v1.5.2", "latte-1", "flux.1-dev", "svd-xt"]
    assert with_temporal_attention(names) == ["animatediff-v1.5.2", "latte-1", "svd-xt"]
    with pytest.raises(ValueError, match="no temporal attention in hunyuanvideo; choose among animatediff.*zeroscope"):
        with_temporal_attention(["hunyuanvideo"])


def test_temporal_readings_by_hand():
    rows = [
        ("up.attentions.0.attn1", "spatial", "Attention", 1.0),
        ("up.attentions.0.attn1.to_q", "", "Linear", 2.0),
        ("up.attentions.0.attn2", "cross", "Attention", 1.0),
        ("up.temp_attentions.0", "", "Data movement", 1.0),
        ("up.temp_attentions.0.attn1", "temporal", "Attention", 3.0),
        ("up.temp_attentions.0.attn1.to_q", "", "Linear", 4.0),
        ("conv", "", "Convolution", 100.0),
    ]
    table = pd.DataFrame(rows, columns=["module", "attention", "category", "time_s"])
    out = temporal_readings(table.assign(model="m", stage="s", repeats=2))
    share = [3 / 4, 3 / 5, 4 / 5, 7 / 10, 8 / 12]
    assert list(out["share"]) == pytest.approx([100 * each for each in share])
    assert list(out["total_s"]) == [8, 10, 10, 20, 24]


@pytest.mark.parametrize(
    ("over_time", "over_space"),
    [
        ("up.motion_modules.0", "up.attentions.0"),  # AnimateDiff
        ("up.attentions.0.temporal_transformer_blocks.0", "up.attentions.0.transformer_blocks.0"),  # video diffusion
        ("temporal_transformer_blocks.0", "transformer_blocks.0"),  # Latte
        ("temporal_blocks.0", "spatial_blocks.0"),  # Phenaki
    ],
)
def test_modules_over_time_are_known_in_every_model(over_time, over_space):
    rows = [
        (f"{over_time}.attn1", "temporal", "Attention", 3.0),
        (f"{over_time}.ff", "", "Linear", 4.0),
        (f"{over_space}.attn1", "spatial", "Attention", 1.0),
        (f"{over_space}.ff", "", "Linear", 2.0),
        ("transformer_blocks.0.ff", "", "Linear", 90.0),  # of the prior, which is not over space
    ]
    table = pd.DataFrame(rows, columns=["module", "attention", "category", "time_s"])
    share = temporal_readings(table.assign(model="m", stage=[*"ssss", "prior"], repeats=1))["share"]
    assert (share["core"], share["module"]) == pytest.approx((75, 70))


def test_cores_are_measured():
    shape = {"batch": [2], "heads": [2], "q_len": [16], "kv_len": [16], "head_dim": [8]}
    got = measure_cores(pd.DataFrame(shape), samples=2).iloc[0]
    assert min(got["eager_s"], got["fused_s"], got["copy_s"]) > 0 and got["time_kind"] == "measured"
