"""Calls on a device: what is made up and what stays, and a generation that is recorded there with its real inputs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mmchar
from mmchar.counting.planned_stages import stages
from mmchar.generation import caches
from mmchar.generation.on_device import realized, record_on_device
from mmchar.generation.programs import pipeline_of
from mmchar.generation.recording import Call, Stage, Subject
from mmchar.generation.structure import tensors
from mmchar.measuring.optimization.execution import preparer
from mmchar.measuring.optimization.ladder import Levers
from mmchar.models.loading import load
from mmchar.request import Request
from mmchar.tracing.known_values import given

VOCABULARY = 50


class Network(nn.Module):
    """A network whose configuration names token 7 as an image's place."""

    config = SimpleNamespace(vocab_size=VOCABULARY, image_token_id=7, eos_token_id=None)

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 4)


def made(seed=0, dtype="float32", **arguments):
    """The arguments of a call as a device gets them."""
    stage = Stage("denoise", "unet", "forward", 1, Call((), arguments))
    return realized(stage, Network(), device="cpu", dtype=dtype, seed=seed).call.kwargs


def is_noise(tensor):
    return bool(tensor.isfinite().all()) and 0.5 < float(tensor.float().std()) < 2


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_numbers_that_nobody_knows_are_noise_in_the_networks_own_type_and_the_same_each_time():
    latent = meta(2, 4, 8, 8).to(memory_format=torch.channels_last)
    first, again = made(sample=latent, scale=meta(3, 9, dtype=torch.float32)), made(sample=latent)
    assert is_noise(first["sample"]) and first["sample"].dtype == first["scale"].dtype == torch.float32
    assert first["sample"].is_contiguous(memory_format=torch.channels_last), "laid out in memory as it was"
    assert torch.equal(first["sample"], again["sample"])
    assert not torch.equal(first["sample"], made(seed=1, sample=latent)["sample"])
    assert made(dtype="float16", sample=latent)["sample"].dtype == torch.float16
    assert made(dtype="float16", scale=meta(3, 9, dtype=torch.float32))["scale"].dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan"), float("inf")])
@pytest.mark.parametrize("on_meta", [True, False])
def test_what_kernels_should_not_be_timed_with_is_noise(value, on_meta):
    sample = torch.full((2, 3, 5), value)
    assert is_noise(made(sample=given(sample) if on_meta else sample)["sample"])


def test_what_may_be_the_same_everywhere_stays():
    settings = {
        "timestep": torch.full((2, 6), 500.0),
        "guidance": torch.tensor([3.5, 3.5]),
        "attention_mask": torch.zeros(2, 1, 1, 6),
        "img_ids": torch.zeros(6, 3),
        "positions": torch.zeros(2, 6, dtype=torch.int64),
    }
    for arguments in (settings, {name: given(value) for name, value in settings.items()}):
        found = made(**arguments)
        assert all(torch.equal(found[name], value) for name, value in settings.items())
        assert not any(value.is_meta for value in found.values())


def test_a_real_input_is_the_very_tensor_that_was_recorded():
    sample, pixels = torch.randn(2, 3), torch.randn(4, 4, dtype=torch.bfloat16)
    found = made(sample=sample, pixels=pixels)
    assert found["sample"] is sample and found["pixels"] is pixels, "also where its type is not the network's"
    found = made(sample=sample, empty=torch.zeros(4, 4, dtype=torch.bfloat16), dtype_out=torch.bfloat16)
    assert is_noise(found["empty"]) and found["empty"].dtype == found["dtype_out"] == torch.bfloat16
    found = made(sample=meta(2, 3), dtype_out=torch.bfloat16)
    assert found["sample"].dtype == found["dtype_out"] == torch.float32, "what was planned follows the network"


def test_whole_numbers_that_nobody_knows_are_in_reach():
    found = made(
        codes=meta(400, dtype=torch.int64),
        mask=meta(5, 5, dtype=torch.int64),
        hidden=meta(5, 5, dtype=torch.bool),
        input_ids=meta(40, 40, dtype=torch.int64),
    )
    assert found["codes"].min() >= 0 and found["codes"].max() < 12, "the smallest table has 12 rows"
    assert found["mask"].eq(1).all() and found["hidden"].all(), "a mask hides nothing"
    assert 12 < found["input_ids"].max() < VOCABULARY


def test_a_prompt_of_one_word_becomes_text_of_many_that_stands_for_nothing_else():
    word = torch.full((40, 40), 3)
    for ids in (word, given(word)):
        found = made(input_ids=ids)["input_ids"]
        assert len(found.unique()) == VOCABULARY - 1, "all but the token of an image's place"
        assert not found.eq(7).any()
    prompt = torch.tensor([[7, 7, 3, 3]])
    assert torch.equal(made(input_ids=given(prompt))["input_ids"], prompt), "images keep their places"


