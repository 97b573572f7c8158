"""Closed-form lengths against arithmetic by hand, against counts at several sizes, and against real runs."""

import subprocess
import sys
from collections import Counter
from functools import cache
from unittest.mock import patch

import pandas as pd
import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace
from second_routes import WITHOUT_CLOSED_FORM, assert_same_lengths

from mmchar.counting.operator_table import count, rows_frame
from mmchar.counting.planned_stages import stages
from mmchar.counting.seqlen import (
    COLUMNS,
    closed_form,
    closed_form_of,
    form_of,
    has_closed_form,
    level_similarity_bytes,
    series,
    similarity_memory,
    sites_at,
    variation,
)
from mmchar.counting.stage_sizes import sizes_at
from mmchar.counting.unet_forms import halvings
from mmchar.generation import run
from mmchar.generation.on_device import record_on_device
from mmchar.generation.programs import subject_of_zoo
from mmchar.models.loading import get_spec, load, zoo_names
from mmchar.request import Limit, Request

NAMES = [name for name in zoo_names() if name not in WITHOUT_CLOSED_FORM]
SD = "stable-diffusion-1.5"
AWKWARD = {"batch": 3, "guidance": 1.0, "prompt_tokens": 7, "frames": 6, "new_tokens": 5}
AWKWARD |= {"classes": 6, "candidates": 5, "beams": 3, "audio_s": 7, "images": 2}
ONE_SIZE = ("ddpm-celebahq-256", "ddpm-cifar10-32", "karlo-unclip")  # their pipelines cannot be asked for another
# One of every way to write or to denoise.
REAL = ["llama-2-7b", "llava-1.5-7b", "qwen2.5-vl-7b", "parti-350m", "stable-diffusion-1.5", "flux.1-dev",
        "wan2.1-t2v-1.3b", "muse-3b", "make-a-video", "phenaki-1.8b", "seamless-m4t-v2-large"]  # fmt: skip


def fitting(value: int, limit: Limit) -> int:
    """The smallest number from ``value`` on that a limit allows, or else the largest below it."""
    step, offset = limit.of_form or (limit.multiple_of, 0)
    low = max(value, limit.min)
    up = low + (offset - low) % step
    high = limit.max or up
    return up if up <= high else high - (high - offset) % step


def awkward(spec) -> Request:
    """A request far from the defaults: three samples, no guidance, an odd prompt, few frames, an odd oblong image."""
    wanted = dict(AWKWARD)
    for side, many in () if spec.name in ONE_SIZE else (("height", 5), ("width", 3)):
        wanted[side] = many * spec.limits.get(side, Limit()).multiple_of
    chosen = {name: value for name, value in wanted.items() if name in spec.request}
    return Request(**{name: fitting(value, spec.limits.get(name, Limit())) for name, value in chosen.items()})


@cache
def published(name: str) -> pd.DataFrame:
    return count(name)


