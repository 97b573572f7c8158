"""Models of one's own: the JSON file of the page, folders of configurations, a bad input of every kind."""

import json
import re
from pathlib import Path

import pytest

from mmchar.cli import main
from mmchar.counting import count
from mmchar.folders import LANGUAGE_MODELS, PIPELINES, spec_from_parts
from mmchar.models import get_spec, load, zoo_names
from mmchar.request import Request
from mmchar.seqlen import closed_form, seen
from mmchar.stages import FAMILIES, stages

PAGE = (Path(__file__).parents[1] / "docs" / "add_a_model.md").read_text(encoding="utf-8")


def total(table):
    return int((table["flop"] * table["repeats"]).sum())


def save_configs(folder, cls, model):
    """What is left of a saved pipeline without its weights."""
    index = {"_class_name": cls, "scheduler": ["diffusers", "DDIMScheduler"], "tokenizer": [None, None]}
    for role, module in model.components.items():
        save = module.save_config if hasattr(module, "save_config") else module.config.save_pretrained
        save(folder / role)
        index[role] = [model.spec.components[role].library, model.spec.components[role].cls]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def edit(file, **changes):
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | changes))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    model = load("stable-diffusion-1.5", tiny=True)
    return save_configs(tmp_path_factory.mktemp("own") / "my-sd", "StableDiffusionPipeline", model)


@pytest.fixture
def broken(pipeline, tmp_path):
    """A copy of the folder to spoil."""
    import shutil

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
    assert [(stage["stage"], stage["repeats"]) for stage in summary["stages"]] == [("denoise", 100)]
    # 16 x 16 = 256 tokens, 128 / 32 = 4 heads: 2 layers down, 1 in the middle, 3 up
    (site,) = summary["attention"]
    assert (site["q_len"], site["kv_len"], site["heads"], site["head_dim"], site["calls"]) == (256, 256, 4, 32, 6)


def test_the_file_of_the_page_projects_and_has_limits(mine, capsys):
    assert main(["project", mine, "--gpu", "h100-sxm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time_s"] > 0
    assert main(["count", mine, "--height", "65"]) == 2
    assert "height=65 is outside the reach of my-diffusion; it takes from 1 to 64" in capsys.readouterr().err
    assert sum(load(mine, tiny=True).params.values()) < sum(load(mine).params.values())


def test_the_page_names_every_family_option_and_class():
    for name in zoo_names():
        spec = get_spec(name)
        listed = spec.family in re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
        missing = [option for option in spec.options if f"`{option}`" not in PAGE]
        assert not (listed and missing), f"{name}: {missing}"
    for word in (*FAMILIES, *(row.cls for row in PIPELINES + LANGUAGE_MODELS), *(row.zoo for row in PIPELINES)):
        assert f"`{word}`" in PAGE, word


# folders


@pytest.mark.parametrize(
    ("cls", "zoo"),
    [
        ("StableDiffusionPipeline", "stable-diffusion-1.5"),
        ("StableDiffusionXLPipeline", "sdxl-base-1.0"),
        ("FluxPipeline", "flux.1-dev"),
    ],
)
def test_a_folder_of_configurations_counts_like_the_zoo(tmp_path, cls, zoo):
    model = load(zoo, tiny=True)
    folder = save_configs(tmp_path / "mine", cls, model)
    assert not list(folder.rglob("*.safetensors")) and not list(folder.rglob("*.bin"))
    table = count(str(folder), model.spec.resolve(), cache=False)
    assert total(table) == total(count(model))
    assert table.attrs["params"] == model.params and set(table["model"]) == {"mine"}
    assert closed_form(get_spec(str(folder)), model.spec.resolve()).equals(seen(table))


def test_a_folder_counts_and_projects_from_the_shell(pipeline, capsys):
    assert main(["count", str(pipeline), "--steps", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["repeats"] for stage in summary["stages"]}["denoise"] == 3
    assert main(["project", str(pipeline), "--gpu", "t4", "--dtype", "float16", "--json"]) == 0


@pytest.mark.parametrize("row", PIPELINES, ids=lambda row: row.zoo)
def test_a_pipeline_of_published_size_is_the_zoo_model(row):
    zoo = get_spec(row.zoo)
    spec = spec_from_parts(f"somewhere/{row.zoo}", row.cls, zoo.components)
    assert stages(spec) == stages(zoo)
    assert (spec.options, spec.request, spec.limits) == (zoo.options, zoo.request, zoo.limits)


def test_sizes_follow_the_configurations(pipeline, broken):
    assert get_spec(str(pipeline)).request["height"] == 128  # 16 latents of 8 pixels: three halvings of four levels
    edit(broken / "unet" / "config.json", sample_size=[10, 14])
    assert [get_spec(str(broken)).request[axis] for axis in ("height", "width")] == [80, 112]
    edit(broken / "vae" / "config.json", block_out_channels=[8, 8, 8])  # two halvings: 4 pixels
    spec = get_spec(str(broken))
    assert spec.request["width"] == 56 and spec.limits["width"] == {"multiple_of": 4}


def test_a_class_of_one_size_and_an_old_class_name(tmp_path):
    model = load("dit-xl-2-256", tiny=True)
    folder = save_configs(tmp_path / "dit", "DiTPipeline", model)
    table = count(str(folder), Request(steps=2), cache=False)
    with pytest.raises(ValueError, match="height=256 is outside the reach of dit; it takes from 64 to 64"):
        count(str(folder), Request(height=256))
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(folder / "transformer" / "config.json", num_vector_embeds=None, use_linear_projection=False)
    assert total(count(str(folder), Request(steps=2), cache=False)) == total(table)


def test_a_text_encoder_may_be_left_out(tmp_path):
    parts = dict(get_spec("sd3-medium").components)
    whole, parts = spec_from_parts("sd3", "StableDiffusion3Pipeline", parts), parts | {"text_encoder_3": None}
    spec = spec_from_parts("sd3", "StableDiffusion3Pipeline", {role: part for role, part in parts.items() if part})
    assert [s for s in stages(whole) if s.name != "encode_text_3"] == list(stages(spec))


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
        4096,
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
    raw = {"architectures": [cls], "torch_dtype": "bfloat16", "tie_word_embeddings": False, **config}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert sum(load(str(tmp_path)).params.values()) == params
    assert get_spec(str(tmp_path)).limits == {"prompt_tokens+new_tokens": {"max": most}}


@pytest.mark.parametrize("row", [row for row in LANGUAGE_MODELS if row.zoo == "llama-2-7b"], ids=lambda row: row.cls)
def test_a_language_model_counts_by_hand(tmp_path, row):
    config = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=24)
    config |= dict(intermediate_size=200, vocab_size=301, max_position_embeddings=64, pad_token_id=0)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [row.cls], **config}))
    table = count(str(tmp_path), Request(prompt_tokens=33, new_tokens=2), cache=False)
    assert not (table["category"] == "Uncounted").any()
    # a layer of 96 wide: q and o 96 * 96 each, k and v 96 * 48 each, three of 96 * 200; 2 FLOP each
    layer = 2 * (2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 200)  # 170_496 - the same for every class
    head = 2 * 96 * 301  # of the last token only
    core = 4 * 4 * 24  # q k^T and p v: 2 * 2 * heads * head_dim for each pair of tokens
    assert total(table[table["stage"] == "prefill"]) == 3 * (33 * layer + 33 * 33 * core) + head
    assert total(table[table["stage"] == "decode"]) == 3 * (layer + 34 * core) + head


