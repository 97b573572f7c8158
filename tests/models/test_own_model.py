"""Models of one's own: the JSON file of the page, and folders of configurations of any pipeline or model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from mmchar.cli.main import main
from mmchar.counting.operator_table import count
from mmchar.generation.faults import one_line
from mmchar.generation.from_folders.standins import tokenizer
from mmchar.generation.programs import plan
from mmchar.models.hub import nearest
from mmchar.models.loading import get_spec, load, zoo_names
from mmchar.provenance import SOURCE
from mmchar.request import Limit, Request

PAGE = (SOURCE / "docs" / "howto" / "own_model.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def total(table):
    return int((table["flop"] * table["repeats"]).sum())


def executions(folder, **request):
    """How often each stage of a folder's generation runs."""
    spec = get_spec(str(folder))
    return {stage.name: stage.repeats for stage in plan(spec, spec.resolve(Request(**request)))}


def stage_of(folder, name, **request):
    spec = get_spec(str(folder))
    return next(stage for stage in plan(spec, spec.resolve(Request(**request))) if stage.name == name)


def save_configs(folder, zoo, cls=None, **index):
    """What is left of a saved pipeline without its weights: networks and schedulers of a scaled-down zoo model."""
    spec = get_spec(zoo, tiny=True)
    model, made = load(zoo, tiny=True), spec.pipeline
    entries = {"_class_name": cls or made.cls, "tokenizer": ["transformers", "CLIPTokenizer"]}
    for role, module in model.components.items():
        save = module.save_config if hasattr(module, "save_config") else module.config.save_pretrained
        save(folder / role)
        entries[role] = [spec.components[role].library, spec.components[role].cls]
    for role, scheduler in made.schedulers.items():
        write(folder / role / "scheduler_config.json", {"_class_name": scheduler["class"], **scheduler["config"]})
        entries[role] = ["diffusers", scheduler["class"]]
    write(folder / "model_index.json", {**entries, **made.arguments, **index})
    return folder


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def edit(file, **changes):
    write(file, json.loads(file.read_text()) | changes)


def save_model(folder, cls, **config):
    write(folder / "config.json", {"architectures": [cls], **config})
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_configs(tmp_path_factory.mktemp("own") / "my-sd", "stable-diffusion-1.5")


@pytest.fixture
def broken(pipeline, tmp_path):
    """A copy of the folder to change."""
    return Path(shutil.copytree(pipeline, tmp_path / "my-sd"))


# the JSON file of the page


