"""A generation is what its own code does: objects of one's own, counted by running them with their networks on meta."""

import diffusers
import pytest
import tiny_pipelines
import torch
import transformers
from torch import nn

import mmchar
from mmchar.generation import hollow, subject
from mmchar.generation.recording import Subject
from mmchar.generation.run import on_meta, record
from mmchar.tracing import known_values
from mmchar.tracing.trace import trace


def language_model(cls="Llama", **changes):
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = getattr(transformers, f"{cls}Config")(**sizes, num_attention_heads=4, num_key_value_heads=2, **changes)
    return getattr(transformers, f"{cls}ForCausalLM")(config).eval()


def repeats_of(table):
    return {stage["stage"]: stage["repeats"] for stage in mmchar.summarize_count(table)["stages"]}


def lengths_of(table, stage="decode"):
    rows = table[(table["stage"] == stage) & (table["attention"] != "")].sort_values("step")
    return [int(length) for length, many in zip(rows["kv_len"], rows["repeats"], strict=True) for _ in range(many)]


def test_a_pipeline_is_counted_and_stays_as_it_is():
    pipe = tiny_pipelines.build("StableDiffusionPipeline")
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    own, scheduler = dict(vars(pipe.unet)), dict(vars(pipe.scheduler))
    table = mmchar.count(pipe, **tiny_pipelines.call_arguments("StableDiffusionPipeline"))
    assert table.attrs["model"] == "StableDiffusionPipeline"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())
    assert vars(pipe.unet).keys() == own.keys() and pipe.device.type == "cpu"
    assert {name: part for name, part in vars(pipe.scheduler).items() if not isinstance(part, torch.Tensor)} == {
        name: part for name, part in scheduler.items() if not isinstance(part, torch.Tensor)
    }
    assert nn.Module.__call__.__name__ == "_wrapped_call_impl"


# what the library's schedulers do with 50 steps: PNDM evaluates one twice, Heun all but the last
@pytest.mark.parametrize(
    ("scheduler", "calls"), [("DDIMScheduler", 50), ("PNDMScheduler", 51), ("HeunDiscreteScheduler", 99)]
)
def test_the_scheduler_decides_how_often_the_denoiser_runs(scheduler, calls):
    pipe = tiny_pipelines.build("StableDiffusionPipeline")
    more = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler)(**more)
    call = tiny_pipelines.call_arguments("StableDiffusionPipeline") | {"num_inference_steps": 50}
    assert repeats_of(mmchar.count(pipe, **call))["denoise"] == calls


def test_guidance_is_what_the_pipeline_makes_of_it():
    pipe = tiny_pipelines.build("StableDiffusionPipeline")
    call = tiny_pipelines.call_arguments("StableDiffusionPipeline")
    guided, plain = (mmchar.count(pipe, **call | {"guidance_scale": scale}) for scale in (7.5, 1.0))
    denoise = [table[table["stage"] == "denoise"]["flop"].sum() for table in (guided, plain)]
    assert denoise[0] == 2 * denoise[1]


def test_an_argument_that_the_call_does_not_take_is_one_line():
    pipe = tiny_pipelines.build("StableDiffusionPipeline")
    with pytest.raises(ValueError, match="takes no 'num_inference_step'; did you mean 'num_inference_steps'") as error:
        mmchar.count(pipe, prompt="a cat", num_inference_step=2)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give its arguments by name"):
        mmchar.count(pipe, "a cat")
    with pytest.raises(ValueError, match="int is no pipeline, model or module"):
        mmchar.count(7)


def test_a_language_model_by_arithmetic():
    table = mmchar.count(language_model(), prompt_tokens=7, new_tokens=5)
    assert repeats_of(table) == {"prefill": 1, "decode": 4, "pipeline": 1}
    linear = table[(table["category"] == "Linear") & (table["stage"] == "prefill")]
    # per token and layer q, o: 32 x 32; k, v: 32 x 16; gate, up, down: 32 x 64; then logits of the last token
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert linear["flop"].sum() == 2 * (7 * 2 * layer + 32 * 100)
    assert set(lengths_of(table)) == {8, 9, 10, 11}


def test_a_long_decode_is_a_few_traces(monkeypatch):
    traced = []
    monkeypatch.setattr("mmchar.tracing.trace.trace", lambda *a, **k: traced.append(1) or trace(*a, **k))
    monkeypatch.setattr("mmchar.generation.watch.trace", lambda *a, **k: traced.append(1) or trace(*a, **k))
    table = mmchar.count(language_model(), prompt_tokens=7, new_tokens=200)
    assert repeats_of(table)["decode"] == 199
    assert len(traced) <= 6  # prefill, the first, the last and the middle step