def test_a_vision_language_model_counts_like_the_zoo(tmp_path):
    model = load("llava-1.5-7b", tiny=True)
    model.components["vlm"].config.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["LlavaForConditionalGeneration"])
    assert total(count(str(tmp_path), model.spec.resolve(), cache=False)) == total(count(model))


def test_a_zoo_name_is_the_zoo_also_beside_a_folder(pipeline, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(pipeline, tmp_path / "flux.1-dev")
    monkeypatch.chdir(tmp_path)
    assert get_spec("flux.1-dev").year == 2024
    assert get_spec("./flux.1-dev").name == "flux.1-dev" and get_spec("./flux.1-dev").family == "latent_diffusion"


# bad input

INDEX, UNET = "model_index.json", "unet/config.json"


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


def change(name, **fields):
    return lambda folder: edit(folder / name, **fields)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(INDEX, _class_name="Kandinsky"), ("'_class_name' is 'Kandinsky'", "StableDiffusionPipeline, ")),
        (change(INDEX, _class_name=["mine", "Pipe"]), (INDEX, "'_class_name' is ['mine', 'Pipe']; pipelines known")),
        (change(INDEX, unet=5), (INDEX, "component 'unet' is 5; expected [library, class]")),
        (change(INDEX, unet=["os", "system"]), (INDEX, "component 'unet': library 'os' is not one of diffusers")),
        (change(INDEX, unet=["diffusers", "a.b"]), (INDEX, "component 'unet': 'a.b' is no class name")),
        (change(INDEX, unet=[None, None]), ("my-sd: component 'unet' is missing", "needs text_encoder, unet, vae")),
        (change(INDEX, unet=["diffusers", "UNet2DModel"]), ("'unet' is a UNet2DModel", "a UNet2DConditionModel")),
        (
            change(INDEX, text_encoder=["transformers", "CLIPText9"]),
            ("my-sd, component 'text_encoder': transformers has no class 'CLIPText9'",),
        ),
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
        (change(UNET, sample_size=None), (UNET, "component 'unet': the field 'sample_size' is None")),
        (change("vae/config.json", block_out_channels=3), ("'vae'", "'block_out_channels' is 3", "needs a list")),
        (change(UNET, colour=1), ("my-sd, component 'unet': UNet2DConditionModel rejects its config", "'colour'")),
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
    ("config", "words"),
    [
        ({}, ("config.json: 'architectures' is None; language models known so far: LlamaForCausalLM, ",)),
        (
            {"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            ("config.json: 'architectures' is 'Mine'",),
        ),
        ({"architectures": ["LlamaForCausalLM"]}, ("config.json: component 'lm'", "'max_position_embeddings' is None")),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"max_position_embeddings": 9}},
            ("config.json: component 'vlm'", "'vision_config' is None", "needs an object"),
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "hidden_size": "wide"},
            ("component 'lm': LlamaForCausalLM rejects its config", "hidden_size"),
        ),
    ],
)
def test_a_bad_language_model_is_one_line(tmp_path, capsys, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["count", str(tmp_path), "--no-cache"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line


def test_a_folder_that_is_empty_absent_or_asked_for_a_tiny_variant(pipeline, tmp_path):
    with pytest.raises(ValueError, match="holds neither model_index.json .* nor config.json"):
        get_spec(str(tmp_path))
    with pytest.raises(ValueError, match="unknown model 'nowhere/mine'"):
        get_spec("nowhere/mine")
    with pytest.raises(ValueError, match="has no scaled-down variant"):
        get_spec(str(pipeline), tiny=True)


def test_a_sliding_window_is_the_reach(tmp_path):
    raw = {"architectures": ["MistralForCausalLM"], "max_position_embeddings": 64, "sliding_window": 40}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"prompt_tokens\+new_tokens=42 is outside the reach .* from 1 to 40"):
        get_spec(str(tmp_path)).resolve(Request(prompt_tokens=40, new_tokens=2))