def test_a_cache_on_meta_becomes_one_on_the_device():
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(2):
        cache.update(meta(1, 2, 5, 4), meta(1, 2, 5, 4), layer)
    found = made(past_key_values=cache)["past_key_values"]
    assert caches.length(found) == 5 and all(map(is_noise, tensors(found)))
    found.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4), 0)
    assert caches.length(found) == 6 and caches.length(cache) == 5
    assert found.layers[1].dtype == torch.float32 and found.layers[1].device == torch.device("cpu")


# recording


@pytest.fixture(scope="module")
def pipe():
    model = load("stable-diffusion-1.5", tiny=True, device="cpu", dtype="float32")
    return pipeline_of(model, model.spec.resolve())


ASKED = {"prompt": "a cat", "height": 40, "width": 24, "num_inference_steps": 50}


def test_fifty_steps_cost_one_execution_and_keep_its_real_arguments(pipe):
    seen = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    networks = {"text_encoder": pipe.text_encoder, "unet": pipe.unet, "vae": pipe.vae}
    try:
        recording = record_on_device(Subject("mine", networks, lambda: pipe(**ASKED, output_type="pt")))
    finally:
        handle.remove()
    assert len(seen) == 1, "hooks run where the network runs"
    plan = {stage.name: stage for stage in recording.stages}
    assert {name: stage.repeats for name, stage in plan.items()} == {"encode_text": 2, "denoise": 51, "decode_image": 1}
    sample = plan["denoise"].call.args[0]
    assert torch.equal(sample, seen[0][0][0]) and sample is not seen[0][0][0], "a copy, as it was then"
    assert is_noise(sample) and sample.shape == (2, 4, 5, 3)  # 40 x 24 pixels, twice for guidance
    assert recording.output.images.shape == (1, 3, 40, 24) and recording.output.images.isfinite().all()
    with torch.inference_mode():
        first, again = (plan["denoise"].work(pipe.unet)()[0] for _ in range(2))
    assert torch.equal(first, again)


def test_an_answer_is_not_spoilt_by_who_writes_to_it():
    network = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    outputs = [torch.empty(0)]

    def work():
        for _ in range(4):
            outputs.append(network(x).clone())
            network(x).mul_(0)

    (stage,) = record_on_device(Subject("mine", {"model": network}, work)).stages
    assert stage.repeats == 8
    assert all(torch.equal(out, outputs[1]) and out.any() for out in outputs[1:])


def test_an_argument_is_kept_as_it_was():
    network, x = nn.Linear(3, 3), torch.randn(2, 3)
    before = x.clone()

    def work():
        network(x)
        x.zero_()

    (stage,) = record_on_device(Subject("mine", {"model": network}, work)).stages
    assert torch.equal(stage.call.args[0], before)


@pytest.mark.parametrize("name", ["llama-2-7b", "parti-350m", "llama-3.2-11b-vision", "sdxl-base-1.0", "mochi-1"])
def test_what_is_recorded_on_a_device_is_what_was_planned_on_meta(name):
    from mmchar.generation.programs import subject_of_zoo

    model = load(name, tiny=True, device="cpu", dtype="float32")
    request = model.spec.resolve(Request(batch=2))
    subject = subject_of_zoo(model, request)
    found = record_on_device(subject).stages
    plan = stages(model.spec, request)
    facts = [(stage.name, stage.component, stage.method, stage.repeats, stage.grows, stage.sizes) for stage in found]
    assert facts == [
        (stage.name, stage.component, stage.method, stage.repeats, stage.grows, stage.sizes) for stage in plan
    ]


def test_a_step_of_a_recorded_decoder_has_the_tokens_before_it():
    lm = load("llama-2-7b", tiny=True, device="cpu", dtype="float32").components["lm"]
    ids = torch.randint(5, 50, (2, 9))
    work = lambda: lm.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)  # noqa: E731
    prefill, decode = record_on_device(Subject("mine", {"lm": lm}, work)).stages
    assert torch.equal(prefill.call.kwargs["input_ids"], ids)
    assert (decode.repeats, caches.length(decode.call.cache)) == (5, 9)
    assert caches.length(decode.at(3).call.cache) == 12
    assert caches.length(decode.call.cache) == 9, "a later step leaves it as it is"
    wanted = logits_of_all_at_once(lm, ids)
    with torch.inference_mode():
        got = decode.work(lm)().logits
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def logits_of_all_at_once(lm, ids):
    """Logits of the first decoded token from a forward of all tokens at once."""
    with torch.inference_mode():
        first = lm(input_ids=ids).logits[:, -1:].argmax(-1)
        return lm(input_ids=torch.cat([ids, first], 1)).logits[:, -1:]


# measuring and projecting objects


