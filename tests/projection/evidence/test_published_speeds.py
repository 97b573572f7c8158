"""Published speeds beside projections of the same configuration."""

import pytest

from mmchar import Request, count, project
from mmchar.study.claims import published_beside_projected


@pytest.fixture(scope="module")
def speeds():
    return published_beside_projected(["stable-diffusion-1.5"])


def test_only_configurations_that_a_projection_can_express_are_there(speeds):
    assert set(speeds["execution"]) == {"eager", "compiled"}  # not TensorRT
    assert set(speeds["gpu"]) == {"a100-80gb"}
    assert list(speeds["published"]) == [1.604, 1.354, 1.058]  # published_speeds.csv, fal-ai rows


def test_the_projection_is_of_the_rows_own_configuration(speeds):
    table = count("stable-diffusion-1.5", Request(steps=50, height=512, width=512), dtype="float16")
    timed = project(table, gpu="a100-80gb", attention="flash", execution="compiled")
    row = speeds[speeds["setting"] == "channels-last"].iloc[0]
    assert row["projected"] == pytest.approx((timed["time_s"] * timed["repeats"]).sum())
    assert row["difference_percent"] == pytest.approx(100 * (row["projected"] / 1.058 - 1))


@pytest.mark.slow
def test_tokens_per_second_are_those_of_the_decode_stage():
    speeds = published_beside_projected(["llama-2-7b"])
    assert not speeds["setting"].str.contains("int").any()  # integer weights are not counted yet
    timed = project(count("llama-2-7b"), gpu="a100-80gb", attention="flash", execution="compiled")
    decode = timed[timed["stage"] == "decode"]
    rate = 255 / (decode["time_s"] * decode["repeats"]).sum()  # 256 new tokens, the first from the prefill
    row = speeds[speeds["execution"] == "compiled"].iloc[0]
    assert row["projected"] == pytest.approx(rate)


def test_models_without_published_speeds_give_an_empty_table_with_columns():
    assert list(published_beside_projected(["imagen"]).columns)[:2] == ["model", "gpu"]
