"""What images cost by adaptor, and parts of generations: two ways to count agree, numbers by hand, bad input."""

import pandas as pd
import pytest

from mmchar import Request, count
from mmchar.models.loading import get_spec
from mmchar.study.drawing import plots
from mmchar.study.questions import adaptors
from mmchar.study.questions.adaptors import (
    adaptor_of,
    first_token,
    image_costs,
    image_parts,
    modalities,
    stage_parts,
    time_by_part,
)

LLAVA, ASKED = "llava-1.5-7b", Request(prompt_tokens=16, new_tokens=3)
# FLOP of encoder, adaptor and prefill for three images at once, and bytes of the prefill, counted by another way:
# inputs of three prompts of one image each, put into one.
BEFORE = {
    "llava-v1-7b": (68_719_104, 3_145_728, 321_888_256, 16_735_712),
    "llava-1.5-7b": (68_719_104, 9_437_184, 321_888_256, 16_941_763),
    "llava-next-7b-mistral": (343_595_520, 47_185_920, 1_425_448_960, 48_066_571),
    "qwen2.5-vl-7b": (793_460_736, 0, 493_379_584, 21_883_751),
    "blip2-opt-2.7b": (68_719_104, 29_509_632, 110_622_720, 5_672_896),
    "idefics-9b-flamingo": (68_719_104, 26_173_440, 154_903_552, 15_427_875),
    "llama-3.2-11b-vision": (393_320_448, 30_081_024, 123_052_032, 12_717_464),
}


def about(name, images=1, **more):
    return count(name, Request(**{**ASKED.given(), "images": images, **more}), tiny=True)


def stage_flop(table):
    flop = (table["flop"] * table["repeats"]).groupby(table["stage"].astype(str)).sum()
    return flop.drop("pipeline").to_dict()


def flop_of(table, part):
    return int((table["flop"] * table["repeats"])[image_parts(table) == part].sum())


def test_images_given_to_the_library_are_what_tokens_of_a_prompt_are():
    one, given = about(LLAVA), about(LLAVA, 3)
    longer, together = about(LLAVA, prompt_tokens=16 + 2 * 16), about(LLAVA, batch=3)  # (56 / 14)^2 = 16 tokens each
    expected = {stage: stage_flop(together)[stage] for stage in ("encode_image", "project_image")}
    assert stage_flop(given) == stage_flop(longer) | expected
    assert stage_flop(given)["encode_image"] == 3 * stage_flop(one)["encode_image"]
    assert stage_flop(given)["prefill"] > 2 * stage_flop(one)["prefill"]  # 64 tokens beside 32


@pytest.mark.parametrize("name", adaptors.SEEING)
def test_images_of_a_request_count_as_prompts_put_together(name):
    table = about(name, 3)
    stage = table["stage"].astype(str).str.replace(r"_variant_\d+$", "", regex=True)
    sums = table[["flop", "read_bytes", "write_bytes"]].mul(table["repeats"], axis=0).groupby(stage).sum()
    flop = [int(sums["flop"].get(part, 0)) for part in ("encode_image", "project_image", "prefill")]
    assert (*flop, int(sums.loc["prefill", ["read_bytes", "write_bytes"]].sum())) == BEFORE[name]


@pytest.mark.parametrize("name", [*adaptors.SEEING, "chameleon-7b", "qwen3-vl-8b", "next-gpt-7b"])
def test_each_prompt_of_a_batch_has_its_images(name):
    def asked(**more):
        return stage_flop(count(name, Request(**more), tiny=True))

    both, batch, images = asked(batch=2, images=3), asked(batch=2), asked(images=3)
    assert both["encode_image"] == 2 * images["encode_image"] == 3 * batch["encode_image"]
    assert both["prefill"] == 2 * images["prefill"] > batch["prefill"]


@pytest.mark.parametrize(
    ("name", "tokens", "sequence"),
    [
        ("llava-v1-7b", 2 * 16, 16 + 2 * 16),
        (LLAVA, 2 * 16, 16 + 2 * 16),
        ("blip2-opt-2.7b", 2 * 8, 16 + 2 * 8),  # queries
        ("idefics-9b-flamingo", 2 * 8, 16),  # beside the text
        ("llama-3.2-11b-vision", 2 * 4 * 17, 16),  # four tiles of (56 / 14)^2 + 1
        ("qwen2.5-vl-7b", 2 * 30 + 1, 16 + 2 * 30 + 1),  # (168 / 28) * (140 / 28), and a mark before the second
    ],
)
def test_tokens_of_two_images_by_adaptor(name, tokens, sequence):
    costs = image_costs(about(name, 2), gpu="a100-80gb")
    assert (costs["image_tokens"], costs["sequence_tokens"]) == (tokens, sequence)
    one = image_costs(about(name), gpu="a100-80gb")
    assert costs["adaptor_flop"] == 2 * one["adaptor_flop"] > 0
    assert (costs["cross_flop"] > 0) == (sequence == 16)
    assert costs["low_s"] < costs["first_token_s"] < costs["high_s"] and costs["kv_bytes"] > one["kv_bytes"]
    assert costs["token_device_s"] <= costs["token_s"] < costs["first_token_s"]


