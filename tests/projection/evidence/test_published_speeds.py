"""Published speeds beside projections of the same configuration."""

import pytest

from mmchar import Request, count, project
from mmchar.projection.data_sheets import list_gpus
from mmchar.projection.evidence.cases import published_speeds
from mmchar.projection.scaling import count_batch
from mmchar.study.claims import published_beside_projected
from mmchar.tables.totals import executions


@pytest.fixture(scope="module")
def speeds():
    return published_beside_projected(["stable-diffusion-1.5"])


def test_only_configurations_that_a_projection_can_express_are_there(speeds):
    assert set(speeds["execution"]) == {"eager", "compiled"}  # not TensorRT
    assert set(speeds["gpu"]) <= set(list_gpus()["name"]) and {"a100-80gb", "v100-32gb", "t4"} <= set(speeds["gpu"])
    fal = speeds[speeds["source"].str.startswith("fal-ai")]
    assert list(fal["published"]) == [1.604, 1.354, 1.058]
    assert set(speeds["family"]) == {"U-Net image"}


def test_the_projection_is_of_the_rows_own_configuration(speeds):
    table = count("stable-diffusion-1.5", Request(steps=50, height=512, width=512), dtype="float16")
    timed = project(table, gpu="a100-80gb", attention="flash", execution="compiled")
    row = speeds[speeds["published"] == 1.354].iloc[0]
    assert row["projected"] == pytest.approx((timed["time_s"] * timed["repeats"]).sum())
    assert row["difference_percent"] == pytest.approx(100 * (row["projected"] / 1.354 - 1))


def test_iterations_per_second_are_those_of_the_loop_with_its_scheduler(speeds):
    row = speeds[(speeds["unit"] == "it/s") & (speeds["gpu"] == "t4") & (speeds["execution"] == "eager")].iloc[1]
    assert row["published"] == 1.79  # a batch of 4
    table = count_batch("stable-diffusion-1.5", Request(batch=4, steps=50, height=512, width=512), dtype="float16")
    timed = project(table, gpu="t4", attention="flash")
    loop = timed[timed["stage"].isin(["denoise", "pipeline"])]
    steps = executions(table)["denoise"]  # 51: PNDM
    assert row["projected"] == pytest.approx(steps / (loop["time_s"] * loop["repeats"]).sum())


def test_the_file_says_in_columns_what_a_fit_may_see():
    rows = published_speeds()
    assert not rows["setting"].str.contains(r"channels.last|TF32|int[48]|fp8|Ulysses|tensor parallel", case=False).any()
    assert (rows["weights"] == "").all() and (rows["tf32"] == "").all() and (rows["source"] != "").all()
    assert set(rows["fitted"]) == {"no", "host", "board", ""} and set(rows["channels_last"]) == {"true", ""}
    assert rows[rows["setting"].str.contains("locked|PCIE")]["fitted"].eq("no").all()
    assert rows[rows["setting"].str.contains("host bound")]["fitted"].isin(["no", "host"]).all()


@pytest.mark.slow
def test_tokens_per_second_are_those_of_the_decode_stage():
    speeds = published_beside_projected(["llama-2-7b"])
    timed = project(count("llama-2-7b"), gpu="a100-80gb", attention="flash", execution="compiled")
    decode = timed[timed["stage"] == "decode"]
    rate = 255 / (decode["time_s"] * decode["repeats"]).sum()  # 256 new tokens, the first from the prefill
    row = speeds[speeds["execution"] == "compiled"].iloc[0]
    assert row["projected"] == pytest.approx(rate)


def test_models_without_published_speeds_give_an_empty_table_with_columns():
    assert list(published_beside_projected(["imagen"]).columns)[:2] == ["model", "gpu"]
