"""The page of the zoo: its tables by hand for a few models, and the committed page against the zoo."""

import json
import math

import pytest

from mmchar.cli.main import main
from mmchar.models.loading import get_spec, list_models
from mmchar.provenance import SOURCE
from mmchar.study import zoo_page
from mmchar.study.zoo_page import adaptor_table, frame_table, published_cell, write_page, zoo_table
from mmchar.tables.stored import markdown

PAGE = SOURCE / "docs" / "zoo.md"
SD, LLAVA = "stable-diffusion-1.5", "llava-1.5-7b"
ADAPTORS = [LLAVA, "llava-v1-7b", "blip2-opt-2.7b", "qwen2.5-vl-7b", "llama-3.2-11b-vision", "idefics-9b-flamingo",
            "chameleon-7b"]  # fmt: skip


@pytest.fixture(scope="module")
def adaptors():
    return adaptor_table([*ADAPTORS, SD]).set_index("model")


def test_image_tokens_by_adaptor(adaptors):
    found = {name: (row["adaptor"], row["image_tokens"]) for name, row in adaptors.iterrows()}
    assert found == {  # and not Stable Diffusion, which has no language model
        LLAVA: ("MLP", 576),  # (336 / 14)^2
        "llava-v1-7b": ("linear", 256),  # (224 / 14)^2
        "blip2-opt-2.7b": ("Q-Former", 32),
        "qwen2.5-vl-7b": ("merger of 2 x 2 patches", 1296),  # (1008 / 28)^2
        "llama-3.2-11b-vision": ("linear, then cross-attention", 6404),  # 4 tiles * ((560 / 14)^2 + 1)
        "idefics-9b-flamingo": ("resampler, then cross-attention", 64),
        "chameleon-7b": ("none: codes of a VQ tokenizer", 1024),
    }


def test_adaptor_flop_by_hand(adaptors):
    flop = (1e12 * adaptors["adaptor_tflop"]).round()
    assert flop[LLAVA] == 2 * 576 * (1024 * 4096 + 4096 * 4096)  # two layers
    assert flop["llava-v1-7b"] == 2 * 256 * 1024 * 4096
    assert flop["qwen2.5-vl-7b"] == 2 * 1296 * (5120 * 5120 + 5120 * 3584)  # four patches of width 1280
    assert flop["llama-3.2-11b-vision"] == 2 * 6404 * 7680 * 4096
    assert flop["chameleon-7b"] == 0


def test_kv_cache_by_hand(adaptors):
    own, image = adaptors["kv_cache_bytes"], adaptors["cross_kv_bytes"]
    assert own[LLAVA] == 2 * 32 * 32 * 128 * (576 + 64) * 2  # layers, heads, head_dim, tokens, bytes
    assert own["qwen2.5-vl-7b"] == 2 * 28 * 4 * 128 * (1296 + 64) * 2  # 4 of 28 heads have keys and values
    assert own["blip2-opt-2.7b"] == 2 * 32 * 32 * 80 * (32 + 32) * 2
    assert (image[own.index[own > 0].difference(["llama-3.2-11b-vision", "idefics-9b-flamingo"])] == 0).all()
    # 8 of 40 layers look at the image instead of the text; of IDEFICS 8 more beside its 32
    assert own["llama-3.2-11b-vision"] == 2 * 32 * 8 * 128 * 128 * 2
    assert image["llama-3.2-11b-vision"] == 2 * 8 * 8 * 128 * 6404 * 2
    assert own["idefics-9b-flamingo"] == 2 * 32 * 32 * 128 * 128 * 2
    assert image["idefics-9b-flamingo"] == 2 * 8 * 32 * 128 * 64 * 2


def test_built_against_published_of_the_components_that_are():
    table = zoo_table([SD, "parti-350m", "hstu-ml20m-large"]).set_index("model")
    assert abs(table.at[SD, "difference"]) < 0.02 and table.at[SD, "reason"] == ""
    assert "seq2seq: the published size is the blocks' matrices alone" in table.at["parti-350m", "reason"]
    assert math.isnan(table.at["hstu-ml20m-large", "difference"])
    assert table.at[SD, "published_params"] == sum(c.published_params for c in get_spec(SD).components.values())
    assert table.at[SD, "request"]["steps"] == 50 and 80 < table.at[SD, "tflop"] < 85


def test_a_page_of_some_models(tmp_path):
    text = write_page(tmp_path / "some" / "zoo.md", [SD, LLAVA]).read_text()
    assert "2 models" in text and "## Vision-language models" in text and "video models attend" not in text
    assert f"| {SD} | latent_diffusion | 2022 | 1.07 B | 1.07 B | +0.0 % |" in text
    assert f"| {LLAVA} | MLP | 576 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 + 2 + 1  # two heads with their rules, two models, one adaptor


def test_markdown_aligns_numbers_right_and_escapes_bars():
    import pandas as pd

    table = pd.DataFrame({"name": ["a|b", "c"], "count": [1, 20], "size": ["1.5 B", ""]})
    assert markdown(table).splitlines() == [
        "| name | count | size |", "| :-- | --: | --: |", "| a\\|b | 1 | 1.5 B |", "| c | 20 |  |"
    ]  # fmt: skip


def test_the_page_names_every_model_as_the_zoo_has_it():
    text = PAGE.read_text(encoding="utf-8")
    listed = list_models()
    for row in listed.itertuples():
        published = published_cell(row.published_params, row.unpublished)
        line = f"| {row.model} | {row.family} | {row.year} | {published} |"
        assert line in text, f"docs/zoo.md has no {line!r}; make zoo-page writes it anew"
    assert f"\n{len(listed)} models," in text


def test_the_page_has_the_frame_shares_of_today():
    assert markdown(zoo_page._frame_cells(frame_table())) in PAGE.read_text(encoding="utf-8"), "make zoo-page"


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model 'sdxl1'"):
        zoo_table(["sdxl1"])


def test_the_command_prints_a_table_and_writes_a_page(capsys, tmp_path, monkeypatch):
    some = list_models().query("model == @SD")
    monkeypatch.setattr(zoo_page, "list_models", lambda: some)
    monkeypatch.setattr(zoo_page, "zoo_names", lambda: [SD])
    assert main(["zoo"]) == 0 and SD in capsys.readouterr().out
    assert main(["zoo", "--json"]) == 0 and json.loads(capsys.readouterr().out)[0]["model"] == SD
    page = tmp_path / "zoo.md"
    assert main(["zoo", "--out", str(page)]) == 0 and SD in page.read_text()
    assert main(["zoo", "--out", str(tmp_path / "zoo.csv")]) == 2
    assert "is not .md" in capsys.readouterr().err
