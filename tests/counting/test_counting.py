"""Counts against torch's own counter, against each other, and against arithmetic."""

from dataclasses import replace

import pandas as pd
import pytest
from second_routes import flop_of_step, torch_flop

from mmchar.counting.operator_table import COLUMNS, count, count_stage, summarize_count
from mmchar.counting.planned_stages import stages
from mmchar.models.loading import get_spec, load, zoo_names
from mmchar.request import Request
from mmchar.tracing.attention import use_backend

NAMES = zoo_names()
ONE_OF_EACH_FAMILY = {get_spec(name).family: name for name in NAMES}.values()

# The CPU's and meta's kernels copy in different places: what an attention over the positions of an image adds to is
# made contiguous by one of them, a mask is filled or copied into, a number comes from another device.
COPIES_ELSEWHERE = {
    *("imagen", "adm-imagenet-64", "adm-imagenet-256", "karlo-unclip", "deepfloyd-if", "sana-1.6b-1024"),
    *("sana-1.5-1.6b", "sana-1.5-4.8b", "hunyuanimage-2.1", "hunyuanvideo", "hunyuanvideo-1.5", "animatediff-v1.5.2"),
    *("modelscope-t2v-1.7b", "zeroscope-v2-576w", "latte-1", "svd-xt"),
    *("emu3-gen-8b", "qwen2.5-omni-7b", "z-image-turbo", "chameleon-7b", "chameleon-34b"),
}
# Noise stands for the image that a video is not made from, so that its tokens are masked in another way.
MASKS_ELSEWHERE = {"hunyuanvideo-1.5": ["ones", "zeros", "mul"]}
COPIES = ["clone", "_to_copy", "copy_", "fill_", "scalar_tensor"]


@pytest.mark.parametrize("name", NAMES)
def test_a_real_tiny_run_agrees_with_meta_and_with_flop_counter_mode(name):
    real, meta = (load(name, device=device, dtype="float32", tiny=True) for device in ("cpu", "meta"))
    plan = stages(real.spec)
    assert plan and len({stage.name for stage in plan}) == len(plan)
    for stage in plan:
        assert stage.component in real.spec.components and stage.repeats > 0
        seen, counted = count_stage(real, stage), count_stage(meta, stage)
        if name in ONE_OF_EACH_FAMILY:
            assert flop_of_step(seen, 0) == torch_flop(real, stage)
        if name in COPIES_ELSEWHERE:
            left_out = [*COPIES, *MASKS_ELSEWHERE.get(name, ())]
            seen, counted = (t[~t["op"].isin(left_out)].reset_index(drop=True) for t in (seen, counted))
        same = [column for column in COLUMNS if column not in ("live_bytes", "time_s")]
        pd.testing.assert_frame_equal(seen[same], counted[same])


def test_stable_diffusion_denoise_step_by_arithmetic():
    table = count("stable-diffusion-1.5")
    core = table[(table["stage"] == "denoise") & (table["attention"] == "self")]
    by_length = core.groupby("q_len")["flop"].sum()
    # 5 blocks at 64x64: 4 * 2 batch * 8 heads * 4096^2 * 40 = 42_949_672_960 each
    assert by_length[4096] == 5 * 42_949_672_960
    # 5 blocks at 32x32, head_dim 80: 4 * 2 * 8 * 1024^2 * 80 = 5_368_709_120 each
    assert by_length[1024] == 5 * 5_368_709_120
    # 5 at 16x16, head_dim 160, and 1 at 8x8
    assert by_length[256] == 5 * 671_088_640
    assert by_length[64] == 4 * 2 * 8 * 64 * 64 * 160


def test_llama_linear_flop_by_arithmetic():
    table = count("llama-2-7b", Request(prompt_tokens=512, new_tokens=2))
    linear = table[(table["category"] == "Linear") & (table["stage"] == "prefill")]
    # per token and layer: 4 projections of 4096^2 and 3 of 4096 * 11008; then one row of 4096 * 32000 logits
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    assert linear["flop"].sum() == 2 * (512 * 32 * layer + 4096 * 32000)


def test_flop_is_linear_in_batch_and_attention_quadratic_in_tokens():
    one, two = (count("stable-diffusion-1.5", Request(batch=b, height=256, width=256)) for b in (1, 2))
    assert two["flop"].sum() == 2 * one["flop"].sum()
    wide = count("stable-diffusion-1.5", Request(height=256, width=512))
    cores = [t[(t["attention"] == "self") & (t["stage"] == "denoise")]["flop"].sum() for t in (one, wide)]
    assert cores[1] == 4 * cores[0]


