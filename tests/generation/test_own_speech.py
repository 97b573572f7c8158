"""Models that translate speech, speak or draw code by code: their pipelines run, cost what is expected, and are right.

The FLOP expected here were counted by hand-written stages (mmchar at commit 6eeb7dd), each traced alone on ``meta`` and
multiplied by its repeats. Here a whole generation runs for real under torch's own counter, and once more on ``meta``.
"""

from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from mmchar.counting.operator_table import count, summarize_count
from mmchar.generation.inputs import Inputs
from mmchar.generation.own.answer import JanusPipeline, SpokenAnswerPipeline
from mmchar.generation.own.speech import SeamlessPipeline, best_beams
from mmchar.generation.programs import plan, subject_of_zoo
from mmchar.models.loading import get_spec, load
from mmchar.request import Request

SEAMLESS = "seamless-m4t-v2-large"
# model, what is asked beyond the tiny defaults, shape of the output, FLOP
TINY = [
    (SEAMLESS, {}, (1, 19_200), 430_128_000),  # 6 tokens x 5 chars x 2 units x 320 samples
    (SEAMLESS, {"batch": 3, "audio_s": 2, "new_tokens": 5, "beams": 3}, (3, 16_000), 1_253_266_176),
    (f"{SEAMLESS}-s2tt", {"batch": 2, "audio_s": 2, "new_tokens": 3}, (2, 3), 188_670_720),
    (f"{SEAMLESS}-t2st", {"batch": 2, "prompt_tokens": 7}, (2, 19_200), 783_473_664),
    (f"{SEAMLESS}-t2tt", {"batch": 2, "prompt_tokens": 11, "beams": 1}, (2, 6), 20_170_752),
    (f"{SEAMLESS}-t2tt", {"batch": 3, "prompt_tokens": 11, "new_tokens": 7}, (3, 7), 49_966_848),
    ("janus-pro-7b", {"batch": 2, "prompt_tokens": 5, "guidance": 1.0}, (2, 3, 64, 64), 1_690_746_880),
    ("janus-pro-7b", {"batch": 2, "prompt_tokens": 7}, (2, 3, 64, 64), 1_936_416_768),
    ("qwen2.5-omni-7b", {}, (9_600,), 854_183_696),  # 5 tokens x 4 codes x 2 frames x 240 samples
    ("qwen2.5-omni-7b", {"audio_s": 3, "steps": 4, "new_tokens": 7}, (13_440,), 2_540_200_208),
]
PUBLISHED = [
    (SEAMLESS, {"audio_s": 3, "new_tokens": 4, "beams": 3}, 238_270_957_568),
    ("qwen2.5-omni-7b", {"audio_s": 3, "prompt_tokens": 9, "new_tokens": 5, "steps": 3}, 1_945_756_662_144),
]


@pytest.mark.parametrize(("name", "asked", "shape", "flop"), TINY)
def test_a_tiny_generation_runs_and_costs_what_is_counted(name, asked, shape, flop):
    model = load(name, device="cpu", dtype="float32", tiny=True)
    subject = subject_of_zoo(model, model.spec.resolve(Request(**asked)))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made = subject.work()
    assert (tuple(made.shape), counter.get_total_flops()) == (shape, flop)
    assert made.isfinite().all()
    assert made.is_floating_point() == (not name.endswith("tt"))
    assert summarize_count(count(name, Request(**asked), tiny=True, cache=False))["flop"] == flop


@pytest.mark.parametrize(("name", "asked", "flop"), PUBLISHED)
def test_at_published_scale_it_costs_what_is_counted(name, asked, flop):
    found = summarize_count(count(name, Request(**asked), cache=False))
    assert (found["flop"], found["uncounted"]) == (flop, [])