def test_adaptor_flop_and_cache_by_hand():
    costs = image_costs(about(LLAVA), gpu="a100-80gb")
    assert costs["adaptor_flop"] == 2 * 16 * (128 * 256 + 256 * 256)  # two layers, 16 patches
    table = about("qwen2.5-vl-7b")
    assert flop_of(table, "adaptor") == 2 * 30 * (512 * 512 + 512 * 256)  # four patches of width 128, merged
    text = get_spec(LLAVA, tiny=True).components["vlm"].config["text_config"]
    layers, width = text["num_hidden_layers"], text["hidden_size"]
    assert costs["kv_bytes"] == 2 * layers * width * (16 + 16) * 2  # as many heads of keys as of queries


def test_layers_that_look_at_the_image_are_a_part_with_all_they_hold():
    table = about("idefics-9b-flamingo")
    rows = table[image_parts(table) == "cross-attention layers"]
    assert set(rows["stage"].astype(str)) == {"prefill", "decode"}
    assert rows["module"].astype(str).str.contains("gated_cross_attn_layers").all()
    assert rows["module"].astype(str).str.contains("mlp").any()
    assert flop_of(about(LLAVA), "cross-attention layers") == 0


def test_parts_add_up_to_the_generation():
    table = count("next-gpt-7b", tiny=True)
    parts = time_by_part(table, stage_parts(table), gpu="a100-80gb")
    assert parts["flop"].sum() == (table["flop"] * table["repeats"]).sum()
    names = ["encoder", "adaptor", "language model", "denoiser", "decoder", "outside the networks"]
    assert list(parts["part"]) == names
    assert modalities(table) == "text + image → text + image"
    assert set(first_token(table)["stage"].astype(str)) >= {"encode_image", "prefill"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2.5-omni-7b", "text + speech → text + speech"),
        ("chameleon-7b", "text + image → text"),
        ("seamless-m4t-v2-large", "speech → text + speech"),
    ],
)
def test_what_goes_in_and_what_comes_out(name, said):
    table = count(name, tiny=True)
    assert modalities(table) == said
    assert stage_parts(table).notna().all()


def test_bad_input_ends_in_one_line():
    with pytest.raises(ValueError, match="sdxl-base-1.0 writes nothing about images; choose e.g. llava-1.5-7b"):
        adaptor_of("sdxl-base-1.0")
    with pytest.raises(
        ValueError, match=r"^prompt_tokens\+new_tokens\+576\*images=4627 is outside the reach of llava-1.5"
    ):
        about(LLAVA, 8)  # 16 + 3 + 8 * 576
    with pytest.raises(
        ValueError, match=r"^9999 images of 30 tokens are outside the reach of qwen2.5-vl-7b, which takes"
    ):
        about("qwen2.5-vl-7b", 9999)
    table = pd.DataFrame({"stage": ["dream"]})
    table.attrs["model"] = "m"
    with pytest.raises(ValueError, match="stage 'dream' of m is no part of an answer; known are"):
        stage_parts(table)


def test_costs_and_parts_are_drawn_with_their_units():
    rows = pd.DataFrame([image_costs(about(LLAVA, n), gpu="a100-80gb") for n in (1, 2)])
    figure = plots.cost_panels(rows, adaptors.COSTS, x="images", xlabel="images", hue="label")
    assert [ax.get_ylabel() for ax in figure.axes] == ["tokens", "TFLOP", "TFLOP", "s", "GB", "ms"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [16, 32]
    with pytest.raises(ValueError, match="figure needs column label"):
        plots.cost_panels(rows.drop(columns="label"), adaptors.COSTS, x="images", xlabel="images", hue="label")
    parts = adaptors.first_token_parts(about(LLAVA, 2), gpu="a100-80gb")
    ax = plots.part_shares(parts, label="label")
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"{LLAVA}, 2 images"]
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(100)