def test_guidance_doubles_the_denoiser_only():
    guided, plain = (count("stable-diffusion-1.5", Request(guidance=g)) for g in (7.5, 1.0))
    by_stage = [t.groupby("stage", observed=True)["flop"].sum() for t in (guided, plain)]
    assert by_stage[0]["denoise"] == 2 * by_stage[1]["denoise"]
    assert by_stage[0]["decode_image"] == by_stage[1]["decode_image"]


def test_every_decode_step_is_the_one_that_a_trace_of_it_gives():
    model = load("llama-2-7b", tiny=True)
    stage = next(s for s in stages(model.spec, Request(prompt_tokens=7, new_tokens=12)) if s.name == "decode")
    table = count_stage(model, stage)
    for step in range(stage.repeats):
        now = table[(table["step"] <= step) & (step < table["step"] + table["repeats"])]
        alone = count_stage(model, replace(stage.at(step), growth=None, repeats=1))
        for column in ("calls", "flop", "read_bytes", "write_bytes"):
            assert now[column].sum() == alone[column].sum(), (step, column)
        assert set(now.loc[now["attention"] != "", "kv_len"]) == {7 + step + 1}


def test_eager_adds_the_similarity_matrix_and_nothing_else():
    flash, eager = (count("stable-diffusion-1.5", attention=a) for a in ("flash", "eager"))
    core = flash["attention"] != ""
    pd.testing.assert_frame_equal(flash[~core], eager[~core], check_categorical=False, check_dtype=False)
    similarity = flash["batch"] * flash["heads"] * flash["q_len"] * flash["kv_len"] * 2 * flash["calls"]
    passes = 2 + (flash["mask_bytes"] > 0)
    assert (eager["read_bytes"] - flash["read_bytes"] == passes * similarity).all()
    assert use_backend(eager, "flash")["read_bytes"].equals(flash["read_bytes"])


def test_peak_memory_of_a_vae_decode():
    summary = summarize_count(count("stable-diffusion-1.5"))
    weights = 2 * summary["params"]
    # at 512x512 with 256 channels one activation is 256 * 512 * 512 * 2 bytes = 134_217_728; three of them meet
    assert summary["peak_bytes"] - weights == pytest.approx(3 * 134_217_728, rel=0.02)


def test_summary_totals_are_value_times_repeats():
    for name in ("stable-diffusion-1.5", "parti-350m"):
        table = count(name)
        summary = summarize_count(table)
        assert sum(s["flop"] * s["repeats"] for s in summary["stages"]) == summary["flop"]
        assert sum(c["flop"] for c in summary["categories"].values()) == summary["flop"]
        assert (table["flop"] * table["repeats"]).sum() == summary["flop"]


def test_a_bad_request_is_refused_before_torch_builds_anything(monkeypatch):
    monkeypatch.setattr("mmchar.counting.operator_table.build_model", lambda *a, **k: pytest.fail("built a model"))
    with pytest.raises(ValueError, match="prompt_tokens=1024 is outside the reach"):
        count("stable-diffusion-1.5", Request(prompt_tokens=1024))
    with pytest.raises(ValueError, match="unknown dtype 'fp4'"):
        count("stable-diffusion-1.5", dtype="fp4")
    with pytest.raises(ValueError, match="unknown attention 'paged'"):
        count("stable-diffusion-1.5", attention="paged")


def test_the_cache_gives_the_same_table_and_is_bypassed_on_request(monkeypatch):
    first = count("stable-diffusion-1.5", Request(steps=3))
    monkeypatch.setattr("mmchar.counting.operator_table.build_model", lambda *a, **k: pytest.fail("counted again"))
    again = count("stable-diffusion-1.5", Request(steps=3))
    pd.testing.assert_frame_equal(first, again, check_categorical=False)
    assert again.attrs == first.attrs
    with pytest.raises(pytest.fail.Exception, match="counted again"):
        count("stable-diffusion-1.5", Request(steps=3), cache=False)
    assert get_spec("stable-diffusion-1.5").request["steps"] == 50


def test_a_request_is_given_whole_or_by_its_fields():
    whole = count("ddpm-cifar10-32", Request(steps=3, batch=2), tiny=True)
    named = count("ddpm-cifar10-32", request=Request(steps=3), batch=2, tiny=True)
    pd.testing.assert_frame_equal(whole, named)
    with pytest.raises(ValueError, match="is no request"):
        count("ddpm-cifar10-32", Request(), request=Request())