@pytest.mark.parametrize(("suffix", "first", "speaks"), [
    ("", "encode_speech", True), ("-s2tt", "encode_speech", False),
    ("-t2st", "encode_text", True), ("-t2tt", "encode_text", False),
])  # fmt: skip
def test_seamless_runs_what_its_task_needs(suffix, first, speaks):
    spec = get_spec(SEAMLESS + suffix, tiny=True)
    written = [(first, 1), ("prefill", 1), ("decode", 5)]  # the prefill gives the first of six tokens
    spoken = ["reread_text", "encode_units", "predict_durations", "decode_units", "decode_units_variant_2"]  # 2 layers
    spoken += ["predict_units", "predict_unit_durations", "vocode"]
    expected = written + [(name, 1) for name in spoken] * speaks
    assert [(stage.name, stage.repeats) for stage in plan(spec, spec.resolve())] == expected


def test_omni_and_janus_are_told_apart_into_stages():
    repeats = {}
    for name in ("qwen2.5-omni-7b", "janus-pro-7b"):
        spec = get_spec(name, tiny=True)
        repeats[name] = {stage.name: stage.repeats for stage in plan(spec, spec.resolve())}
    assert repeats["qwen2.5-omni-7b"] == {
        "encode_audio": 1,
        "prefill": 1,
        "predict_token": 1,
        "decode": 4,  # of five tokens the prefill gives the first
        "project_speech": 1,
        "prefill_speech": 1,
        "predict_code": 1,
        "decode_speech": 19,  # 5 x 4 codes
        "denoise_sound": 4,  # 2 times are 1 interval of 4 evaluations
        "vocode": 1,
    }
    drawn = {"prefill": 1, "predict_code": 16, "look_up_code": 15, "project_code": 15, "decode": 15, "decode_image": 1}
    assert repeats["janus-pro-7b"] == drawn  # 4 x 4 codes


def test_the_cache_is_reordered_by_96_selections_per_step():
    table = count(SEAMLESS, Request(audio_s=10, beams=5, new_tokens=3), cache=False)
    moved = table[(table["stage"] == "pipeline") & (table["op"] == "index_select")]
    # 24 layers x (self, cross) x (keys, values); "96 index_select calls" in PyTorch's article on Seamless (2024-01-23)
    assert list(moved["calls"]) == [2 * 96]  # the beams of the first step are all the same
    # 24 layers x 2 x 5 beams x 1024 x 2 bytes for each of 2 (then 3) cached and 63 encoded tokens
    assert list(moved["write_bytes"]) == [24 * 2 * 5 * 1024 * 2 * (2 + 63 + 3 + 63)]


def test_best_beams_by_hand():
    words = torch.tensor([[0.0, -2.0, -3.0], [-9.0, -0.5, -0.1], [-1.0, -4.0, -5.0], [-0.5, -0.2, -7.0]])
    scores = torch.tensor([[-1.0, -1.5], [-2.0, -2.0]])  # of two beams of two samples
    found, rows, tokens = best_beams(words, scores)
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.6], [-2.2, -2.5]]))
    # -1 + 0 of the first beam, -1.5 - 0.1 of the second; of the other sample -2 - 0.2 and -2 - 0.5, both of its second
    assert (rows.tolist(), tokens.flatten().tolist()) == ([0, 1, 3, 3], [0, 2, 1, 0])


@pytest.fixture(scope="module")
def translator():
    """Seamless with weights that are not as good as equal, so that texts and beams differ."""
    model = load(f"{SEAMLESS}-t2tt", device="cpu", dtype="float32", tiny=True).components["model"]
    random = torch.Generator().manual_seed(1)
    for part in model.parameters():
        if part.dim() > 1:
            part.copy_(torch.randn(part.shape, generator=random) * 6 / part.shape[-1] ** 0.5)
    model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=random) / 5)
    model.generation_config = GenerationConfig(decoder_start_token_id=3, pad_token_id=0, bos_token_id=2)
    return model


def given(ids):
    """Inputs that make up these token ids."""
    inputs = Inputs("cpu", "float32")
    inputs.tokens = lambda *_shape, vocabulary: ids
    return inputs


