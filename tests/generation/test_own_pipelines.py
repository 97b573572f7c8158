"""Our own pipelines run for real at the tiny scale, and cost what the stages that they replaced did, to the last FLOP.

The FLOP expected here were counted by hand-written stages (mmchar at commit 9cfd14c), each traced alone on ``meta`` and
multiplied by its repeats. Here a whole generation runs, under torch's own counter.
"""

from contextlib import contextmanager

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmchar.counting.operator_table import count
from mmchar.generation.inputs import Inputs
from mmchar.generation.own.loops import at_width, denoise, guided, rows_of, steps_each
from mmchar.generation.own.masked import fill_masked
from mmchar.generation.programs import own_pipeline
from mmchar.models.loading import get_spec, load, zoo_names
from mmchar.request import Request

# model: what is asked beyond the tiny defaults, shape of the output, FLOP
TINY = {
    "imagen": ({"height": 128}, (1, 3, 128, 256), 4_093_291_008),
    "deepfloyd-if": ({"height": 128, "width": 128}, (1, 3, 128, 128), 9_607_869_440),
    "emu-like-prod-tti": ({"height": 72, "batch": 2}, (2, 3, 72, 128), 9_739_308_288),
    "adm-imagenet-64": ({"batch": 2, "height": 24, "steps": 3}, (2, 3, 24, 32), 3_189_424_128),
    "adm-imagenet-256": ({"height": 32}, (1, 3, 32, 64), 1_223_069_696),
    "parti-350m": ({"height": 16, "width": 24, "batch": 2}, (2, 3, 16, 24), 151_057_152),
    "parti-750m": ({"height": 16, "width": 24}, (1, 3, 16, 24), 62_115_840),
    "parti-3b": ({"height": 16, "width": 24, "guidance": 1.0}, (1, 3, 16, 24), 54_811_008),
    "parti-20b": ({"height": 16, "width": 24}, (1, 3, 16, 24), 195_707_520),
    "muse-3b": ({"steps": (3, 1)}, (1, 3, 256, 256), 14_343_667_712),
    "phenaki-1.8b": ({"width": 40, "frames": 7, "steps": 3}, (1, 3, 7, 64, 40), 3_743_588_352),
    "make-a-video": ({"frames": 6, "steps": (2, 1, 1, 1, 1)}, (1, 3, 6, 96, 96), 28_197_840_384),
    "open-sora-2-11b": ({"height": 48, "frames": 9, "batch": 2}, (2, 3, 9, 48, 64), 7_143_399_936),
    "chameleon-7b-t2i": ({"batch": 2}, (2, 3, 64, 64), 2_008_100_864),
    "chameleon-34b-t2i": ({"guidance": 1.0}, (1, 3, 64, 64), 887_021_568),
    "emu3-gen-8b": ({"batch": 2}, (2, 3, 40, 32), 4_353_670_912),
    "llava-v1-7b": ({"batch": 2, "new_tokens": 5}, (2, 5), 412_105_728),
    "next-gpt-7b": ({"batch": 2, "new_tokens": 7, "height": 40}, (2, 3, 40, 64), 2_748_718_592),
    "next-gpt-7b-video": ({"height": 40, "width": 40}, (1, 3, 3, 40, 40), 2_225_362_016),
    "clip-vit-l-14": ({"batch": 3, "classes": 7}, (3, 7), 119_847_360),
    "hstu-24l-1024-8k": ({"batch": 2, "candidates": 3}, (2, 3, 8), 111_101_184),
    "hstu-ml20m-large": ({"batch": 3}, (3, 200), 39_859_200),
}
# Those that run on bare meta, one per class: in the others the library's code asks tensors for values.
ON_META = ("imagen", "emu-like-prod-tti", "adm-imagenet-64", "muse-3b", "phenaki-1.8b", "make-a-video",
           "open-sora-2-11b", "chameleon-7b-t2i", "clip-vit-l-14", "hstu-24l-1024-8k", "hstu-ml20m-large")  # fmt: skip
PUBLISHED = [
    ("hstu-ml20m-large", {"batch": 3}, (3, 200), 8_459_154_432),
    ("clip-vit-l-14", {"batch": 3, "classes": 11}, (3, 11), 632_373_179_904),
    ("adm-imagenet-256", {"steps": 2}, (1, 3, 256, 256), 4_479_331_074_048),
    pytest.param("imagen", {"steps": 2, "width": 896}, (1, 3, 1024, 896), 38_762_391_339_008, marks=pytest.mark.slow),
    pytest.param("muse-3b", {"steps": (2, 3)}, (1, 3, 512, 512), 51_317_208_776_704, marks=pytest.mark.slow),
]


def pipeline(name, device="cpu", dtype="float32", *, tiny=True, **more):
    """A model's pipeline around networks with random weights; ``more`` overrides what the zoo file gives it."""
    pipe = own_pipeline(load(name, device=device, dtype=dtype, tiny=tiny), **more)
    pipe.inputs = Inputs(device, dtype)
    return pipe