@pytest.fixture
def mine(tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "mine.json"
    path.write_text(block)
    return str(path)


def test_the_file_of_the_page_counts_from_the_shell(mine, capsys):
    assert main(["count", mine, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["model"] == "my-diffusion" and summary["uncounted"] == []
    stages = [(stage["stage"], stage["repeats"]) for stage in summary["stages"]]
    assert [stage for stage in stages if stage[0] != "pipeline"] == [("denoise", 100)]
    # 16 x 16 = 256 tokens, 128 / 32 = 4 heads: 2 layers down, 1 in the middle, 3 up
    (site,) = summary["attention"]
    assert (site["q_len"], site["kv_len"], site["heads"], site["head_dim"], site["calls"]) == (256, 256, 4, 32, 6)


def test_the_file_of_the_page_projects_and_has_limits(mine, capsys):
    assert main(["project", mine, "--gpu", "h100-sxm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time_s"] > 0
    assert main(["count", mine, "--height", "65"]) == 2
    assert "height=65 is outside the reach of my-diffusion; it takes from 32 to 32" in capsys.readouterr().err
    assert sum(load(mine, tiny=True).params.values()) < sum(load(mine).params.values())


# folders of pipelines


@pytest.mark.parametrize(
    "zoo", ["stable-diffusion-1.5", "sdxl-base-1.0", "flux.1-dev", "sd3-medium", "wan2.2-t2v-a14b", "ltx-video-2b"]
)
def test_a_folder_of_configurations_counts_like_the_zoo(tmp_path, zoo):
    folder = save_configs(tmp_path / "mine", zoo)
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("*.bin"))
    model = load(zoo, tiny=True)
    table = count(str(folder), model.spec.resolve(), cache=False, **model.spec.pipeline.call)
    assert total(table) == total(count(model))
    params = {role: many for role, many in table.attrs["params"].items() if role != "pipeline"}
    assert params == model.params and set(table["model"]) == {"mine"}


def test_a_folder_counts_and_projects_from_the_shell(pipeline, capsys):
    assert main(["count", str(pipeline), "--steps", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["repeats"] for stage in summary["stages"]}["denoise"] == 4  # PNDM: one more
    assert main(["project", str(pipeline), "--gpu", "t4", "--dtype", "float16", "--steps", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time_s"] > 0


@pytest.mark.parametrize(("scheduler", "calls"), [("PNDMScheduler", 51), ("HeunDiscreteScheduler", 99)])
def test_the_scheduler_says_how_often_the_denoiser_is_called(broken, scheduler, calls):
    edit(broken / "model_index.json", scheduler=["diffusers", scheduler])
    write(broken / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, "skip_prk_steps": True})
    assert executions(broken, steps=50)["denoise"] == calls


def test_a_guided_call_of_a_distilled_denoiser_is_of_one_row(broken):
    edit(broken / "unet" / "config.json", time_cond_proj_dim=64)
    sizes = stage_of(broken, "denoise", guidance=7.5, steps=2).sizes
    assert sizes["0"] == (1, 4, 16, 16) and sizes["timestep_cond"] == (1, 64)


def test_sizes_follow_the_configurations_and_one_side_leaves_the_other(broken):
    edit(broken / "unet" / "config.json", sample_size=[10, 14])  # latents; 4 levels are 8 pixels a latent
    assert stage_of(broken, "denoise").sizes["0"] == (2, 4, 10, 14)
    assert stage_of(broken, "denoise", height=64).sizes["0"] == (2, 4, 8, 14)


def test_arguments_of_the_class_come_from_the_index(tmp_path):
    folder = save_configs(tmp_path / "wan", "wan2.2-t2v-a14b")
    both = executions(folder, steps=4, height=64, width=64, frames=5)
    assert both["denoise"] and both["denoise_2"]
    edit(folder / "model_index.json", boundary_ratio=1.0)  # no step is above: only the second denoiser runs
    alone = executions(folder, steps=4, height=64, width=64, frames=5)
    assert "denoise" not in alone and alone["denoise_2"] == both["denoise"] + both["denoise_2"]


def test_a_guider_is_of_its_own_configuration(tmp_path):
    folder = save_configs(tmp_path / "hunyuan", "hunyuanvideo-1.5")
    edit(folder / "model_index.json", guider=["diffusers", "ClassifierFreeGuidance"])
    asked = {"steps": 2, "height": 64, "width": 64, "frames": 5}
    for scale, calls in ((6.0, 4), (1.0, 2)):  # guided, every step calls the denoiser twice
        write(folder / "guider" / "guider_config.json", {"guidance_scale": scale})
        assert executions(folder, **asked)["denoise"] == calls
    assert executions(folder, **asked, guidance=6.0)["denoise"] == 4  # asked for, in place of the configured 1


def test_a_class_of_one_size_and_an_old_class_name(tmp_path):
    folder = save_configs(tmp_path / "dit", "dit-xl-2-256")
    table = count(str(folder), Request(steps=2), cache=False)
    with pytest.raises(ValueError, match="dit takes no 'height'"):
        count(str(folder), Request(height=256))
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(folder / "transformer" / "config.json", num_vector_embeds=None, use_linear_projection=False)
    assert total(count(str(folder), Request(steps=2), cache=False)) == total(table)


def test_a_text_encoder_may_be_left_out(tmp_path):
    whole = save_configs(tmp_path / "sd3", "sd3-medium")
    asked = {"steps": 2, "height": 128, "width": 128, "prompt_tokens": 32}
    seen = executions(whole, **asked)
    edit(whole / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert executions(whole, **asked) == {name: many for name, many in seen.items() if name != "encode_text_3"}


def test_what_a_pipeline_can_do_without_is_left_out_with_a_note(broken):
    edit(broken / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    with pytest.warns(UserWarning, match="'safety_checker' has no config.json; left out"):
        spec = get_spec(str(broken))
    assert set(spec.components) == {"text_encoder", "unet", "vae"}


def test_a_safety_checker_runs_on_what_the_image_processor_of_the_folder_makes(broken):
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16).save_pretrained(broken / "safety_checker")
    pixels = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    write(broken / "feature_extractor" / "preprocessor_config.json", pixels)
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    parts = {"safety_checker": checker, "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    edit(broken / "model_index.json", requires_safety_checker=True, **parts)
    stage = stage_of(broken, "check_safety", steps=2)
    assert stage.repeats == 1 and stage.sizes["clip_input"] == (1, 3, 28, 28)


def test_a_scheduler_without_its_file_is_one_that_the_pipeline_is_written_for(tmp_path):
    folder = save_configs(tmp_path / "flux", "flux.1-dev", scheduler=["diffusers", "EulerDiscreteScheduler"])
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.warns(UserWarning, match="counted with that in place of EulerDiscreteScheduler"):
        assert executions(folder, steps=3, height=64, width=64)["denoise"] == 3


def test_a_file_with_a_byte_order_mark_is_read(pipeline, broken):
    for file in broken.rglob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert executions(broken, steps=2) == executions(pipeline, steps=2)


# tokenizers


def test_a_tokenizer_of_the_folder_is_used_and_one_without_files_has_the_length_that_they_say(broken):
    asked = {"steps": 2}
    assert stage_of(broken, "encode_text", **asked).sizes["0"] == (1, 77)  # of a CLIP encoder
    write(broken / "tokenizer" / "tokenizer_config.json", {"model_max_length": 19})
    assert stage_of(broken, "encode_text", **asked).sizes["0"] == (1, 19)
    edit(broken / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    tokenizer(most=23).save_pretrained(broken / "tokenizer")
    assert stage_of(broken, "encode_text", **asked).sizes["0"] == (1, 23)
    assert stage_of(broken, "encode_text", prompt_tokens=11, **asked).sizes["0"] == (1, 11)


def test_a_tokenizer_that_cannot_be_loaded_gives_way_to_a_stand_in(broken):
    write(broken / "tokenizer" / "tokenizer.json", {"version": "1.0"})
    edit(broken / "model_index.json", tokenizer=["transformers", "NoTokenizerOfThatName"])
    with pytest.warns(UserWarning, match="'tokenizer' cannot be loaded, a stand-in takes its place"):
        assert stage_of(broken, "encode_text", steps=2).sizes["0"] == (1, 77)


def test_a_longer_prompt_than_the_text_encoders_take_is_refused(pipeline):
    with pytest.raises(ValueError, match="prompt_tokens=78 is outside the reach of my-sd; .* up to 77"):
        count(str(pipeline), prompt_tokens=78, cache=False)


# pipelines that are given images, of the folder's own class


def test_img2img_starts_from_an_image_of_the_size_asked_for(broken):
    edit(broken / "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    assert stage_of(broken, "encode_latent", height=64, width=96, steps=10).sizes["0"] == (1, 3, 64, 96)
    seen = executions(broken, steps=10)
    assert seen["denoise"] == 9  # 0.8 of 10 steps, and one more by PNDM
    assert stage_of(broken, "encode_latent", steps=10).sizes["0"] == (1, 3, 128, 128)  # as the denoiser was made for


def test_inpainting_is_given_a_mask(broken):
    edit(broken / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    edit(broken / "unet" / "config.json", in_channels=9)
    # 4 latents, a mask, 4 of the masked image; guidance doubles the batch
    assert stage_of(broken, "denoise", steps=2).sizes["0"] == (2, 9, 16, 16)


def test_a_controlnet_is_given_a_control_image(broken):
    from diffusers import ControlNetModel

    unet = load("stable-diffusion-1.5", tiny=True).components["unet"]
    ControlNetModel.from_unet(unet, load_weights_from_unet=False).save_config(broken / "controlnet")
    edit(broken / "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    edit(broken / "model_index.json", _class_name="StableDiffusionControlNetPipeline")
    seen = executions(broken, steps=4)
    assert seen["control"] == seen["denoise"] == 5
    assert stage_of(broken, "control", steps=4).sizes["controlnet_cond"] == (2, 3, 128, 128)


def test_a_consistency_model_pipeline_runs_four_steps(broken):
    edit(broken / "unet" / "config.json", time_cond_proj_dim=64)
    edit(broken / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    edit(broken / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    (broken / "scheduler" / "scheduler_config.json").unlink()
    assert executions(broken) == {"encode_text": 1, "denoise": 4, "decode_image": 1}  # the call's own default


def test_kontext_reads_an_image_beside_the_one_it_makes_and_fill_a_mask(tmp_path):
    folder = save_configs(tmp_path / "flux", "flux.1-dev", "FluxKontextPipeline")
    asked = {"height": 64, "width": 64, "steps": 2}
    plain = save_configs(tmp_path / "plain", "flux.1-dev")
    (_, made, width) = stage_of(plain, "denoise", **asked).sizes["hidden_states"]
    assert made == 16  # (64 / 8 / 2)^2
    call = {"_auto_resize": False, "max_area": 64 * 64}  # else it would make a megapixel
    table = count(str(folder), Request(**asked), cache=False, **call)
    core = table[(table["stage"] == "denoise") & (table["attention"] != "")].iloc[0]
    alone = count(str(plain), Request(**asked), cache=False)
    before = alone[(alone["stage"] == "denoise") & (alone["attention"] != "")].iloc[0]
    assert core["kv_len"] - before["kv_len"] == made  # as many tokens again, of the image given
    edit(folder / "model_index.json", _class_name="FluxFillPipeline")
    channels = width + width + 4 * 64  # the masked image, and a mask of 8 x 8 pixels for each of 2 x 2 latents
    edit(folder / "transformer" / "config.json", in_channels=channels, out_channels=width)
    assert stage_of(folder, "denoise", **asked).sizes["hidden_states"] == (1, made, channels)


def test_image_to_video_is_given_its_first_frame(tmp_path):
    from transformers import CLIPVisionConfig

    folder = save_configs(tmp_path / "wan", "wan2.1-t2v-1.3b", "WanImageToVideoPipeline")
    edit(
        folder / "transformer" / "config.json", in_channels=36, image_dim=32
    )  # 16 latents, 16 of the image, 4 of a mask
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionConfig(**vision, image_size=28, patch_size=14).save_pretrained(folder / "image_encoder")
    edit(folder / "model_index.json", image_encoder=["transformers", "CLIPVisionModel"])
    asked = {"height": 64, "width": 64, "frames": 5, "steps": 2}
    assert stage_of(folder, "encode_image", **asked).sizes["pixel_values"] == (1, 3, 28, 28)
    assert stage_of(folder, "denoise", **asked).sizes["hidden_states"] == (1, 36, 2, 8, 8)  # (5 - 1) / 4 + 1 frames


# what a pipeline's own call takes


def test_a_call_is_passed_on(pipeline, capsys):
    one = count(str(pipeline), steps=2, guidance_scale=1.0, num_images_per_prompt=2, cache=False)
    sizes = {"model": str(pipeline), "steps": 2}
    assert total(one) == total(count(sizes.pop("model"), **sizes, guidance=1.0, num_images_per_prompt=2, cache=False))
    words = ["--call", "guidance_scale=1", "--call", "num_images_per_prompt=2", "--steps", "2", "--json"]
    assert main(["count", str(pipeline), *words]) == 0
    assert json.loads(capsys.readouterr().out)["flop"] == total(one)
    assert main(["project", str(pipeline), *words, "--gpu", "h100-sxm"]) == 0


def test_a_picture_is_called_by_its_size(tmp_path):
    folder = save_configs(tmp_path / "flux", "flux.1-dev", "FluxImg2ImgPipeline")
    table = count(str(folder), steps=2, height=64, width=64, image="32x48", cache=False)
    assert "encode_latent" in set(table["stage"])


# transformers


@pytest.mark.parametrize(
    "cls",
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
     "Phi3ForCausalLM", "Olmo2ForCausalLM", "GraniteForCausalLM"],
)  # fmt: skip
def test_a_language_model_counts_by_hand(tmp_path, cls):
    config = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=24)
    config |= dict(intermediate_size=200, vocab_size=301, max_position_embeddings=64, pad_token_id=0)
    table = count(str(save_model(tmp_path, cls, **config)), Request(prompt_tokens=33, new_tokens=2), cache=False)
    assert not (table["category"] == "Uncounted").any()
    # a layer of 96 wide: q and o 96 * 96 each, k and v 96 * 48 each, three of 96 * 200; 2 FLOP each
    layer = 2 * (2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 200)  # 170_496 - the same for every class
    head = 2 * 96 * 301  # of the last token only
    core = 4 * 4 * 24  # q k^T and p v: 2 * 2 * heads * head_dim for each pair of tokens
    assert total(table[table["stage"] == "decode"]) == 3 * (layer + 34 * core) + head
    extra = total(table[table["stage"] == "prefill"]) - (3 * (33 * layer + 33 * 33 * core) + head)
    assert 0 <= extra < 2 * 33 * 24  # angles of the positions


# Published configurations, recalled; parameters as the public checkpoints have them.
PUBLISHED = {
    "LlamaForCausalLM": (
        dict(
            hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256
        )
        | dict(num_hidden_layers=32, max_position_embeddings=131072, rms_norm_eps=1e-05, model_type="llama"),
        8_030_261_248,  # Llama 3.1 8B
        131072,
    ),
    "MistralForCausalLM": (
        dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, vocab_size=32000)
        | dict(num_hidden_layers=32, max_position_embeddings=32768, sliding_window=4096, model_type="mistral"),
        7_241_732_096,  # Mistral 7B v0.1
        32768,
    ),
    "Qwen2ForCausalLM": (
        dict(
            hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064
        )
        | dict(num_hidden_layers=28, max_position_embeddings=32768, sliding_window=131072, use_sliding_window=False),
        7_615_616_512,  # Qwen2.5 7B
        32768,
    ),
}


@pytest.mark.parametrize("cls", PUBLISHED)
def test_a_published_language_model_has_its_parameters_and_its_reach(tmp_path, cls):
    config, params, most = PUBLISHED[cls]
    save_model(tmp_path, cls, torch_dtype="bfloat16", tie_word_embeddings=False, **config)
    assert sum(load(str(tmp_path)).params.values()) == params
    assert get_spec(str(tmp_path)).limits == {"prompt_tokens+new_tokens": Limit(max=most)}


SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000)


def test_a_window_that_fills_while_decoding_counts_no_more_than_its_tokens(tmp_path):
    window = {"sliding_window": 40, "max_position_embeddings": 4096, "num_key_value_heads": 2}
    save_model(tmp_path, "MistralForCausalLM", **window, **SMALL)
    table = count(str(tmp_path), prompt_tokens=36, new_tokens=9, cache=False)
    decode = table[(table["stage"] == "decode") & (table["attention"] != "")].sort_values("step")
    lengths = [
        int(row.kv_len)
        for row in decode.itertuples()
        for _ in range(row.repeats)
        if row.module.startswith("model.layers.0.")
    ]
    assert lengths == [37, 38, 39, 40, 40, 40, 40, 40]  # 8 steps after the prompt, the last of a full window


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("FalconForCausalLM", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000)),
        ("Mamba2ForCausalLM", dict(hidden_size=64, num_hidden_layers=2, num_heads=4, head_dim=32, state_size=16,
                                   n_groups=1, vocab_size=1000, time_step_limit=[0.0, {"__float__": "Infinity"}])),
        ("GPT2LMHeadModel", dict(n_embd=64, n_layer=2, n_head=4, n_positions=64, vocab_size=1000)),
        ("MixtralForCausalLM", dict(num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2, **SMALL)),
    ],
)  # fmt: skip
def test_any_class_that_writes_counts(tmp_path, cls, config):
    table = count(str(save_model(tmp_path, cls, **config)), prompt_tokens=9, new_tokens=4, cache=False)
    runs = {stage: int((part["step"] + part["repeats"]).max()) for stage, part in table.groupby("stage", observed=True)}
    assert runs == {"prefill": 1, "decode": 3, "pipeline": 1}
    assert not (table["category"] == "Uncounted").any()


def test_a_model_type_alone_names_the_class(tmp_path):
    write(tmp_path / "config.json", {"model_type": "llama", **SMALL})
    assert get_spec(str(tmp_path)).components["lm"].cls == "LlamaForCausalLM"


def test_code_beside_a_class_that_the_library_has_is_not_run(tmp_path):
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.LlamaForCausalLM"}}
    (tmp_path / "modeling_mine.py").write_text("raise AssertionError('run')")
    table = count(str(save_model(tmp_path, "LlamaForCausalLM", **SMALL, **code)), new_tokens=2, cache=False)
    assert total(table) > 0


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 4), ("full", 5)])
def test_an_image_is_as_many_tokens_as_the_model_keeps(tmp_path, strategy, tokens):
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {"model_type": "llama", **SMALL}
    config = {"text_config": text, "vision_config": vision, "vision_feature_select_strategy": strategy}
    save_model(tmp_path, "LlavaForConditionalGeneration", image_token_index=999, **config)
    table = count(str(tmp_path), prompt_tokens=8, new_tokens=2, cache=False)
    cores = table[(table["stage"] == "prefill") & (table["attention"] != "")]
    assert set(cores["q_len"]) == {tokens + 8}  # (28 / 14)^2 patches, and the class token where all are kept
    assert "encode_image" in set(table["stage"])


def test_speech_is_heard_and_written_down(tmp_path):
    config = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
    config |= dict(encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=50, vocab_size=200)
    config |= dict(max_target_positions=32, decoder_start_token_id=1, pad_token_id=4, eos_token_id=2, bos_token_id=3)
    folder = save_model(tmp_path, "WhisperForConditionalGeneration", **config)
    table = count(str(folder), new_tokens=3, cache=False)
    heard = table[(table["stage"] == "encode_audio") & (table["attention"] != "")]
    assert set(heard["q_len"]) == {50}
    assert {"prefill", "decode"} <= set(table["stage"])


@pytest.mark.parametrize(
    ("cls", "config", "length"),
    [
        ("BertModel", SMALL, 11),
        ("CLIPTextModel", {**SMALL, "max_position_embeddings": 77}, 11),
        # 2 x 2 patches and the class token
        ("ViTModel", {**SMALL, "image_size": 28, "patch_size": 14}, 5),
        ("T5EncoderModel", dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=1000), 11),
    ],
)
def test_an_encoder_is_run_forward(tmp_path, cls, config, length):
    request = {} if cls == "ViTModel" else {"prompt_tokens": 11}
    table = count(str(save_model(tmp_path, cls, **config)), cache=False, **request)
    cores = table[table["attention"] != ""]
    assert set(cores["stage"]) == {"model"} and set(cores["kv_len"]) == {length}


def test_a_vision_language_model_counts_like_the_zoo(tmp_path):
    model = load("llava-1.5-7b", tiny=True)
    model.components["vlm"].config.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["LlavaForConditionalGeneration"])
    asked = {**model.spec.request, **model.spec.pipeline.call}
    assert total(count(str(tmp_path), cache=False, **asked)) == total(count(model))
    three = count(str(tmp_path), cache=False, **{**asked, "images": 3})
    assert total(three) == total(count(model, images=3)) > total(count(model))
    with pytest.raises(ValueError, match="images of 16 tokens are outside the reach of"):
        count(str(tmp_path), cache=False, **{**asked, "images": 5000})


def test_images_are_refused_where_a_prompt_has_no_place_for_them(tmp_path):
    for cls, config in (("LlamaForCausalLM", SMALL), ("ViTModel", {**SMALL, "image_size": 28, "patch_size": 14})):
        with pytest.raises(ValueError, match="takes no 'images'"):
            count(str(save_model(tmp_path / cls, cls, **config)), images=2, cache=False)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    folder = save_model(tmp_path / "git", "GitForCausalLM", vision_config=vision, **SMALL)
    with pytest.raises(ValueError, match="images=2, but GitForCausalLM takes one image in a prompt"):
        count(str(folder), images=2, cache=False)


# what is left out


def test_what_a_class_does_not_know_is_left_out_with_a_note(pipeline, broken):
    edit(broken / "unet" / "config.json", colour=1)
    edit(broken / "model_index.json", flavour=True)
    with pytest.warns(UserWarning) as warned:
        table = count(str(broken), steps=2, cache=False)
    said = "\n".join(str(warning.message) for warning in warned)
    assert "component 'unet': UNet2DConditionModel does not know 'colour'; left out" in said
    assert "StableDiffusionPipeline takes no 'flavour'; left out" in said
    assert total(table) == total(count(str(pipeline), steps=2, cache=False))


@pytest.mark.parametrize("method", ["gptq", "fp8", "compressed-tensors", "bitsandbytes"])
def test_stored_quantized_is_said_once_in_both_kinds_of_folder(broken, tmp_path, method, capsys):
    stored = {"quantization_config": {"quant_method": method, "bits": 4}}
    edit(broken / "unet" / "config.json", **stored)
    save_model(tmp_path / "lm", "LlamaForCausalLM", **SMALL, **stored)
    for folder, words in ((broken, ["--steps", "2"]), (tmp_path / "lm", ["--new-tokens", "2"])):
        assert main(["count", str(folder), *words, "--no-cache"]) == 0
        err = capsys.readouterr().err
        assert err.count(f"is stored quantized ({method}); counted with weights of the number type") == 1


def test_a_zoo_name_is_the_zoo_also_beside_a_folder(pipeline, tmp_path, monkeypatch):
    shutil.copytree(pipeline, tmp_path / "flux.1-dev")
    monkeypatch.chdir(tmp_path)
    assert get_spec("flux.1-dev").year == 2024
    assert get_spec("./flux.1-dev").name == "flux.1-dev" and get_spec("./flux.1-dev").family == "pipeline"


# hub ids


def test_configurations_alone_are_downloaded_of_a_hub_id(pipeline, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert get_spec("somebody/my-model").name == "my-model"
    assert asked["name"] == "somebody/my-model"
    assert not any(kind in pattern for pattern in asked["allow_patterns"] for kind in ("safetensors", "bin", ".py"))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-1.5"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-base-1.0"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("black-forest-labs/FLUX.1-dev", "flux.1-dev"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"),
        ("nobody/nothing", None),
    ],
)
def test_a_hub_id_of_a_model_of_the_zoo_is_told_by_its_name(name, near):
    assert nearest(name, zoo_names()) == near


# errors of the libraries


def test_an_error_inside_a_library_is_one_line_with_its_place():
    with (
        pytest.raises(ValueError, match=r"^mine: RuntimeError: .*size.* \(test_own_model\.py:\d+\)$") as caught,
        one_line("mine"),
    ):
        torch.zeros(2) + torch.zeros(3)
    assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, RuntimeError)