def test_beams_are_those_of_the_library(translator):
    ids = torch.randint(4, 1000, (2, 9), generator=torch.Generator().manual_seed(0))
    pipe = SeamlessPipeline({"model": translator}, given(ids), speaks=False)
    asked = {"batch": 2, "prompt_tokens": 9, "new_tokens": 8, "beams": 3}
    start = torch.full((2, 1), 3)
    with torch.inference_mode():
        ours = pipe(**asked)
        theirs = translator.generate(
            input_ids=ids, generate_speech=False, num_beams=3, max_new_tokens=8, decoder_input_ids=start
        )
        with patch.object(EncoderDecoderCache, "reorder_cache"):
            elsewhere = pipe(**asked)
    assert torch.equal(ours, theirs.sequences[:, 1:])
    assert len(set(ours.flatten().tolist())) > 6
    assert not torch.equal(ours, elsewhere), "beams go on from what they have read"


def test_janus_draws_the_codes_of_the_library():
    lm = load("janus-pro-7b", device="cpu", dtype="float32", tiny=True).components["lm"]
    settings = {"bos_token_id": 1, "pad_token_id": 3, "generation_kwargs": {"boi_token_id": 4}, "guidance_scale": 5.0}
    lm.generation_config = GenerationConfig(**settings)
    text = torch.randint(5, 1999, (2, 7), generator=torch.Generator().manual_seed(0))
    pipe = JanusPipeline({"lm": lm}, given(torch.cat([torch.full_like(text, 3), text])))  # without a prompt: padding
    with torch.inference_mode(), patch.object(lm, "decode_image_tokens", wraps=lm.decode_image_tokens) as decode:
        pipe(batch=2, prompt_tokens=7, guidance=5.0)
        cache = DynamicCache(config=lm.config.get_text_config())
        theirs = lm.generate(
            text, attention_mask=torch.ones_like(text), generation_mode="image", do_sample=False, past_key_values=cache
        )
    (codes,) = decode.call_args.args
    assert torch.equal(codes, theirs)
    assert len(set(codes.flatten().tolist())) > 1


@pytest.fixture(scope="module")
def speaker():
    omni = load("qwen2.5-omni-7b", device="cpu", dtype="float32", tiny=True).components["omni"]
    random = torch.Generator().manual_seed(1)
    for part in (*omni.thinker.parameters(), *omni.talker.parameters()):
        if part.dim() > 1:
            part.copy_(torch.randn(part.shape, generator=random) * 3 / part.shape[-1] ** 0.5)
    return SpokenAnswerPipeline({"omni": omni}, Inputs("cpu", "float32"), frames_per_second=100, codes_per_token=4)


def test_words_are_those_that_the_library_writes(speaker):
    question = speaker.inputs.normal(1, 9, 256)
    thinker, asked = speaker.omni.thinker, []
    hook = thinker.register_forward_pre_hook(lambda _, args, kw: asked.append(kw["input_ids"]), with_kwargs=True)
    with torch.inference_mode():
        speaker._write(question, 6)
        hook.remove()
        theirs = thinker.generate(inputs_embeds=question, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(torch.cat(asked, dim=1), theirs[:, :5])  # the last word is not read again
    assert len(set(theirs.flatten().tolist())) > 3


def test_codes_are_those_of_the_whole_sequence_at_once(speaker):
    talker = speaker.omni.talker
    states, reply = speaker.inputs.normal(1, 7, 256), speaker.inputs.normal(1, 3, 256)
    with torch.inference_mode():
        codes = speaker._speak(states, reply, 6)
        used = reply[:, [0, 1, 2, 2, 2]]  # one written token per code; the last one again when there are no more
        said = torch.cat([states, talker.get_input_embeddings()(codes[:, :-1]) + used], dim=1)
        logits = talker(inputs_embeds=said).logits[:, 6:, :1001]
    assert torch.equal(codes, logits.argmax(dim=-1))
    assert len(set(codes.flatten().tolist())) > 3