def generate(name, pipe, *, tiny=True, **asked):
    """What a pipeline makes, and its FLOP; fused attention would be counted as none."""
    request = get_spec(name, tiny=tiny).resolve(Request(**asked))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made = pipe(**request.given())
    return made, counter.get_total_flops()


@contextmanager
def watching(module):
    """Shapes of the tensors that a module is called with meanwhile, by name or place, one dict per call."""
    calls = []

    def note(_module, args, kwargs):
        given = {**dict(enumerate(args)), **kwargs}
        calls.append({key: tuple(part.shape) for key, part in given.items() if isinstance(part, torch.Tensor)})

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def test_every_model_with_an_own_pipeline_is_here():
    own = [name for name in zoo_names() if get_spec(name).pipeline.library == "mmchar"]
    spoken = {"janus-pro-7b", "qwen2.5-omni-7b"}  # these are in test_own_speech.py
    assert sorted(TINY) == [name for name in own if name not in spoken and not name.startswith("seamless")]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_generation_runs_and_costs_what_its_stages_did(name):
    asked, shape, flop = TINY[name]
    made, found = generate(name, pipeline(name), **asked)
    assert (tuple(made.shape), found) == (shape, flop)
    assert made.isfinite().all()


@pytest.mark.parametrize("name", ON_META)
def test_on_meta_in_bfloat16_it_costs_the_same(name):
    asked, shape, flop = TINY[name]
    made, found = generate(name, pipeline(name, "meta", "bfloat16"), **asked)
    assert (tuple(made.shape), found) == (shape, flop)
    assert made.dtype in (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("name, asked, shape, flop", PUBLISHED)
def test_at_published_scale(name, asked, shape, flop):
    made, found = generate(name, pipeline(name, "meta", "bfloat16", tiny=False), tiny=False, **asked)
    assert (tuple(made.shape), found) == (shape, flop)


def test_one_number_of_steps_stands_for_all_denoisers():
    assert (steps_each(4, 3), steps_each((1, 2), 2), steps_each((7,), 1)) == ((4, 4, 4), (1, 2), (7,))
    pipe = pipeline("imagen")
    with watching(pipe.networks["unet_64"]) as small, watching(pipe.networks["unet_1024"]) as large:
        generate("imagen", pipe, steps=3, guidance=1.0, height=128, width=128)
    assert (len(small), len(large)) == (3, 3)


def test_guidance_goes_on_from_nothing_towards_the_prompt():
    both = torch.tensor([[1.0], [3.0]])
    assert guided(both, 7.5).tolist() == [[16.0]]  # 1 + 7.5 * (3 - 1)
    assert guided(both, 1.0) is both
    assert [rows_of(scale) for scale in (0.0, 1.0, 1.01)] == [1, 1, 2]


def test_denoising_a_perfect_guess_finds_the_sample():
    class Guess(nn.Module):  # knows the noise in a sample whose clean image is zero: all of it
        def forward(self, sample, timestep, scale):
            assert timestep.shape == (sample.shape[0],) == (2 * 3,)  # guidance: two rows per sample
            return sample[:, :2] / (1 - scheduler.alphas_cumprod[timestep]).sqrt().view(-1, 1, 1, 1)

    scheduler = DDIMScheduler(clip_sample=False)
    noise, beside = torch.randn(3, 2, 5, 4), torch.ones(3, 1, 5, 4)
    told = {"scale": torch.ones(6)}
    found = denoise(Guess(), noise, scheduler=scheduler, steps=10, guidance=2.0, beside=beside, **told)
    assert found.shape == noise.shape
    assert found.abs().max() < 0.02 * noise.abs().max()  # sqrt(1 - alpha) of the last step, 0.0001: 0.01


def test_masked_tokens_are_filled_the_surest_first_and_known_ones_stay():
    masked, seen = [], []

    def predict(ids):  # surest of the first token, then of the second, …; always says 3
        masked.append(int((ids == 9).sum()))
        seen.append(ids.tolist()[0])
        logits = torch.zeros(*ids.shape, 9)
        logits[..., 3] = torch.arange(ids.shape[1], 0, -1)
        return logits

    ids = torch.full((1, 10), 9)
    ids[0, 0] = 7
    assert fill_masked(predict, ids, steps=3, mask=9).tolist() == [[7] + [3] * 9]
    # at first all but the known one; then floor(10 * cos(30°)) = 8 and floor(10 * cos(60°)) = 5, but for the last digit
    # of a float: 10 * cos(pi / 3) is 5.000000000000001
    assert masked == [9, 8, 5]
    assert seen[1] == [7, 3] + [9] * 8


def test_text_is_cut_or_padded_to_a_width():
    text = torch.ones(2, 3, 4)
    assert at_width(text, 2).shape == (2, 3, 2)
    assert at_width(text, 6).sum() == 2 * 3 * 4


def test_sequential_guidance_decodes_in_turn_after_two_prompts():
    pipe = pipeline("emu3-gen-8b")
    with watching(pipe.lm) as calls:
        generate("emu3-gen-8b", pipe, batch=2, height=24, width=16)
    # 3 rows of 2 tokens and an end of line: 9 tokens, of which the first comes with the prefill
    assert [call["input_ids"] for call in calls] == [(2, 8), (2, 16)] + [(2, 1)] * 2 * 8


def test_batched_guidance_decodes_two_rows_at_once():
    pipe = pipeline("emu3-gen-8b", guidance="batch")
    with watching(pipe.lm) as calls:
        made, _ = generate("emu3-gen-8b", pipe, batch=3, height=24, width=16)
    assert [call["input_ids"] for call in calls] == [(6, 8)] + [(6, 1)] * 8
    assert made.shape == (3, 3, 24, 16)


def test_the_last_token_is_not_prepared_to_be_read_again():
    table = count("parti-350m", tiny=True, cache=False, height=16, width=24)
    joined = table[(table["stage"] == "pipeline") & (table["op"] == "cat")]
    assert list(joined["calls"]) == [5 + 1]  # five of six tokens beside themselves for guidance, and all of them


def test_an_image_is_a_token_per_patch():
    pipe = pipeline("llava-v1-7b")
    with watching(pipe.networks["lm"]) as calls:
        generate("llava-v1-7b", pipe, batch=2, new_tokens=3)
    assert calls[0]["inputs_embeds"] == (2, 16 + 16, 256)  # 56 / 14 = 4 patches a side, 16 of text
    assert [call["input_ids"] for call in calls[1:]] == [(2, 1)] * 2


def test_signal_tokens_at_the_end_of_an_answer_drive_the_denoiser():
    pipe = pipeline("next-gpt-7b")
    parts = [watching(pipe.networks[role]) for role in ("lm", "output_projector", "unet")]
    with parts[0] as read, parts[1] as signal, parts[2] as drawn:
        generate("next-gpt-7b", pipe, batch=2)
    assert read[0]["inputs_embeds"] == (2, 1 + 16, 256)  # the image is one token, before 16 of text
    assert signal == [{0: (2, 4, 256)}]
    assert drawn[0]["encoder_hidden_states"] == (4, 20, 96)  # 20 queries, with and without


def test_the_signal_is_the_states_from_which_the_last_tokens_came():
    pipe, states, signal = pipeline("next-gpt-7b"), [], []
    pipe.networks["lm"].lm_head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    pipe.networks["output_projector"].register_forward_pre_hook(lambda _, args: signal.append(args[0]))
    generate("next-gpt-7b", pipe, new_tokens=6)
    assert len(states) == 6
    assert torch.equal(signal[0], torch.cat(states[-4:], dim=1))


def test_key_frames_lie_among_empty_ones_with_a_mark():
    pipe = pipeline("make-a-video")
    video = pipe._spread(torch.full((1, 3, 3, 2, 2), 5.0), 11)
    assert video.shape == (1, 4, 11, 2, 2)
    assert video[0, 0, :, 0, 0].tolist() == [5.0 if frame in (0, 5, 10) else 0.0 for frame in range(11)]
    assert video[0, 3, :, 0, 0].tolist() == [1.0 if frame in (0, 5, 10) else 0.0 for frame in range(11)]


def test_open_sora_packs_two_by_two_places_and_back():
    pipe = pipeline("open-sora-2-11b", "meta")
    latent = torch.arange(2 * 3 * 2 * 4 * 6).view(2, 3, 2, 4, 6)
    packed = pipe._packed(latent)
    assert packed.shape == (2, 2 * 2 * 3, 4 * 3)
    assert packed[0, 1].tolist() == [2, 3, 8, 9, 50, 51, 56, 57, 98, 99, 104, 105]  # 2 and 3 over 8 and 9, then + 48
    assert torch.equal(pipe._unpacked(packed, (2, 4, 6)), latent)


def test_open_sora_is_guided_by_text_and_by_image():
    pipe = pipeline("open-sora-2-11b", "meta")
    prompt, no_prompt, nothing = (torch.full((1, 1), value) for value in (5.0, 2.0, 1.0))
    found = pipe._combined(torch.cat([prompt, no_prompt, nothing]), 3, 2.0)
    assert found.tolist() == [[9.0]]  # 1 + 2 * (2 - 1) + 2 * (5 - 2)


def test_open_sora_decodes_one_video_at_a_time_in_tiles():
    pipe = pipeline("open-sora-2-11b", decode_tiles={"height": [4, 3], "width": [4, 3]})
    with watching(pipe.networks["vae"].decoder) as tiles:
        made, _ = generate("open-sora-2-11b", pipe, batch=2, height=48, width=64, frames=5)
    # 6 x 8 places of 2 latent frames: rows from 0 and 3, columns from 0, 3 and 6
    one = [(1, 16, 2, rows, columns) for rows in (4, 3) for columns in (4, 4, 2)]
    assert [call[0] for call in tiles] == one + one
    assert made.shape == (2, 3, 5, 48, 64)
