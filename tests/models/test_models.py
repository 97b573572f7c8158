"""The zoo: every file is valid, every component builds, every parameter count is the published one or says why."""

import json

import pytest
import torch

from mmchar.models.loading import ZOO, Component, build, build_model, get_spec, list_models, load, zoo_names
from mmchar.study.experiments import FAMILY_ORDER

NAMES = zoo_names()


def test_every_family_of_the_zoo_is_known_and_every_known_family_is_used():
    assert {get_spec(name).family for name in NAMES} == set(FAMILY_ORDER)


def test_tiny_variants_are_small_and_marked():
    for name in NAMES:
        model = load(name, tiny=True)
        assert model.spec.tiny
        assert sum(model.params.values()) < 30e6, name


def test_tiny_overrides_reach_into_nested_configs_and_leave_the_rest():
    whole, tiny = (get_spec("llava-1.5-7b", tiny=tiny).components["vlm"].config for tiny in (False, True))
    assert tiny["text_config"]["hidden_size"] == 256 != whole["text_config"]["hidden_size"]
    assert tiny["text_config"]["rms_norm_eps"] == whole["text_config"]["rms_norm_eps"]
    assert tiny["vision_config"]["patch_size"] == 14 and whole["vision_config"]["image_size"] == 336


def test_the_list_has_every_model_once():
    table = list_models()
    assert sorted(table["model"]) == NAMES
    silent = table[table["published_params"] == 0]  # of HSTU no count is published; then every component says so
    assert all(row.unpublished == list(get_spec(row.model).components) for row in silent.itertuples())


def test_loading_on_meta_holds_no_memory():
    model = load("llama-2-70b")
    assert {p.device.type for p in model.components["lm"].parameters()} == {"meta"}
    assert sum(model.params.values()) == 68_976_648_192


def test_dtype_is_set_while_building():
    import torch

    module = load("stable-diffusion-1.5", dtype="float16").components["unet"]
    assert module.conv_in.weight.dtype == torch.float16
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"name": "stable-difusion-1.5"},
            r"unknown model 'stable-difusion-1.5'; did you mean 'stable-diffusion-1.5'\?",
        ),
        ({"name": "../gpus"}, "unknown model '../gpus'"),
        ({"name": "nowhere/mine.json"}, "no model file nowhere/mine.json"),
        ({"name": "llama-2-7b", "dtype": "int4"}, "unknown dtype 'int4'; choose one of float32, bfloat16, float16"),
        ({"name": "llama-2-7b", "device": "tpu"}, "unknown device 'tpu'; choose meta, cpu or cuda"),
        ({"name": "llama-2-7b", "weights": "quantum"}, "weights='quantum' is not possible"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, line):
    with pytest.raises(ValueError, match=line) as error:
        load(**arguments)
    assert "\n" not in str(error.value)


def test_cuda_without_a_gpu_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
        load("llama-2-7b", device="cuda")


def spoiled(tmp_path, change):
    raw = json.loads((ZOO / "stable-diffusion-1.5.json").read_text())
    change(raw)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    return str(path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda raw: raw.pop("family"), "mine.json is no model file: Object missing required field `family`"),
        (lambda raw: raw.update(famly=1), "Object contains unknown field `famly`"),
        (
            lambda raw: raw["components"]["unet"].pop("source"),
            "component 'unet': Object missing required field `source`",
        ),
        (lambda raw: raw["components"]["unet"].update(source=""), "component 'unet': Expected `str` of length >= 1"),
        (lambda raw: raw["components"]["unet"].update(library="os"), "component 'unet': Invalid enum value 'os'"),
        (lambda raw: raw["components"]["unet"].update({"class": "UNet9"}), "diffusers has no class 'UNet9'"),
        (
            lambda raw: raw["components"]["unet"]["config"].update(block_out_channels=[7]),
            "UNet2DConditionModel rejects its config",
        ),
        (lambda raw: raw["request"].update(colour=1), "unknown request field 'colour'"),
    ],
)
def test_a_bad_model_file_names_file_component_and_field(tmp_path, change, line):
    with pytest.raises(ValueError, match=line) as error:
        load(spoiled(tmp_path, change))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_json_is_one_line(tmp_path):
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(ValueError, match="mine.json is no model file: Input data was truncated"):
        get_spec(str(tmp_path / "mine.json"))


def test_a_model_file_of_your_own_counts_like_the_zoo(tmp_path):
    path = spoiled(tmp_path, lambda raw: raw.update(name="mine"))
    assert get_spec(path).name == "mine"


def test_an_unknown_class_in_a_library_is_refused_before_building():
    with pytest.raises(ValueError, match="mine, component 'x': mmchar has no class 'Nothing'"):
        build(Component("mmchar", "Nothing", {}, "made up"), role="x", model="mine", device="meta", dtype="float32")


@pytest.mark.parametrize("name", ["stable-diffusion-1.5", "llama-2-7b", "seamless-m4t-v2-large"])
def test_on_meta_no_weight_is_filled_and_a_network_is_otherwise_the_same(name, monkeypatch):
    filled = []
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: filled.append(tensor.device.type))
    spec = get_spec(name, tiny=True)
    on_meta, on_cpu = (build_model(spec, device=device, dtype="bfloat16") for device in ("meta", "cpu"))
    assert "meta" not in filled and (filled or name != "stable-diffusion-1.5")
    assert on_meta.params == on_cpu.params
    for role, network in on_cpu.components.items():
        assert repr(on_meta.components[role]) == repr(network)
        assert of_each_tensor(on_meta.components[role]) == of_each_tensor(network)


def of_each_tensor(network):
    """Name, shape and type of each parameter and buffer of a network."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [(name, each.shape, each.dtype, each.requires_grad) for name, each in tensors]
