"""What the notebooks compute from tables, against arithmetic by hand."""

import pandas as pd
import pytest

from mmchar import count, project
from mmchar.models.loading import get_spec, zoo_names
from mmchar.request import Request
from mmchar.study.experiments import (
    FAMILY_ORDER,
    attention_on_sheet,
    compare_attention,
    diffusion_and_others,
    in_order,
    length_readings,
    longest_by_step,
    one_size_each,
    totals,
)


def test_models_are_ordered_by_family_and_an_unknown_one_is_refused():
    assert in_order("make-a-video, stable-diffusion-1.5,llama-2-13b,llama-2-7b") == [
        "llama-2-7b",
        "llama-2-13b",
        "stable-diffusion-1.5",
        "make-a-video",
    ]
    assert in_order("all", among=["imagen"]) == in_order(["all"], among=["imagen"]) == ["imagen"]
    for wrong in (3, ["llama-2-7b", 3], {"a": 1}):
        with pytest.raises(ValueError, match="is no list of names; write them in one text"):
            in_order(wrong)
    assert in_order(["make-a-video", "llama-2-7b"]) == ["llama-2-7b", "make-a-video"]  # as papermill's -y gives it
    with pytest.raises(ValueError, match="unknown model 'sd'"):
        in_order("sd")


def test_one_size_each_keeps_a_size_that_is_alone():
    names = ["llama-2-7b", "llama-2-13b", "llama-2-70b", "parti-350m", "imagen"]
    assert one_size_each(names) == ["llama-2-7b", "parti-350m", "imagen"]
    assert one_size_each(names, also=["llama-2-70b"]) == ["llama-2-7b", "llama-2-70b", "parti-350m", "imagen"]


def test_every_family_has_its_place():
    assert sorted(FAMILY_ORDER) == sorted({get_spec(name).family for name in zoo_names()})


def test_a_pair_takes_a_diffusion_model_and_one_that_decodes():
    names = ["hstu-24l-1024-8k", "llava-1.5-7b", "amused-256", "flux.1-dev", "make-a-video"]
    assert diffusion_and_others(names) == (["flux.1-dev"], ["llava-1.5-7b", "amused-256"])
    with pytest.raises(ValueError, match="among flux.1-dev: add a model that decodes tokens, e.g. llama-2-7b"):
        diffusion_and_others(["flux.1-dev"])
    with pytest.raises(ValueError, match="add a diffusion model"):
        diffusion_and_others(["llava-1.5-7b", "hstu-24l-1024-8k"])


def test_totals_multiply_by_repeats():
    table = pd.DataFrame(
        {"stage": ["a", "a", "b"], "calls": [1, 2, 1], "flop": [10, 1, 5], "read_bytes": [1, 1, 1], "write_bytes": 1}
    ).assign(time_s=0.5, repeats=[2, 3, 1])
    out = totals(table, ["stage"]).set_index("stage")
    assert list(out.loc["a"]) == [8, 23, 10, 2.5]  # 1*2 + 2*3; 10*2 + 1*3; 2*2 + 2*3; 0.5*2 + 0.5*3
    assert list(out.loc["b"]) == [1, 5, 2, 0.5]


def test_comparison_agrees_with_the_sums_of_both_tables():
    table = count("stable-diffusion-1.5", tiny=True)
    eager, fused = (project(table, gpu="a100-80gb", attention=kernel) for kernel in ("eager", "flash"))
    both = compare_attention(eager, fused, ["stage", "attention"])
    assert both["time_eager_s"].sum() == pytest.approx((eager["time_s"] * eager["repeats"]).sum())
    assert both["bytes_fused"].sum() == ((fused["read_bytes"] + fused["write_bytes"]) * fused["repeats"]).sum()
    row = both[(both["stage"] == "denoise") & (both["attention"] == "self")].iloc[0]
    assert row["gain"] == row["time_eager_s"] / row["time_fused_s"]
    assert row["intensity_fused"] > row["intensity_eager"]


def test_attention_on_the_data_sheet():
    lengths = pd.DataFrame({"q_len": [1, 64, 4096], "kv_len": [1024, 64, 4096]})
    out = attention_on_sheet(lengths, gpu="a100-80gb", dtype="bfloat16")
    # fused: q k / (q + k); bytes: 1 + 2 q k / (64 (q + k))
    assert list(out["intensity_fused"]) == pytest.approx([1024 / 1025, 32, 2048])
    assert list(out["bytes_ratio"]) == pytest.approx([1 + 2 * 1024 / (64 * 1025), 2, 65])
    assert list(out["expected"][:2]) == pytest.approx(list(out["bytes_ratio"][:2]))  # both memory-bound
    assert out["expected"][2] < 6  # the fused kernel is compute-bound


def test_longest_by_step_follows_the_cache_and_the_stages():
    decode = longest_by_step(count("llama-2-7b", Request(new_tokens=5), tiny=True))
    prompt = int(decode["longest"].iloc[0])
    assert list(decode["longest"]) == [prompt, prompt + 1, prompt + 2, prompt + 3, prompt + 4]
    assert list(decode["progress"]) == [0, 25, 50, 75, 100]
    image = longest_by_step(count("stable-diffusion-1.5", Request(steps=4), tiny=True))
    denoise = image[image["stage"] == "denoise"]
    # two texts are encoded before, and PNDM calls the denoiser five times in four steps
    assert list(denoise["step"]) == [2, 6] and denoise["longest"].nunique() == 1


def test_length_readings_of_a_unet_of_four_levels():
    got = length_readings(count("stable-diffusion-1.5"))
    # 4096, 1024, 256 at the levels that attend, 64 in the middle block
    assert list(got) == [4, 64, 16, 8, 64, 1]
    with pytest.raises(ValueError, match="choose a diffusion model"):
        length_readings(count("llama-2-7b", tiny=True))
