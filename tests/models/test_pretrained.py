"""Saved weights, saved by the tests themselves: loaded through from_pretrained, then counted like the zoo."""

import json

import pytest
import torch

from mmchar.counting.operator_table import count
from mmchar.models.loading import get_spec, load
from mmchar.request import Request


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny Stable Diffusion pipeline on disk: three networks, a scheduler, no tokenizer."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    parts = load("stable-diffusion-1.5", device="cpu", dtype="float32", tiny=True).components
    none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        **parts, **none, scheduler=PNDMScheduler(steps_offset=1, skip_prk_steps=True), requires_safety_checker=False
    )
    folder = tmp_path_factory.mktemp("pipeline") / "tiny-sd"
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_saved_pipeline_has_its_weights_and_counts_like_the_zoo(pipeline):
    random = load("stable-diffusion-1.5", device="cpu", dtype="float32", tiny=True)
    saved = load(str(pipeline), weights="pretrained", device="cpu", dtype="float32")
    assert saved.params == random.params
    table = count(saved, random.spec.resolve())
    same = count(random)
    assert (table["flop"] * table["repeats"]).sum() == (same["flop"] * same["repeats"]).sum()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    again = load(str(pipeline), weights="pretrained", device="cpu", dtype="float32")
    assert torch.equal(saved.components["unet"].state_dict()[name], again.components["unet"].state_dict()[name])


def test_a_saved_language_model_counts_like_the_zoo(tmp_path):
    random = load("llama-2-7b", device="cpu", dtype="float32", tiny=True)
    random.components["lm"].save_pretrained(tmp_path / "tiny-llama", safe_serialization=True)
    saved = load(str(tmp_path / "tiny-llama"), weights="pretrained", device="cpu", dtype="float32")
    request = random.spec.resolve()
    assert count(saved, request)["flop"].sum() == count(random, request)["flop"].sum()


def test_saved_weights_and_configurations_alone_give_one_spec(pipeline):
    saved = load(str(pipeline), weights="pretrained", device="cpu", dtype="float32").spec
    alone = get_spec(str(pipeline))
    for field in ("name", "family", "pipeline", "request", "limits"):
        assert getattr(saved, field) == getattr(alone, field), field
    assert {role: part.cls for role, part in saved.components.items()} == {
        role: part.cls for role, part in alone.components.items()
    }


def test_a_saved_diffusion_transformer_counts_like_the_zoo(tmp_path):
    from diffusers import DDIMScheduler, DiTPipeline

    random = load("dit-xl-2-256", device="cpu", dtype="float32", tiny=True)
    DiTPipeline(**random.components, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "tiny-dit")
    saved = load(str(tmp_path / "tiny-dit"), weights="pretrained", device="cpu", dtype="float32")
    request = random.spec.resolve()
    asked = Request(steps=request.steps, guidance=request.guidance)  # its size is the network's
    assert count(saved, asked)["flop"].sum() == count(random, request)["flop"].sum()


def test_weights_that_are_only_a_pickle_are_refused(pipeline, tmp_path):
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(pipeline, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot load") as error:
        load(str(folder), weights="pretrained", device="cpu", dtype="float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "holds neither model_index.json"),
        (
            {"config.json": {"architectures": ["GPT9"]}},
            "'architectures' is 'GPT9': transformers has no class 'GPT9'",
        ),
        (
            {"model_index.json": {"_class_name": "KandinskyPipeline"}},
            "component 'text_encoder' is missing; a KandinskyPipeline cannot run without it",
        ),
    ],
)
def test_what_is_no_known_model_is_one_clear_line(tmp_path, files, line):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=line):
        load(str(tmp_path), weights="pretrained", device="cpu", dtype="float32")


def test_pretrained_weights_on_meta_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights='pretrained' needs a real device"):
        load(str(tmp_path), weights="pretrained")


def test_a_model_of_the_zoo_has_no_weights_to_load():
    with pytest.raises(ValueError, match="needs a folder or a hub id, and 'llama-2-7b' has configurations only"):
        load("llama-2-7b", weights="pretrained", device="cpu", dtype="float32")


def test_a_hub_id_without_network_is_one_clear_line():
    with pytest.raises(ValueError, match="unknown model 'nobody/nothing'.*the hub cannot be asked"):
        load("nobody/nothing", weights="pretrained", device="cpu", dtype="float32")