def test_a_window_that_fills_while_decoding_has_a_kink():
    model = language_model("Mistral", sliding_window=10)
    table = mmchar.count(model, prompt_tokens=6, new_tokens=12)
    # the window holds 10 tokens, the new one among them
    assert sorted(set(lengths_of(table))) == [7, 8, 9, 10]
    alone = mmchar.count(model, prompt_tokens=12, new_tokens=2)
    assert set(lengths_of(alone)) == {10}


def test_any_module_is_counted_with_its_own_inputs():
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    table = mmchar.count(module, torch.zeros(3, 8))
    assert table["flop"].sum() == 2 * 3 * (8 * 16 + 16 * 4)
    assert all(parameter.device.type == "cpu" for parameter in module.parameters())


def test_two_prompts_of_one_length_are_one_stage():
    model = language_model()
    subject_ = subject.subject_of(model, (), {"prompt_tokens": 5, "new_tokens": 4})

    def twice():
        subject_.work()
        subject_.work()

    stages = record(Subject("mine", subject_.networks, twice)).stages
    assert [(stage.name, stage.repeats) for stage in stages] == [("prefill", 2), ("decode", 6)]


def test_values_on_meta_are_read_where_they_are_known():
    seen = {}

    def work():
        ids = known_values.given(torch.tensor([[3, 0, 4]]))
        seen["item"], seen["list"] = ids.max().item(), (ids + 1).tolist()
        seen["picked"] = torch.empty(1, 3, 8, device="meta")[ids > 0].shape
        seen["made"] = torch.tensor([2, 5], device="meta").sum().item()
        seen["where"] = torch.nonzero(ids).shape
        with pytest.raises(NotImplementedError, match="reads the values"):
            torch.empty(2, device="meta").tolist()

    trace(nn.Linear(1, 1, device="meta"), work)
    assert seen == {"item": 4, "list": [[4, 1, 5]], "picked": (2, 8), "made": 7, "where": (2, 2)}


def test_what_is_large_outside_the_networks_is_not_computed():
    def work():
        image = torch.randn(1, 3, 512, 1024)
        image *= 2
        small = torch.arange(4.0) * 2
        return (image / 2 + 0.5).clamp(0, 1), small

    (image, small), rows = hollow.record_outside(work)
    assert image.shape == (1, 3, 512, 1024) and not any(image.stride())
    assert small.tolist() == [0, 2, 4, 6]
    divided = next(row for row in rows if row.op == "div")
    assert divided.read_bytes == 3 * 512 * 1024 * 4  # as on a device, where the image has values of its own


def test_a_twin_on_meta_shares_nothing_that_a_run_changes():
    model = language_model()
    twin = on_meta(model)
    assert all(parameter.is_meta for parameter in twin.parameters())
    assert twin.lm_head.weight.shape == model.lm_head.weight.shape
    assert type(twin) is type(model) and twin.config is not model.config


class Reader(nn.Module):
    """Runs a layer over as many tokens as its mask says."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, tokens, mask):
        return self.layer(tokens[:, : int(mask.sum(dim=1).max())])


def test_calls_of_one_shape_are_told_apart_by_what_a_network_reads():
    network = Reader().to("meta")
    masks = [torch.tensor([[1, 1, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 1]])]

    def work():
        for mask in masks + masks[:1]:
            network(torch.zeros(1, 5, 4), mask)

    found = record(Subject("mine", {"reader": network}, work))
    assert [stage.repeats for stage in found.stages] == [3, 1]  # two masks of two tokens do the same
    # 2 FLOP * tokens * 4 * 4
    assert [sum(row.flop for row in rows) for rows in found.rows.values()] == [2 * 2 * 16, 2 * 5 * 16]


class Seeing(nn.Module):
    """A network with a part that is a stage of its own."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Linear(4, 4), nn.Linear(4, 4)

    def generate(self):
        """Makes it a model that writes, of which parts are told apart."""

    def forward(self, pixels):
        return self.text(self.visual(pixels))


def test_what_a_part_does_counts_with_every_call_around_it():
    network = Seeing().to("meta")
    found = record(Subject("mine", {"lm": network}, lambda: [network(torch.zeros(1, 3, 4)) for _ in range(5)]))
    assert {stage.name: stage.repeats for stage in found.stages} == {"encode_image": 5, "lm": 5}