def test_a_pipeline_of_ones_own_is_measured_as_it_is_counted(pipe):
    asked = {**ASKED, "num_inference_steps": 3}
    before = [tensor.clone() for tensor in pipe.unet.parameters()]
    table = mmchar.measure(pipe, samples=1, progress=False, **asked)
    counted = mmchar.count(pipe, **asked).query("stage != 'pipeline'")
    assert (
        list(table.attrs["median_s"]) == list(counted["stage"].unique()) == ["encode_text", "denoise", "decode_image"]
    )
    measured = table.query("op not in ('views and allocations', 'unattributed operators')")
    for column in ("repeats", "flop", "read_bytes", "write_bytes", "calls"):
        assert measured[column].tolist() == counted[column].tolist(), column
    assert table.attrs["request"] == asked and table.attrs["model"] == "StableDiffusionPipeline"
    assert table.attrs["generation"] is None, "only where it is asked for"
    assert all(map(torch.equal, before, pipe.unet.parameters()))


def test_a_language_model_is_measured_at_its_middle_step():
    lm = load("llama-2-7b", tiny=True, device="cpu", dtype="float32").components["lm"]
    table = mmchar.measure(lm, prompt_tokens=20, new_tokens=9, samples=1, progress=False, whole=True)
    decode = table[table["stage"] == "decode"]
    assert set(decode["step"]) == {4} and set(decode["repeats"]) == {8}
    assert set(decode.loc[decode["attention"] != "", "kv_len"]) == {20 + 4 + 1}  # prompt, earlier tokens, itself
    assert table.attrs["generation"]["median_s"] > 0 and table.attrs["params"] == {"lm": 8_654_208}


def test_a_module_is_measured_on_its_own_inputs_and_refused_by_name():
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    table = mmchar.measure(module, torch.randn(5, 6), samples=2, progress=False)
    # [5, 6] @ [6, 4]: 2 * 5 * 6 * 4 = 240
    assert table["flop"].sum() == 240 and table.attrs["model"] == "Sequential"
    assert set(table["stage"]) == {"model"} and (table["time_s"] > 0).all()
    with pytest.raises(ValueError, match="takes no 'y'; it takes input"):
        mmchar.measure(module, y=torch.randn(5, 6), progress=False)
    with pytest.raises(ValueError, match="device 'meta' runs nothing"):
        mmchar.measure(nn.Linear(2, 2, device="meta"), torch.randn(1, 2), progress=False)
    with pytest.raises(ValueError, match="cfg 'split' is not possible: .*Sequential"):
        mmchar.measure(module, torch.randn(5, 6), levers=Levers(cfg="split"), progress=False)


def test_an_empty_input_of_ones_own_is_timed_with_numbers():
    module = nn.Linear(6, 4)
    seen = []
    (stage,) = record_on_device(Subject("mine", {"model": module}, lambda: module(torch.zeros(5, 6)))).stages
    module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model = SimpleNamespace(components={"model": module}, device="cpu", dtype="float32")
    preparer(model, stage, Levers())()()
    assert is_noise(seen[0])


def test_what_a_pipeline_takes_besides_a_request_is_measured_too():
    table = mmchar.measure(
        "stable-diffusion-1.5", tiny=True, steps=2, num_images_per_prompt=3, samples=1, progress=False
    )
    counted = mmchar.count("stable-diffusion-1.5", tiny=True, steps=2, num_images_per_prompt=3, dtype="float32")
    for stage in ("denoise", "decode_image"):
        rows = [part[part["stage"] == stage] for part in (table, counted)]
        assert rows[0]["flop"].sum() == rows[1]["flop"].sum() > 0


def test_what_is_counted_can_be_projected_in_one_step(pipe):
    module, x = nn.Linear(64, 32), torch.randn(8, 64)
    for given_, asked in (((module, x), {}), ((pipe,), ASKED), (("llama-2-7b",), {"tiny": True, "new_tokens": 4})):
        projected = mmchar.project(*given_, gpu="h100-sxm", **asked)
        table = mmchar.project(mmchar.count(*given_, **asked), gpu="h100-sxm")
        assert projected["time_s"].tolist() == table["time_s"].tolist() and projected["time_s"].sum() > 0
        assert projected.attrs == table.attrs and projected.attrs["gpu"] == "h100-sxm"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"steps": 3}, "steps does not go with a table"),
        ({"execution": "lazy"}, "unknown execution 'lazy'"),
        ({"gpu": "h1"}, "unknown gpu 'h1'"),
    ],
)
def test_a_projection_is_refused_before_anything_is_counted(monkeypatch, more, says):
    from mmchar.projection import roofline

    table = mmchar.count("llama-2-7b", tiny=True)
    monkeypatch.setattr(roofline, "count", lambda *_a, **_k: pytest.fail("counted"))
    for what in (table, "llama-2-7b")[: 1 if "steps" in more else 2]:
        with pytest.raises(ValueError, match=says):
            mmchar.project(what, **{"gpu": "h100-sxm", **more})