def form_and_count(spec, request: Request | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The closed form and the operator table of one and the same run."""
    kept = []

    def keeping(*args, **options):
        kept.append(record(*args, **options))
        return kept[-1]

    record = run.record
    with patch.object(run, "record", keeping):
        table = count(spec.name, request, tiny=spec.tiny, cache=False)
    return closed_form_of(spec, kept[0].stages if kept else stages(spec, request)), table


def rows_of(form: pd.DataFrame, stage: str) -> set[tuple]:
    """(attention, batch, heads, q_len, kv_len, head_dim, calls) of a stage."""
    return set(form.loc[form["stage"] == stage, list(COLUMNS[3:])].itertuples(index=False, name=None))


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_equals_what_is_counted_of_the_tiny_variant_at_an_awkward_size(name):
    spec = get_spec(name, tiny=True)
    request = awkward(spec)
    assert spec.resolve(request) != spec.resolve()
    assert_same_lengths(*form_and_count(spec, request))


@pytest.mark.parametrize("name", REAL)
def test_closed_form_equals_what_is_seen_in_a_real_tiny_run(name):
    model = load(name, device="cpu", dtype="float32", tiny=True)
    subject = subject_of_zoo(model, model.spec.resolve())
    recording = record_on_device(subject)
    assert recording.stages
    for stage in recording.stages:
        rows = rows_frame(recording.rows[stage.name])
        rows = rows[rows["attention"] != ""]
        expected = pd.DataFrame(sites_at(model.spec, stage), columns=list(COLUMNS[3:]))
        left, right = (each.groupby(list(COLUMNS[3:-1]))["calls"].sum().to_dict() for each in (expected, rows))
        assert left == right, stage.name


def test_a_plan_of_its_own_gives_the_same_lengths():
    for name in ("stable-diffusion-1.5", "parti-350m", "llama-2-7b"):
        spec = get_spec(name, tiny=True)
        assert_same_lengths(closed_form(spec), count(name, tiny=True))


def test_two_texts_that_are_continued_one_after_the_other_grow_alike():
    (decode,) = (stage for stage in stages(get_spec("audioldm2", tiny=True), Request(prompt_tokens=16)) if stage.grows)
    # 16 tokens and 5 marks; eight are generated, the prefill gives the first: 7 lengths, two of each with guidance
    steps = [decode.growth.dims.index(size) for size, _ in sorted(Counter(decode.growth.dims).items())]
    assert [sizes_at(decode, "GPT2LMHeadModel", step)["cache"] for step in steps] == list(range(21, 28))
    assert set(Counter(decode.growth.dims).values()) == {2}


def test_stable_diffusion_at_512_by_hand():
    form = closed_form(get_spec(SD), Request(height=512, width=512, prompt_tokens=77, guidance=7.5, steps=50))
    # 512 / 8 = 64: 64 * 64 = 4096, 32 * 32 = 1024, 16 * 16 = 256, 8 * 8 = 64; guidance: batch 2; 8 heads
    # three outer levels: 2 layers down + 3 up = 5 transformers each; the fourth has one, in the middle
    levels = [(4096, 40, 5), (1024, 80, 5), (256, 160, 5), (64, 160, 1)]  # 320 / 8, 640 / 8, 1280 / 8, 1280 / 8
    expected = {("self", 2, 8, tokens, tokens, head_dim, calls) for tokens, head_dim, calls in levels}
    expected |= {("cross", 2, 8, tokens, 77, head_dim, calls) for tokens, head_dim, calls in levels}
    assert rows_of(form, "denoise") == expected
    # 768 / 12 = 64, 12 layers; the pipeline encodes the prompt and the empty one by one
    assert rows_of(form, "encode_text") == {("causal", 1, 12, 77, 77, 64, 12)}
    assert rows_of(form, "decode_image") == {("self", 1, 1, 4096, 4096, 512, 1)}
    # PNDM calls the denoiser once more than there are steps
    repeats = form.drop_duplicates("stage").set_index("stage")["repeats"].to_dict()
    assert repeats == {"encode_text": 2, "denoise": 51, "decode_image": 1}


def test_stable_diffusion_at_an_odd_size_by_hand():
    form = closed_form(get_spec(SD), Request(batch=3, height=296, width=168, prompt_tokens=13, guidance=1.0))
    # 37 x 21 -> 19 x 11 -> 10 x 6 -> 5 x 3, rounded up
    levels = [(777, 40, 5), (209, 80, 5), (60, 160, 5), (15, 160, 1)]
    expected = {("self", 3, 8, tokens, tokens, head_dim, calls) for tokens, head_dim, calls in levels}
    expected |= {("cross", 3, 8, tokens, 13, head_dim, calls) for tokens, head_dim, calls in levels}
    assert rows_of(form, "denoise") == expected
    assert rows_of(form, "decode_image") == {("self", 3, 1, 777, 777, 512, 1)}


def test_llama_attends_to_one_more_token_each_step():
    form = closed_form(get_spec("llama-2-7b"), Request(prompt_tokens=17, new_tokens=5))
    assert rows_of(form, "prefill") == {("causal", 1, 32, 17, 17, 128, 32)}
    decode = form[form["stage"] == "decode"]
    assert list(decode["step"]) == [0, 1, 2, 3]  # the prefill gives the first of five tokens
    assert list(decode["kv_len"]) == [18, 19, 20, 21]
    assert set(decode["q_len"]) == {1} and set(decode["repeats"]) == {1}


def test_two_new_tokens_are_one_decode_step():
    decode = closed_form(get_spec("llama-2-7b"), Request(prompt_tokens=17, new_tokens=2)).iloc[-1]
    assert (decode["step"], decode["repeats"], decode["kv_len"]) == (0, 1, 18)


def test_parti_grows_towards_the_image_and_looks_at_the_same_text():
    form = closed_form(get_spec("parti-20b"), Request(prompt_tokens=9, height=24, width=16))
    decode = form[form["stage"] == "decode"]  # 3 * 2 = 6 image tokens, the prefill gives the first
    causal, cross = decode[decode["attention"] == "causal"], decode[decode["attention"] == "cross"]
    assert list(causal["kv_len"]) == [2, 3, 4, 5, 6]
    assert list(cross["kv_len"]) == [9] and list(cross["repeats"]) == [5]


def test_a_temporal_attention_sees_the_frames_and_a_spatial_one_the_positions():
    form = closed_form(get_spec("make-a-video"), Request(frames=11, guidance=1.0))
    keys, all_frames = (form[form["stage"] == stage] for stage in ("denoise_keyframes", "denoise_frames"))
    assert set(keys.loc[keys["attention"] == "temporal", "q_len"]) == {3}  # frames 1, 6 and 11
    assert set(all_frames.loc[all_frames["attention"] == "temporal", "q_len"]) == {11}
    # 768 / 12 = 64, and the outermost level does not attend to positions: 32 * 32, 16 * 16, 8 * 8
    assert set(all_frames.loc[all_frames["attention"] == "spatial", "q_len"]) == {1024, 256, 64}
    assert set(all_frames.loc[all_frames["attention"] == "spatial", "batch"]) == {11}


def test_keys_of_imagen_hold_image_and_text():
    form = closed_form(get_spec("imagen"), Request(prompt_tokens=100, height=1024, width=1024))
    base = form[(form["stage"] == "denoise_64") & (form["attention"] == "joint")]
    assert set(zip(base["q_len"], base["kv_len"], strict=True)) == {(1024, 1124), (256, 356), (64, 164)}


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 6))
def test_each_level_halves_and_rounds_up(height, width, levels):
    sizes = halvings(height, width, levels)
    assert len(sizes) == levels and sizes[0] == (height, width)
    for level, (rows, columns) in enumerate(sizes):
        assert (rows, columns) == (-(-height // 2**level), -(-width // 2**level))


def test_similarity_matrix_of_the_outermost_level():
    # (512 / 8)^2 = 4096 tokens, 4096^2 items of 2 bytes = 33_554_432, times 8 heads and a batch of 2
    assert level_similarity_bytes(512, 512, level=0) == 33_554_432
    assert level_similarity_bytes(512, 512, level=0, heads=8, batch=2) == 536_870_912
    assert level_similarity_bytes(512, 512, level=1) == 33_554_432 // 16
    form = closed_form(get_spec(SD), Request(height=512, width=512, guidance=7.5))
    denoise = form[form["stage"] == "denoise"]
    assert similarity_memory(denoise, 2).max() == 536_870_912
    assert similarity_memory(denoise, 2).index.equals(denoise.index)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 3))
def test_twice_the_image_side_is_sixteen_times_the_similarity_matrix(rows, columns, level):
    height, width = (8 * 2**level * size for size in (rows, columns))
    once, twice = (level_similarity_bytes(k * height, k * width, level=level) for k in (1, 2))
    assert twice == 16 * once


def test_series_goes_down_and_up_the_levels_of_the_unet():
    calls = series(published(SD), "denoise")
    down, up = [4096] * 2 + [1024] * 2 + [256] * 2, [256] * 3 + [1024] * 3 + [4096] * 3
    assert list(calls.loc[calls["attention"] == "self", "q_len"]) == [*down, 64, *up]
    assert list(calls["attention"]) == ["self", "cross"] * 16
    assert list(calls["call"]) == list(range(32)) and set(calls["step"]) == {0}


def test_series_of_a_decode_has_every_call_of_every_step():
    request = Request(height=24, width=16)
    table = count("parti-350m", request, tiny=True)
    layers = get_spec("parti-350m", tiny=True).components["seq2seq"].config["decoder_layers"]
    calls = series(table, "decode")  # 6 image tokens: 5 steps, each with a causal and a cross attention per layer
    assert list(calls["step"]) == [step for step in range(5) for _ in range(2 * layers)]
    assert list(calls["call"]) == list(range(2 * layers)) * 5
    causal = calls[calls["attention"] == "causal"]
    assert (causal["kv_len"] == causal["step"] + 2).all()


def test_variation_is_64_in_stable_diffusion_and_4_between_neighbouring_levels():
    for lengths in (closed_form(get_spec(SD)), published(SD)):
        found = variation(lengths).set_index("stage").loc["denoise"]
        assert (found["attention"], found["shortest"], found["longest"]) == ("self", 64, 4096)
        assert (found["ratio"], found["neighbours"]) == (64.0, 4.0)


def test_variation_over_a_whole_generation():
    form = closed_form(get_spec("llama-2-7b"), Request(prompt_tokens=17, new_tokens=18))
    found = variation(form, by=("attention",))
    assert found[["shortest", "longest", "ratio"]].to_dict("records") == [{"shortest": 17, "longest": 34, "ratio": 2.0}]
    assert variation(form)["stage"].tolist() == ["prefill", "decode"]


def test_a_model_without_a_closed_form_says_so():
    assert [name for name in zoo_names() if not has_closed_form(get_spec(name))] == WITHOUT_CLOSED_FORM
    with pytest.raises(ValueError, match=r"no closed form for \w+; the lengths of the operator table"):
        closed_form(get_spec("svd-xt", tiny=True))


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(ValueError, match="no closed form for UNetOfMine"):
        form_of("UNetOfMine", "forward")
    spec = get_spec(SD, tiny=True)
    unet = spec.components["unet"]
    config = {**unet.config, "down_block_types": ["KDownBlock2D", *unet.config["down_block_types"][1:]]}
    strange = replace(spec, components={**spec.components, "unet": replace(unet, config=config)})
    with pytest.raises(ValueError, match="no closed form for the U-Net block KDownBlock2D"):
        closed_form_of(strange, stages(spec))


def test_a_part_has_the_form_of_its_own_and_others_that_of_the_whole():
    assert form_of("AutoencoderKL", "encode") is not form_of("AutoencoderKL", "decode")
    assert form_of("AutoencoderKL", "decode") is form_of("AutoencoderKL", "decoder.forward")
    llava, tower = "LlavaForConditionalGeneration", "model.vision_tower.forward"
    assert form_of(llava, tower) is not form_of(llava, "forward")
    assert list(form_of(llava, "model.multi_modal_projector.forward")({}, {})) == []


def test_series_of_an_unknown_stage_names_the_stages():
    with pytest.raises(ValueError, match="no stage 'denoize'.*encode_text, denoise, decode_image"):
        series(published(SD), "denoize")


def test_forms_need_no_torch():
    code = "import sys; from mmchar.counting.seqlen import form_of; "
    code += "(site,) = form_of('T5EncoderModel', 'forward')({'num_heads': 2, 'd_kv': 8, 'num_layers': 3}, "
    code += "{'batch': 1, 'tokens': 5}); assert site == ('self', 1, 2, 5, 5, 8, 3); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
