"""The zoo: every file is valid, every component builds, every parameter count is the published one or says why."""

import json

import pytest

from mmchar.models import loading
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


def test_networks_on_meta_are_built_once_and_given_as_they_were_built(monkeypatch):
    spec = get_spec("stable-diffusion-1.5", tiny=True)
    monkeypatch.setattr(loading, "_built", {})
    first = loading.build_on_meta(spec, "float16")
    monkeypatch.setattr(loading, "build_model", lambda *a, **k: pytest.fail("built again"))
    first.components["unet"].conv_in = None  # what one does to them is not seen by the next
    first.components["vae"].use_tiling = "changed"
    again = loading.build_on_meta(get_spec("stable-diffusion-1.5", tiny=True), "float16")
    fresh = build_model(spec, device="meta", dtype="float16")
    assert (again.spec, again.device, again.dtype) == (spec, "meta", "float16")
    for role, network in fresh.components.items():
        copied = again.components[role]
        assert repr(copied) == repr(network) and copied.config == network.config
        assert [(name, each.shape, each.dtype, each.device) for name, each in copied.named_parameters()] == [
            (name, each.shape, each.dtype, each.device) for name, each in network.named_parameters()
        ]
    with pytest.raises(pytest.fail.Exception, match="built again"):
        loading.build_on_meta(spec, "float32")


def test_networks_that_cannot_be_copied_are_built_anew(monkeypatch):
    spec = get_spec("ddpm-cifar10-32", tiny=True)
    built = []

    def build_with_a_lambda(spec, **how):
        built.append(build_model(spec, **how))
        built[-1].components["unet"].own = lambda: None
        return built[-1]

    monkeypatch.setattr(loading, "_built", {})
    monkeypatch.setattr(loading, "build_model", build_with_a_lambda)
    models = [loading.build_on_meta(spec, "bfloat16") for _ in range(2)]
    assert [id(model) for model in models] == [id(model) for model in built]
