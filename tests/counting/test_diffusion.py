"""Diffusion models of the zoo by hand: lengths, kinds, guidance, tiles, what is refused."""

import pytest
import torch

from mmchar.counting.operator_table import count
from mmchar.counting.planned_stages import stages
from mmchar.counting.seqlen import closed_form, seen
from mmchar.models.loading import get_spec
from mmchar.request import Request
from mmchar.tracing.attention import attention_kind
from mmchar.tracing.trace import trace


def rows_of(name: str, stage: str, request: Request | None = None) -> set[tuple]:
    form = closed_form(get_spec(name), request)
    columns = ["attention", "batch", "heads", "q_len", "kv_len", "head_dim", "calls"]
    return set(form.loc[form["stage"] == stage, columns].itertuples(index=False, name=None))


def test_flux_attends_over_text_and_image_in_all_57_blocks():
    # 1024 / 16 = 64 packed places a side: 4096 and 512 tokens of text; 19 double and 38 single blocks
    assert rows_of("flux.1-dev", "denoise") == {("joint", 1, 24, 4608, 4608, 128, 57)}


def test_sd35_medium_attends_once_more_over_the_image_in_13_blocks():
    # 4096 + 77 + 256 = 4429; guidance doubles the batch
    expected = {("joint", 2, 24, 4429, 4429, 64, 24), ("self", 2, 24, 4096, 4096, 64, 13)}
    assert rows_of("sd3.5-medium", "denoise") == expected


def test_sdxl_lays_its_two_texts_side_by_side():
    found = rows_of("sdxl-base-1.0", "denoise")
    assert {row[4] for row in found if row[0] == "cross"} == {77}
    # 128 / 2 = 64: 2 layers of depth 2 down, 3 up; 32: 2 and 3 of depth 10, and 10 in the middle
    assert {(row[3], row[6]) for row in found if row[0] == "self"} == {(4096, 10), (1024, 60)}


def test_wan_runs_guidance_as_two_forwards_over_all_frames():
    plan = {stage.name: stage for stage in stages(get_spec("wan2.1-t2v-1.3b"))}
    # (480 / 8) x (832 / 8) places of 16 channels in 21 latent frames
    assert (plan["denoise"].repeats, plan["denoise"].sizes["hidden_states"]) == (100, (1, 16, 21, 60, 104))
    # 81 frames: 21 latent ones of 30 x 52 patches
    assert rows_of("wan2.1-t2v-1.3b", "denoise") == {
        ("self", 1, 12, 32760, 32760, 128, 30),
        ("cross", 1, 12, 32760, 512, 128, 30),
    }
    alone = {stage.name: stage.repeats for stage in stages(get_spec("wan2.1-t2v-1.3b"), Request(guidance=1.0))}
    assert alone["denoise"] == 50


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_experts_of_wan_share_the_steps(steps):
    plan = stages(get_spec("wan2.2-t2v-a14b", tiny=True), Request(steps=steps, guidance=1.0))
    assert sum(stage.repeats for stage in plan if stage.name.startswith("denoise")) == steps


def test_a_video_unet_has_more_calls_over_time_than_over_space():
    form = seen(count("animatediff-v1.5.2"))
    calls = form[form["stage"] == "denoise"].groupby("attention")["calls"].sum()
    assert calls.to_dict() == {"spatial": 16, "cross": 16, "temporal": 42}


def test_a_video_is_decoded_in_tiles_over_space_and_time():
    plan = [stage for stage in stages(get_spec("hunyuanvideo")) if stage.name.startswith("decode_video")]
    # 90 and 160 places, a tile of 32 every 24; 33 latent frames, five every three
    assert sum(stage.repeats for stage in plan) == 4 * 7 * 11
    tiles = {stage.sizes["0"][2:]: stage.repeats for stage in plan}  # frames, height, width
    sides = {(32, 32): 3 * 6, (32, 16): 3, (18, 32): 6, (18, 16): 1}  # the last start at 72 and 144
    assert tiles == {(5, *side): 10 * many for side, many in sides.items()} | {
        (3, *side): many for side, many in sides.items()
    }


@pytest.mark.parametrize(
    ("name", "request_", "line"),
    [
        ("sd3-medium", Request(height=3088), "height=3088 is outside the reach of sd3-medium; it takes from 1 to 3072"),
        ("flux.1-dev", Request(guidance=3.5), "flux.1-dev takes no 'guidance'"),
        ("dit-xl-2-256", Request(height=512), "height=512 is outside the reach"),
        (
            "wan2.1-t2v-14b",
            Request(frames=80),
            r"frames=80 does not fit wan2.1-t2v-14b; it must be 4k\+1, e.g. 77 or 81",
        ),
        ("karlo-unclip", Request(prompt_tokens=20), "prompt_tokens=20 is outside the reach"),
    ],
)
def test_a_request_outside_a_models_reach_is_refused(name, request_, line):
    with pytest.raises(ValueError, match=line):
        stages(get_spec(name), request_)


def test_what_a_module_says_of_its_keys_overrides_its_name():
    path = "transformer_blocks.0.attn2"
    assert attention_kind(path, q_len=64, kv_len=77) == "cross"
    assert attention_kind(path, q_len=64, kv_len=64, cross=False) == "self"
    assert attention_kind("temporal_transformer_blocks.0.attn2", q_len=25, kv_len=1, cross=True) == "cross"
    assert attention_kind("temporal_transformer_blocks.0.attn2", q_len=25, kv_len=25, cross=False) == "temporal"


def test_a_mask_on_meta_keeps_everything_and_its_negation_nothing():
    x, mask = torch.empty(5, 3, device="meta"), torch.ones(5, dtype=torch.bool, device="meta")
    seen = []
    trace(torch.nn.Identity(), lambda: seen.extend([x[mask], x[~mask], torch.nonzero(mask)]))
    assert [tuple(t.shape) for t in seen] == [(5, 3), (0, 3), (5, 1)]
