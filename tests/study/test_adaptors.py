"""What images cost by adaptor, and parts of generations: two ways to count agree, numbers by hand, bad input."""

import pandas as pd
import pytest

from mmchar import Request, count
from mmchar.models.loading import get_spec
from mmchar.study.drawing import plots
from mmchar.study.questions import adaptors
from mmchar.study.questions.adaptors import (
    adaptor_of,
    count_images,
    first_token,
    image_costs,
    image_parts,
    modalities,
    stage_parts,
    time_by_part,
)

LLAVA, ASKED = "llava-1.5-7b", Request(prompt_tokens=16, new_tokens=3)


def stage_flop(table):
    flop = (table["flop"] * table["repeats"]).groupby(table["stage"].astype(str)).sum()
    return flop.drop("pipeline").to_dict()


def flop_of(table, part):
    return int((table["flop"] * table["repeats"])[image_parts(table) == part].sum())


def test_images_given_to_the_library_are_what_tokens_of_a_prompt_are():
    full = get_spec(LLAVA, tiny=True).resolve(ASKED)
    one, given = (count_images(LLAVA, ASKED, images=images, tiny=True) for images in (1, 3))
    assert stage_flop(given) == stage_flop(adaptors._as_text(LLAVA, full, 3, 16, True))  # (56 / 14)^2 = 16
    assert stage_flop(given)["encode_image"] == 3 * stage_flop(one)["encode_image"]
    assert stage_flop(given)["prefill"] > 2 * stage_flop(one)["prefill"]  # 64 tokens beside 32


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
    costs = image_costs(count_images(name, ASKED, images=2, tiny=True), gpu="a100-80gb")
    assert (costs["image_tokens"], costs["sequence_tokens"]) == (tokens, sequence)
    one = image_costs(count_images(name, ASKED, tiny=True), gpu="a100-80gb")
    assert costs["adaptor_flop"] == 2 * one["adaptor_flop"] > 0
    assert (costs["cross_flop"] > 0) == (sequence == 16)
    assert costs["low_s"] < costs["first_token_s"] < costs["high_s"] and costs["kv_bytes"] > one["kv_bytes"]
    assert costs["token_device_s"] <= costs["token_s"] < costs["first_token_s"]


def test_adaptor_flop_and_cache_by_hand():
    costs = image_costs(count_images(LLAVA, ASKED, tiny=True), gpu="a100-80gb")
    assert costs["adaptor_flop"] == 2 * 16 * (128 * 256 + 256 * 256)  # two layers, 16 patches
    table = count_images("qwen2.5-vl-7b", ASKED, tiny=True)
    assert flop_of(table, "adaptor") == 2 * 30 * (512 * 512 + 512 * 256)  # four patches of width 128, merged
    text = get_spec(LLAVA, tiny=True).components["vlm"].config["text_config"]
    layers, width = text["num_hidden_layers"], text["hidden_size"]
    assert costs["kv_bytes"] == 2 * layers * width * (16 + 16) * 2  # as many heads of keys as of queries


def test_layers_that_look_at_the_image_are_a_part_with_all_they_hold():
    table = count_images("idefics-9b-flamingo", ASKED, tiny=True)
    rows = table[image_parts(table) == "cross-attention layers"]
    assert set(rows["stage"].astype(str)) == {"prefill", "decode"}
    assert rows["module"].astype(str).str.contains("gated_cross_attn_layers").all()
    assert rows["module"].astype(str).str.contains("mlp").any()
    assert flop_of(count_images(LLAVA, ASKED, tiny=True), "cross-attention layers") == 0


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
    for images in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"images={images!r} is not a whole number"):
            count_images(LLAVA, images=images, tiny=True)
    with pytest.raises(
        ValueError, match=r"images of 16 tokens are outside the reach of llava-1.5-7b, which takes \d+$"
    ):
        count_images(LLAVA, ASKED, images=100_000, tiny=True)
    table = pd.DataFrame({"stage": ["dream"]})
    table.attrs["model"] = "m"
    with pytest.raises(ValueError, match="stage 'dream' of m is no part of an answer; known are"):
        stage_parts(table)


def test_costs_and_parts_are_drawn_with_their_units():
    rows = pd.DataFrame([image_costs(count_images(LLAVA, ASKED, images=n, tiny=True), gpu="a100-80gb") for n in (1, 2)])
    figure = plots.cost_panels(rows, adaptors.COSTS, x="images", xlabel="images", hue="label")
    assert [ax.get_ylabel() for ax in figure.axes] == ["tokens", "TFLOP", "TFLOP", "s", "GB", "ms"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [16, 32]
    with pytest.raises(ValueError, match="figure needs column label"):
        plots.cost_panels(rows.drop(columns="label"), adaptors.COSTS, x="images", xlabel="images", hue="label")
    parts = adaptors.first_token_parts(count_images(LLAVA, ASKED, images=2, tiny=True), gpu="a100-80gb")
    ax = plots.part_shares(parts, label="label", title="first token")
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"{LLAVA}, 2 images"]
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(100)