def test_code_that_reads_values_is_quoted():
    words = r"^mine: 'numbers.item\(\)' asks for values that a count does not compute; give the call what that line"
    with pytest.raises(ValueError, match=words), one_line("mine"):
        numbers = torch.empty(1, device="meta")
        numbers.item()


def test_an_error_in_a_network_names_it(broken):
    edit(broken / "unet" / "config.json", cross_attention_dim=40)  # the text is 96 wide
    with pytest.raises(ValueError, match=r"my-sd, network 'unet' \(forward\): .* \(diffusers/models/\S+\.py:\d+\)$"):
        count(str(broken), cache=False)


# bad input

INDEX, UNET = "model_index.json", "unet/config.json"


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


def change(name, **fields):
    return lambda folder: edit(folder / name, **fields)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(INDEX, _class_name="StableDifusionPipeline"), ("which diffusers", "did you mean 'StableDiffusionPip")),
        (change(INDEX, _class_name=["mine", "Pipe"]), (INDEX, "'_class_name' is ['mine', 'Pipe']", "is never run")),
        (change(INDEX, _class_name="UNet2DModel"), (INDEX, "'_class_name' is 'UNet2DModel', which diffusers")),
        (change(INDEX, unet=5), (INDEX, "component 'unet' is 5; expected [library, class]")),
        (change(INDEX, unet=["os", "system"]), (INDEX, "component 'unet': library 'os' is not one of diffusers")),
        (change(INDEX, unet=["my_unet", "MyUNet"]), (INDEX, "component 'unet'", "code from elsewhere is never run")),
        (change(INDEX, unet=["diffusers", "a.b"]), (INDEX, "component 'unet': 'a.b' is no class name")),
        (change(INDEX, unet=[None, None]), (INDEX, "component 'unet' is missing; a StableDiffusionPipeline cannot")),
        (change(INDEX, text_encoder=["transformers", "CLIPText9"]), ("'text_encoder'", "has no class 'CLIPText9'")),
        (
            change(INDEX, text_encoder=["transformers", "pipeline"]),
            ("my-sd, component 'text_encoder': 'pipeline' of transformers is not a network",),
        ),
        (lambda folder: (folder / UNET).unlink(), (UNET, "does not exist; component 'unet' needs its config.json")),
        (put(UNET, '{"sample_size": 16,'), (UNET, "is not readable JSON")),
        (put(UNET, "\xff\x00"), (UNET, "is not readable JSON")),
        (put(UNET, "[" * 100_000), (UNET, "is not readable JSON")),
        (put(UNET, "[1, 2]"), (UNET, "expected an object, found list")),
        (put(INDEX, "nothing"), (INDEX, "is not readable JSON")),
        (change(UNET, block_out_channels=[7]), ("component 'unet': UNet2DConditionModel rejects its config",)),
        (lambda folder: (folder / INDEX).unlink(), ("my-sd' holds neither model_index.json",)),
    ],
)
def test_a_bad_folder_is_one_line_that_names_file_component_and_field(broken, capsys, spoil, words):
    spoil(broken)
    assert main(["count", str(broken), "--no-cache"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mmchar: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--height", "100"], "my-sd: `height` and `width` have to be divisible by 8 but are 100 and 128."),
        (["--frames", "5"], "my-sd takes no 'frames'"),
        (["--new-tokens", "5"], "my-sd takes no 'new_tokens'"),
        (["--call", "guidance_scael=4"], "takes no 'guidance_scael'; did you mean 'guidance_scale'?"),
        (["--call", "image=64x64"], "StableDiffusionPipeline takes no 'image'"),
        (["--call", "guidance_scale"], "argument --call: 'guidance_scale' is not NAME=VALUE"),
        (["--call", "height=64"], "argument --call: 'height' has an option of its own, --height"),
        (["--call", "eta=1", "--call", "eta=2"], "argument --call: 'eta' is given twice"),
        (["--call", 'num_inference_steps="many"'], "my-sd: "),
    ],
)
def test_what_a_call_does_not_take_is_one_line(pipeline, capsys, words, answer):
    assert main(["count", str(pipeline), "--no-cache", *words]) == 2
    err = capsys.readouterr().err
    assert answer in err and "Traceback" not in err and err.splitlines()[-1].startswith("mmchar: ")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ("config.json: 'architectures' is None and 'model_type' is None; give the name of a class",)),
        ({"model_type": "mine"}, ("config.json", "'model_type' is 'mine'")),
        ({"_class_name": "UNet2DConditionModel"}, ("'UNet2DConditionModel' is one component of a pipeline",)),
        (
            {"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            ("config.json: 'architectures' is 'Mine'", "code of its own ('auto_map') is never run"),
        ),
        ({"architectures": ["pipeline"]}, ("'architectures' is 'pipeline', which is not a network of transformers",)),
        ({"architectures": ["GenerationMixin"]}, ("which is not a network of transformers",)),
        ({"architectures": "LlamaForCausalLM"}, ("'architectures' is 'LlamaForCausalLM'; expected a list",)),
        ({"architectures": []}, ("'architectures' is []; expected a list",)),
        (
            {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "hidden_size": "wide"},
            ("config.json: LlamaForCausalLM rejects its config", "hidden_size"),
        ),
        ({"architectures": ["PerceiverModel"], "d_model": 32}, ("PerceiverModel wants 'inputs'", "with a tensor")),
    ],
)
def test_a_bad_language_model_is_one_line(tmp_path, capsys, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["count", str(tmp_path), "--no-cache"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mmchar: ") and all(word in line for word in words), line


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"height": 8}, "takes no 'height'; it takes batch, beams, new_tokens, prompt_tokens"),
        ({"steps": 3}, "takes no 'steps'"),
        ({"prompt_tokens": 2040, "new_tokens": 9}, r"prompt_tokens\+new_tokens=2049 is outside the reach"),
        ({"num_beam": 3}, "takes no 'num_beam'; did you mean 'num_beams'"),
    ],
)
def test_what_a_language_model_does_not_take_is_one_line(tmp_path, request_, words):
    save_model(tmp_path, "LlamaForCausalLM", max_position_embeddings=2048, **SMALL)
    with pytest.raises(ValueError, match=words) as caught:
        count(str(tmp_path), cache=False, **request_)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_empty_absent_or_asked_for_a_tiny_variant(pipeline, tmp_path):
    with pytest.raises(ValueError, match="holds neither model_index.json .* nor config.json"):
        get_spec(str(tmp_path))
    with pytest.raises(ValueError, match="unknown model './nowhere/mine'"):
        get_spec("./nowhere/mine")
    with pytest.raises(ValueError, match="unknown model 'nowhere/mine': neither in the zoo nor a folder, and the hub"):
        get_spec("nowhere/mine")
    with pytest.raises(ValueError, match="has no scaled-down variant"):
        get_spec(str(pipeline), tiny=True)
