"""Models that see, hear or draw with a language model: token counts and operators by arithmetic, limits by name."""

import pytest
import torch

from mmchar.counting.operator_table import count, count_stage
from mmchar.counting.planned_stages import stages
from mmchar.counting.seqlen import closed_form, seen
from mmchar.counting.stage_sizes import sizes_at
from mmchar.models.loading import get_spec, load
from mmchar.request import Request


def sizes(name, stage, **asked):
    spec = get_spec(name)
    found = next(s for s in stages(spec, Request(**asked)) if s.name == stage)
    return sizes_at(found, spec.components[found.component].cls)


@pytest.mark.parametrize(
    ("name", "image_tokens"),
    [
        ("llava-v1-7b", 256),  # (224 / 14)^2
        ("llava-1.5-7b", 576),  # (336 / 14)^2
        ("llava-next-7b-mistral", 576 + 48 * 49),  # 672 / 14 = 48 rows of 48 and a newline
        ("blip2-opt-2.7b", 32),
        ("qwen2.5-vl-7b", 36 * 36),  # 1008 / 28
        ("qwen3-vl-8b", 32 * 32),  # 1024 / 32
        ("next-gpt-7b", 1),
    ],
)
def test_image_tokens_that_the_language_model_prefills(name, image_tokens):
    assert sizes(name, "prefill", prompt_tokens=50)["tokens"] == image_tokens + 50


@pytest.mark.parametrize(("name", "image_tokens"), [("llama-3.2-11b-vision", 4 * 1601), ("idefics-9b-flamingo", 64)])
def test_image_tokens_that_cross_attention_looks_at(name, image_tokens):
    text = sizes(name, "prefill", prompt_tokens=50)
    assert (text["batch"], text["tokens"]) == (1, 50)
    cross = seen(count(name, Request(prompt_tokens=50))).query("stage == 'prefill' and attention == 'cross'")
    assert set(cross["kv_len"]) == {image_tokens}


def test_qwen_windows_at_the_edge_are_smaller():
    form = closed_form(get_spec("qwen2.5-vl-7b"), Request(height=28 * 6, width=28 * 5))
    tower = form[form["stage"] == "encode_image"]
    # 12 x 10 patches in windows of 8 x 8: 8 and 4 rows, 8 and 2 columns; 28 layers in windows, 4 over all 120
    seen = dict(zip(tower["q_len"], tower["calls"], strict=True))
    assert seen == {120: 4, 64: 28, 16: 28, 32: 28, 8: 28}


def test_chameleon_decodes_twice_per_step_for_guidance_and_once_without():
    guided, plain = (stages(get_spec("chameleon-7b-t2i"), Request(guidance=g)) for g in (3.0, 1.0))
    assert [s.name for s in plain] == ["prefill", "decode", "decode_image"]
    twice = {s.name: s for s in guided}
    assert twice["decode"].repeats == twice["decode_variant_2"].repeats == 1023  # the prefill gives the first
    assert [twice[name].growth.cached(0) for name in ("decode", "decode_variant_2")] == [32, 2]


def test_emu3_ends_each_row_of_an_image_with_a_token():
    decode = next(s for s in stages(get_spec("emu3-gen-8b")) if s.name == "decode")
    assert decode.repeats == 90 * 91 - 1  # 720 / 8 = 90


@pytest.mark.parametrize("suffix", ["", "-s2tt", "-t2st", "-t2tt"])
def test_seamless_runs_what_its_task_needs(suffix):
    names = [s.name for s in stages(get_spec("seamless-m4t-v2-large" + suffix))]
    assert names[0] == ("encode_text" if suffix.startswith("-t") else "encode_speech")
    assert (names[-1] == "vocode") == (suffix in ("", "-t2st"))


def test_pointwise_attention_by_hand():
    from mmchar.models.networks import hstu  # noqa: F401  # defines the operator

    q, k, v = (torch.randn(2, 3, length, 4) for length in (2, 5, 5))
    out = torch.ops.mmchar.pointwise_attention(q, k, v, None, True)
    for query, own in ((0, 3), (1, 4)):  # a candidate sees the first three keys, and itself
        keys = [0, 1, 2, own]
        weights = torch.nn.functional.silu(q[:, :, query : query + 1] @ k[:, :, keys].transpose(-1, -2)) / 5
        torch.testing.assert_close(out[:, :, query : query + 1], weights @ v[:, :, keys])
    causal = torch.ops.mmchar.pointwise_attention(k, k, v, None, False)
    first = torch.nn.functional.silu((k[:, :, 0] * k[:, :, 0]).sum(-1, keepdim=True)) / 5 * v[:, :, 0]
    torch.testing.assert_close(causal[:, :, 0], first)


def test_hstu_attention_is_one_row_of_two_products():
    table = count("hstu-24l-1024-8k", Request(prompt_tokens=1000, candidates=10))
    rows = table[table["attention"] != ""].drop_duplicates(["stage", "q_len"]).set_index("stage")
    # 2 products x 2 x 8 heads x 1000 x 1000 x 128, per layer
    assert rows.loc["encode_history", "flop"] == 2 * 2 * 8 * 1000 * 1000 * 128
    assert rows.loc["rank", "flop"] == 2 * 2 * 8 * 10 * 1010 * 128
    assert rows.loc["rank", "read_bytes"] == 2 * 8 * 128 * (10 + 1010 + 1010)
    assert set(rows["op"]) == {"pointwise_attention"} and set(rows["attention"]) == {"causal"}


def test_zero_shot_text_is_linear_in_the_classes():
    few, many = (count("clip-vit-l-14", Request(classes=n)) for n in (10, 1000))
    by_stage = [table.groupby("stage", observed=True)["flop"].sum() for table in (few, many)]
    assert by_stage[1]["encode_text"] == 100 * by_stage[0]["encode_text"]
    assert by_stage[1]["encode_image"] == by_stage[0]["encode_image"]
    assert by_stage[1]["pipeline"] == 2 * 1 * 768 * 1000  # the comparison of images and classes is no network's


def test_the_adaptor_of_llava_by_arithmetic():
    model = load("llava-1.5-7b")
    table = count_stage(model, next(s for s in stages(model.spec) if s.name == "project_image"))
    assert table["flop"].sum() == 2 * 576 * (1024 * 4096 + 4096 * 4096)


@pytest.mark.parametrize(
    ("name", "asked", "line"),
    [
        ("clip-vit-l-14", {"prompt_tokens": 1024}, "prompt_tokens=1024 is outside the reach of clip-vit-l-14"),
        ("qwen2.5-vl-7b", {"height": 1000}, "height=1000 does not fit qwen2.5-vl-7b; it must be a multiple of 28"),
        ("llava-1.5-7b", {"height": 336}, "llava-1.5-7b takes no 'height'"),
        ("blip2-opt-2.7b", {"prompt_tokens": 2048}, r"prompt_tokens\+new_tokens\+32\*images=2112 is outside the reach"),
        ("seamless-m4t-v2-large-t2tt", {"audio_s": 3}, "takes no 'audio_s'"),
        ("qwen2.5-omni-7b", {"batch": 2}, "batch=2 is outside the reach of qwen2.5-omni-7b; it takes from 1 to 1"),
        ("hstu-ml20m-large", {"prompt_tokens": 201}, "prompt_tokens=201 is outside the reach"),
    ],
)
def test_a_request_outside_the_reach_names_the_limit(name, asked, line):
    with pytest.raises(ValueError, match=line):
        stages(get_spec(name), Request(**asked))
