"""Shares by year, by length, between frames and by part: by hand where it can be, and laws that counted tables obey."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mmchar import Request, count
from mmchar.study.drawing import length_plots
from mmchar.study.questions import still_true as still

GPU = "a100-80gb"


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_models_come_by_year_and_an_unknown_one_is_named():
    assert still.by_year("flux.2-dev, ddpm-cifar10-32,sdxl-base-1.0,flux.2-dev") == [
        "ddpm-cifar10-32", "sdxl-base-1.0", "flux.2-dev",
    ]  # fmt: skip
    assert still.by_year("all")[0] == "ddpm-celebahq-256" and still.by_year("all")[-1] == "flux.2-klein-4b"
    with pytest.raises(ValueError, match="unknown model 'sdxl1'"):
        still.by_year("sdxl1")
    assert still.by_year("svd-xt", "frames") == ["svd-xt"]
    with pytest.raises(ValueError, match="sdxl-base-1.0 takes no 'frames'; choose a model that does"):
        still.by_year("svd-xt,sdxl-base-1.0", "frames")


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("encode_text_2", "encoders"),
        ("encode_image", "encoders"),
        ("denoise_256", "denoiser, language model"),
        ("parallel_decode_base", "denoiser, language model"),
        ("decode_variant_2", "denoiser, language model"),
        ("prefill", "denoiser, language model"),
        ("decode_image", "image decoder"),
        ("decode_video_variant_8", "image decoder"),
        ("vae_post_quant_conv", "image decoder"),
        ("pipeline", "between the networks"),
    ],
)
def test_every_stage_has_its_part(stage, part):
    assert still.part_of(stage) == part


def test_a_share_of_more_flop_than_64_bits_hold_times_a_hundred():
    flop = pd.Series([3 * 10**17, 10**17])  # as of a video; 100 times it is negative in 64 bits
    assert still.share(flop, pd.Series([True, False])) == 75.0


def test_shares_of_convolution_are_those_of_the_table():
    table = count("stable-diffusion-1.5", tiny=True)
    found = still.category_shares({"stable-diffusion-1.5": table}, "Convolution", gpu=GPU)
    flop = table["flop"] * table["repeats"]
    by_hand = 100 * flop[table["category"] == "Convolution"].sum() / flop.sum()
    assert found.loc[0, ["model", "setting", "time_kind"]].tolist() == [
        "stable-diffusion-1.5", "FLOPs (counted)", "counted",
    ]  # fmt: skip
    assert found.loc[0, "share"] == pytest.approx(by_hand)
    assert set(found.loc[1:, "time_kind"]) == {"projected"}
    eager_s, fused_s, alone_s = found.loc[1:, "total"]
    assert eager_s > fused_s > alone_s > 0
    ax = still.plot_years(found, paper=44)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2022  stable-diffusion-1.5"]


@pytest.mark.parametrize(("model", "sizes"), [("flux.1-dev", (256, 512)), ("stable-diffusion-1.5", (512, 1024))])
def test_cores_grow_with_tokens_squared_and_all_else_with_tokens(model, sizes):
    tables = [count(model, Request(height=side, width=side), tiny=True) for side in sizes]
    small, large = still.core_shares(tables, gpu=GPU).itertuples()
    assert large.tokens > 2 * small.tokens and large.share > small.share
    predicted = 100 * large.tokens / (large.tokens + small.half)
    assert large.share == pytest.approx(predicted, rel=0.03)  # text tokens do not grow with the image


def test_half_of_flux_is_at_six_times_its_width():
    (row,) = still.core_shares([count("flux.1-dev")], gpu=GPU).itertuples()
    assert row.tokens == 4096 + 512  # 1024 / 16 squared, and the prompt
    assert row.half == pytest.approx(6 * 3072, rel=0.001)  # 24 d^2 FLOP of a token in matrices, 4 n d in the core


def test_a_model_whose_tokens_do_not_meet_is_refused():
    with pytest.raises(ValueError, match=r"sana-1.5-1.6b has no denoiser whose tokens attend to each other"):
        still.core_shares([count("sana-1.5-1.6b", tiny=True)], gpu=GPU)


def test_pairs_of_one_sequence_follow_from_frames_and_tokens():
    (row,) = still.frame_pairs([count("hunyuanvideo", tiny=True)]).to_dict("records")
    frames, tokens = row["frames"], row["tokens_per_frame"]
    video = 100 - row["text"]
    assert row["how"] == "full 3-D" and frames > 1
    assert row["same frame"] == pytest.approx(video / frames)
    assert row["same place, other frame"] == pytest.approx(video * (frames - 1) / (frames * tokens))
    assert sum(row[name] for name in still.PAIR_COLORS) == pytest.approx(100)


def test_a_factorized_model_joins_frames_at_the_same_place_only():
    (row,) = still.frame_pairs([count("modelscope-t2v-1.7b", tiny=True)]).to_dict("records")
    assert row["how"] == "factorized" and row["other place, other frame"] == 0
    assert row["same place, other frame"] > 0
    assert sum(row[name] for name in still.PAIR_COLORS) == pytest.approx(100)


def test_fewer_steps_leave_encoders_and_decoder_as_they_are():
    tables = [count("sdxl-base-1.0", Request(steps=steps), tiny=True) for steps in (4, 1)]
    many, one = still.part_shares(tables, gpu=GPU).to_dict("records")
    assert [many["case"], one["case"]] == ["sdxl-base-1.0, 4 steps", "sdxl-base-1.0, 1 step"]
    for row in (many, one):
        assert sum(row[part] for part in still.PART_COLORS) == pytest.approx(row["total_s"])
    assert (many["encoders"], many["image decoder"]) == (one["encoders"], one["image decoder"])
    assert many["denoiser, language model"] == pytest.approx(4 * one["denoiser, language model"], rel=1e-6)


def test_figures_draw_what_is_in_the_table():
    table = count("hunyuanvideo", tiny=True)
    pairs, cores = still.frame_pairs([table]), still.core_shares([table], gpu=GPU)
    ax = still.plot_pairs(pairs)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([pairs[name][0] for name in still.PAIR_COLORS])
    ax = length_plots.core_share_by_tokens(cores)
    assert ax.collections[0].get_offsets()[0].tolist() == pytest.approx([cores["tokens"][0], cores["share"][0]])
    ax = still.plot_parts(still.part_shares([table], gpu=GPU))
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(100)
