"""Shares of pairs within and across frames: by hand at published scale, and of every video model of the zoo."""

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mmchar.counting.frame_shares import frame_shares
from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec, zoo_names
from mmchar.request import Request
from mmchar.study.temporal import OVER_TIME

VIDEO = [name for name in zoo_names() if "frames" in get_spec(name).request]
SHARES = ["same_frame", "cross_frame", "text"]


def shares(name: str, request: Request | None = None, stage: str = "denoise") -> dict:
    return frame_shares(count(name, request)).set_index("stage").loc[stage].to_dict()


def test_frame_shares_of_one_sequence_of_video_and_text():
    found = shares("hunyuanvideo", Request(frames=129, height=720, width=1280, prompt_tokens=256))
    # (129 - 1) / 4 + 1 = 33 latent frames of (720 / 16) * (1280 / 16) = 3600 tokens; 33 * 3600 + 256 = 119_056
    assert (found["how"], found["frames"], found["tokens_per_frame"], found["text_tokens"]) == (
        "full 3-D",
        33,
        3600,
        256,
    )
    assert found["pairs"] == 24 * 60 * 119_056**2  # heads, blocks; the refiners of the text are not among them
    assert found["same_frame"] == pytest.approx(33 * 3600**2 / 119_056**2)
    assert found["cross_frame"] == pytest.approx(33 * 32 * 3600**2 / 119_056**2)
    assert found["text"] == pytest.approx((2 * 33 * 3600 * 256 + 256**2) / 119_056**2)
    assert found["same_frame_of_video"] == pytest.approx(1 / 33)


def test_frame_shares_with_the_text_in_a_cross_attention():
    found = shares("wan2.1-t2v-1.3b", Request(frames=81, height=480, width=832))
    # 21 latent frames of 30 * 52 = 1560 tokens: 32_760, over themselves and over 512 text tokens
    assert (found["frames"], found["tokens_per_frame"], found["text_tokens"]) == (21, 1560, 512)
    assert found["same_frame"] == pytest.approx(1560 / (32_760 + 512))
    assert found["text"] == pytest.approx(512 / (32_760 + 512))


def test_frame_shares_of_a_factorized_model_are_its_modules():
    found = shares("latte-1")
    # per query: 1024 positions of its frame, 16 frames of its position, 120 text tokens; as often each
    assert (found["how"], found["frames"], found["tokens_per_frame"]) == ("factorized", 16, 1024)
    assert [found[share] for share in SHARES] == pytest.approx([1024 / 1160, 16 / 1160, 120 / 1160])
    assert found["cross_frame_of_video"] == pytest.approx(16 / 1040)


def test_a_patch_over_two_frames_and_a_frame_to_fill_it():
    found = shares("cogvideox1.5-5b", Request(frames=81, height=768, width=1360))
    # 21 latent frames and an empty one are 11 pairs, each of (96 / 2) * (170 / 2) = 4080 tokens
    assert (found["frames"], found["tokens_per_frame"], found["text_tokens"]) == (11, 4080, 226)


def test_all_that_is_beside_the_video_counts_as_text():
    assert shares("hunyuanvideo-1.5")["text_tokens"] == 1000 + 256 + 729  # prompt, glyphs, room for an image


def test_a_stage_may_be_full_and_another_factorized():
    how = frame_shares(count("phenaki-1.8b")).set_index("stage")["how"]
    assert how.to_dict() == {"parallel_decode": "full 3-D", "decode_video": "factorized"}
    found = shares("phenaki-1.8b", stage="parallel_decode")  # 11 frames: the first, and five pairs; (128 / 8)^2 = 256
    assert (found["frames"], found["tokens_per_frame"]) == (6, 256)


@pytest.mark.parametrize("name", VIDEO)
def test_frame_shares_are_all_of_the_pairs(name):
    table = frame_shares(count(name, tiny=True))
    over_time = any(part.cls in OVER_TIME for part in get_spec(name).components.values())
    assert (table["how"] == "factorized").any() == over_time
    assert (table[SHARES] >= 0).all(axis=None) and (table[SHARES].sum(axis=1) - 1).abs().max() < 1e-12
    full = table[table["how"] == "full 3-D"]
    assert (full["same_frame_of_video"] * full["frames"] - 1).abs().max() < 1e-12 or full.empty
    assert (table["same_frame_of_video"] + table["cross_frame_of_video"] - 1).abs().max() < 1e-12


@settings(max_examples=5)
@given(st.integers(0, 40))
def test_a_frame_sees_less_of_itself_the_more_there_are(more):
    request = Request(frames=4 * more + 1)
    found = frame_shares(count("wan2.1-t2v-1.3b", request, tiny=True)).set_index("stage").loc["denoise"]
    assert found["frames"] == more + 1
    assert found["cross_frame_of_video"] == pytest.approx(more / (more + 1))


def test_frame_shares_need_frames():
    with pytest.raises(ValueError, match="stable-diffusion-1.5 makes no video"):
        frame_shares(count("stable-diffusion-1.5", tiny=True))


def test_shares_are_of_the_stages_at_hand_also_where_the_table_does_not_say_its_sizes():
    table = count("wan2.1-t2v-1.3b", tiny=True)
    whole = frame_shares(table)
    (stage,) = whole["stage"]
    pd.testing.assert_frame_equal(frame_shares(table[table["stage"] == stage]), whole)
    del table.attrs["sizes"]
    pd.testing.assert_frame_equal(frame_shares(table), whole)
