"""Measured tables: the same rows as counted ones, with time; what ran; what is refused before anything is built."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from samples import break_stage
from torch import nn

import mmchar
from mmchar.counting.planned_stages import stages
from mmchar.generation.on_device import realized
from mmchar.measuring import profiling, stage_runs, target
from mmchar.measuring.machine import available_bytes
from mmchar.measuring.operator_times import Profile
from mmchar.measuring.optimization.backends import attention_backend
from mmchar.measuring.optimization.ladder import Levers
from mmchar.measuring.profiling import measure, summarize_measured
from mmchar.measuring.stage_runs import measure_stage, stage_facts
from mmchar.measuring.target import Settings
from mmchar.measuring.timing import Measurement
from mmchar.models.loading import Model, get_spec, load
from mmchar.tables.stored import read_table, write_table

SITE = ["stage", "component", "module", "module_type", "op", "category", "attention", "dtype", "repeats"]
BESIDE = ("views and allocations", "unattributed operators")  # rows that a measured table has and a counted one not
NUMBERS = ["batch", "heads", "q_len", "kv_len", "head_dim", "calls", "flop", "read_bytes", "write_bytes", "mask_bytes"]

LLAMA = {"vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3,
         "num_key_value_heads": 3, "max_position_embeddings": 64}  # fmt: skip
CLIP = {"vocab_size": 96, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
        "max_position_embeddings": 16}  # fmt: skip
UNET = {"sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1, "cross_attention_dim": 24,
        "attention_head_dim": 2, "norm_num_groups": 8, "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}  # fmt: skip
VAE = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 4,
       "up_block_types": ["UpDecoderBlock2D"] * 2, "down_block_types": ["DownEncoderBlock2D"] * 2}  # fmt: skip


WRITES = {"library": "transformers", "class": "generate"}
DDIM = {"class": "DDIMScheduler", "config": {"steps_offset": 1, "clip_sample": False}}
DRAWS = {"library": "diffusers", "class": "StableDiffusionPipeline", "schedulers": {"scheduler": DDIM}}


def write_spec(folder, name, family, components, request, pipeline):
    parts = {
        role: {"library": library, "class": cls, "config": config, "source": "made up for this test"}
        for role, (library, cls, config) in components.items()
    }
    spec = {"name": name, "family": family, "year": 2026, "summary": "small", "components": parts}
    spec |= {"pipeline": pipeline, "request": request, "request_source": "made up for this test", "tiny_request": {}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    return str(path)


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("specs")
    lm = {"lm": ("transformers", "LlamaForCausalLM", LLAMA)}
    image = {
        "text_encoder": ("transformers", "CLIPTextModel", CLIP),
        "unet": ("diffusers", "UNet2DConditionModel", UNET),
    }
    image["vae"] = ("diffusers", "AutoencoderKL", VAE)
    size = {"batch": 1, "prompt_tokens": 7, "height": 24, "width": 16, "steps": 4, "guidance": 5.0}
    return {
        "text": write_spec(
            folder, "small-text", "autoregressive", lm, {"batch": 1, "prompt_tokens": 5, "new_tokens": 8}, WRITES
        ),
        "image": write_spec(folder, "small-image", "latent_diffusion", image, size, DRAWS),
    }


@pytest.fixture(scope="module")
def tables(specs):
    return {
        (kind, attention): measure(specs[kind], attention=attention, samples=2, progress=False)
        for kind in specs
        for attention in ("flash", "eager")
    }


ALL = pytest.mark.parametrize(("kind", "attention"), [(k, a) for k in ("text", "image") for a in ("flash", "eager")])


@ALL
def test_rows_are_those_of_the_counted_table(specs, tables, kind, attention):
    counted = mmchar.count(specs[kind], dtype="float32", attention=attention).query("stage != 'pipeline'")
    decode = counted["stage"] == "decode"  # 7 decode steps are measured at step 3
    seen = counted[~decode | (counted["repeats"] > 1) | (counted["step"] == 3)].assign(
        repeats=lambda t: t["repeats"].where(t["stage"] != "decode", 7)
    )
    want, got = sites(seen), sites(tables[kind, attention].query("op not in @BESIDE"))
    assert want - got == Counter()
    # the math path leaves [b, h, q, d]: merging more than one head of more than one token is one more copy
    merges = tables[kind, attention].query("category == 'Attention' and heads > 1 and q_len > 1 and backend == 'math'")
    extra = got - want
    assert {site[SITE.index("op")] for site in extra} <= {"clone"}
    assert extra.total() == len(merges)


def sites(table):
    """How many rows there are of each site and its numbers."""
    return Counter(table[[*SITE, *NUMBERS]].astype(dict.fromkeys(SITE, str)).itertuples(index=False, name=None))


@ALL
def test_every_row_has_its_time(tables, kind, attention):
    table = tables[kind, attention]
    assert list(table.columns) == list(mmchar.counting.operator_table.COLUMNS)
    assert set(table["time_kind"]) == {"measured"}
    assert np.isfinite(table["time_s"]).all()
    assert (table["time_s"] > 0).all()
    assert (table["kernels"] == 0).all(), "a CPU launches no kernels"


@ALL
def test_backend_says_what_ran(tables, kind, attention):
    table = tables[kind, attention]
    cores = table["category"] == "Attention"
    assert set(table.loc[cores, "backend"]) == {"flash" if attention == "flash" else "math"}
    assert set(table.loc[~cores, "backend"]) == {""}


def test_a_growing_cache_is_measured_at_its_middle_step(tables):
    decode = tables["text", "flash"].query("stage == 'decode'")
    assert set(decode["step"]) == {3}
    assert set(decode["repeats"]) == {7}  # 8 new tokens, the first of them from prefill
    assert set(decode.loc[decode["category"] == "Attention", "kv_len"]) == {5 + 3 + 1}  # prompt, earlier tokens, itself


def test_two_texts_that_are_decoded_in_turn_have_one_middle_length():
    lengths = [(22,), (23,), (24,), (25,), (22,), (23,), (24,), (25,)]
    stage = SimpleNamespace(grows=True, repeats=8, call=None, growth=SimpleNamespace(dims=lengths))
    # by length 22 22 23 23 24 24 25 25: the fifth is 24 long, which is the call of index 2, and 4 are shorter
    assert (stage_runs.middle_step(stage), stage_runs._middle(stage)) == (2, (2, 4))
    assert stage_runs.middle_step(SimpleNamespace(growth=None)) == 0


def test_what_was_measured_and_how_is_kept_with_the_table(tables):
    facts = tables["image", "eager"].attrs
    stages = ["encode_text", "denoise", "decode_image"]
    assert (facts["model"], facts["device"], facts["dtype"]) == ("small-image", "cpu", "float32")
    assert (facts["attention"], facts["tiny"], facts["threads"]) == ("eager", False, torch.get_num_threads())
    assert torch.__version__.startswith(facts["versions"]["torch"])
    for key in ("samples", "median_s", "iqr_s", "span_s", "coverage", "doubts"):
        assert list(facts[key]) == stages
    assert all(len(samples) == 2 for samples in facts["samples"].values())
    assert facts["median_s"]["denoise"] == pytest.approx(sum(facts["samples"]["denoise"]) / 2)
    for stage in stages:
        assert 0.95 <= facts["coverage"][stage]["of_operators"] <= 1
        assert facts["coverage"][stage]["of_run"] > 0


def test_measured_tables_survive_a_file(tables, tmp_path):
    table = tables["text", "flash"]
    again = read_table(write_table(tmp_path / "measured.parquet", table))
    assert again.attrs == json.loads(json.dumps(table.attrs))
    assert again["time_s"].tolist() == table["time_s"].tolist()


def test_summary_adds_up(tables):
    table = tables["image", "flash"]
    summary = json.loads(json.dumps(summarize_measured(table)))
    repeats = {"encode_text": 2, "denoise": 4, "decode_image": 1}  # with guidance the empty prompt is encoded too
    assert {row["stage"]: row["repeats"] for row in summary["stages"]} == repeats
    median = table.attrs["median_s"]
    assert summary["time_s"] == pytest.approx(sum(median[stage] * n for stage, n in repeats.items()))
    assert sum(summary["categories"].values()) == pytest.approx((table["time_s"] * table["repeats"]).sum())
    assert set(summary["categories"]) == set(table["category"])
    assert "random weights" in summary["note"] and summary["generation"] is None


def facts_of(timed, *profiles, **found):
    nothing = {"idle_share": None, "idle": None, "memory": None, "energy_j": None, "doubts": []}
    return stage_facts(timed, list(profiles), {**nothing, **found}, "flash")


def test_numbers_not_to_be_trusted_are_named():
    rows = [SimpleNamespace()]
    steady = Measurement((1.0, 1.0, 1.0), 1, "cpu", "small denoise")
    profile = Profile(rows, [1.1], [0], [""], other_s=0.05, span_s=3.0, free_s=0.1)
    assert facts_of(steady, profile)["doubts"] == []
    # 1.1 s in rows and 0.1 s in free operators are known, 0.05 s are not; a run of 1 s
    assert facts_of(steady, profile)["coverage"] == pytest.approx({"of_operators": 1.2 / 1.25, "of_run": 1.2})
    slowed = Profile(rows, [4.0], [0], [""], other_s=0.1, span_s=9.0)
    (line,) = facts_of(steady, slowed)["doubts"]
    assert "small denoise: its operators took 4.0x" in line
    uneven = Measurement((1.0, 2.0, 3.0), 1, "cpu", "small denoise")
    (line,) = facts_of(uneven, profile)["doubts"]
    assert "WARNING: IQR/median is 50%" in line
    unknown = Profile(rows, [0.8], [0], [""], other_s=0.2, span_s=3.0)
    (line,) = facts_of(steady, unknown)["doubts"]
    assert "only 80% of its operators' time could be attributed" in line
    idle = {"share": 0.4, "launch_bound": True}
    (line,) = facts_of(steady, profile, idle=idle)["doubts"]
    assert "launch bound, the GPU is idle for 40%" in line


def test_one_interrupted_pass_of_three_does_not_change_the_coverage():
    steady = Measurement((1.0, 1.0, 1.0), 1, "cpu", "small decode")
    quiet = [Profile([], [1.0], [0], [""], other_s=0.01, span_s=3.0) for _ in range(2)]
    interrupted = Profile([], [1.0], [0], [""], other_s=2.0, span_s=5.0)
    assert facts_of(steady, *quiet, interrupted)["coverage"]["of_operators"] == pytest.approx(1.0 / 1.01)
    assert stage_runs._passes(Measurement((0.001,), 0, "cpu")) == 3, "short work is profiled thrice, whatever is asked"
    assert stage_runs._passes(Measurement((20.0,), 0, "cpu")) == 1


def test_a_model_that_is_already_built_is_measured_where_it_is(specs):
    model = mmchar.load(specs["text"], device="cpu", dtype="bfloat16")
    table = measure(model, mmchar.Request(new_tokens=1), samples=1, progress=False)
    assert (table.attrs["dtype"], set(table["stage"])) == ("bfloat16", {"prefill"})
    assert table.attrs["iqr_s"] == {"prefill": None}, "one sample has no spread"
    assert "spread unknown" in table.attrs["doubts"]["prefill"][0]
    with pytest.raises(ValueError, match="meta"):
        measure(mmchar.load(specs["text"]), progress=False)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "meta"}, "choose cpu or cuda"),
        ({"attention": "sparse"}, "unknown attention 'sparse'"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"samples": 0}, "at least 1 sample"),
        ({"frames": 3}, "takes no 'frames'"),
        ({"stages": ["draw"]}, "has no stage 'draw' for this request; it has prefill, decode"),
        ({"stages": ["decode"], "whole": True}, "whole=True is not possible where only some stages are measured"),
        ({"levers": Levers(execution="compiled"), "whole": True}, "whole=True is not possible with levers"),
    ],
)
def test_bad_input_is_refused_before_anything_is_built(specs, monkeypatch, bad, says):
    monkeypatch.setattr(target, "load", lambda *_a, **_k: pytest.fail("built"))
    with pytest.raises(ValueError, match=says):
        measure(specs["text"], progress=False, **bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(specs):
    with pytest.raises(ValueError, match="sees no CUDA GPU"):
        measure(specs["text"], device="cuda", progress=False)


def test_a_model_too_big_for_memory_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(target, "load", lambda *_a, **_k: pytest.fail("built"))
    monkeypatch.setattr(target, "available_bytes", lambda _device: 16 * 10**9)
    # LLaMA-2 7B has 6.74e9 parameters: 27 GB in float32
    with pytest.raises(
        ValueError, match=r"llama-2-7b needs 2\d(\.\d)? GB in float32 .* cpu has 16 GB free; .*tiny"
    ) as info:
        measure("llama-2-7b", progress=False)
    assert "\n" not in str(info.value)


def test_available_memory_is_known_here():
    assert available_bytes("cpu") > 0


class OddAttention(nn.Module):
    """Attention without a heads dimension, which no fused kernel takes."""

    config = SimpleNamespace(in_channels=4, cross_attention_dim=24)

    def forward(self, sample, _timestep, **_options):
        x = sample.flatten(2)
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on why it has no kernel
def test_attention_that_cannot_be_fused_is_measured_and_told(specs):
    spec = get_spec(specs["image"])
    parts = mmchar.load(specs["image"], device="cpu", dtype="float32").components
    model = Model(spec, {**parts, "unet": OddAttention()}, "cpu", "float32")
    table = measure(model, samples=1, progress=False)
    backends = table[table["attention"] != ""].groupby("stage", observed=True)["backend"].agg(set)
    assert backends.pop("denoise") == {"math"} and all(found <= {"flash", "mem-efficient"} for found in backends)
    told = [line for line in table.attrs["doubts"]["denoise"] if "no fused kernel" in line]
    assert told == ["small-image denoise: no fused kernel takes the attention of 1 rows; the math path ran"]
    assert not any("no fused kernel" in line for line in table.attrs["doubts"]["decode_image"])


class FailingNetwork(OddAttention):
    def forward(self, _sample, _timestep, **_options):
        raise RuntimeError("sizes do not match")


def test_a_stage_that_fails_is_named_with_its_sizes(specs):
    model = Model(get_spec(specs["image"]), {"unet": FailingNetwork()}, "cpu", "float32")
    (stage,) = [each for each in stages(model.spec) if each.name == "denoise"]
    # twice the batch for guidance; 24 x 16 pixels are 12 x 8 of a latent; 7 tokens of width 24
    says = r"failed on cpu in float32 \(0 \(2, 4, 12, 8\), 1 \(\), encoder_hidden_states \(2, 7, 24\)\): sizes do not"
    with attention_backend("flash"), pytest.raises(ValueError, match=says):
        measure_stage(model, stage, Settings(1, 0))


def test_a_stage_that_fails_leaves_the_others_where_that_is_asked_for(monkeypatch):
    break_stage(monkeypatch, "prefill", ValueError("prefill cannot be captured"))
    table = mmchar.measure("llama-2-7b", tiny=True, samples=1, keep_going=True, progress=False)
    assert table.attrs["failed"] == {"prefill": "prefill cannot be captured"}
    assert set(table["stage"]) == set(table.attrs["median_s"]) == {"decode"}
    monkeypatch.setattr(profiling, "is_usable", lambda _device: False)
    with pytest.raises(ValueError, match="cannot be captured; the GPU was left unusable by prefill"):
        mmchar.measure("llama-2-7b", tiny=True, samples=1, keep_going=True, progress=False)
    with pytest.raises(ValueError, match="^prefill cannot be captured$"):
        mmchar.measure("llama-2-7b", tiny=True, samples=1, progress=False)


def test_what_a_gpu_profiler_fails_at_costs_no_timing(monkeypatch):
    def lost(*_given):
        raise RuntimeError("the profiler saw no GPU kernel")

    model = load("llama-2-7b", tiny=True, device="cpu", dtype="float32")
    (stage,) = [each for each in stages(model.spec) if each.name == "prefill"]
    own = stage_runs._profile
    with pytest.raises(ValueError, match="saw no GPU kernel"):
        monkeypatch.setattr(stage_runs, "_profile", lost)
        measure_stage(model, stage, Settings(2, 0))
    model, timed = replace(model, device="cuda"), Measurement((0.5, 0.5), 0, "cuda", "llama prefill")
    monkeypatch.setattr(stage_runs, "preparer", lambda *_given: None)
    idle = {"idle_share": None, "idle": None, "memory": None, "energy_j": None, "doubts": ["idle time is not known"]}
    monkeypatch.setattr(stage_runs, "_extras", lambda *_given, **_more: dict(idle))
    table, facts = measure_stage(model, stage, Settings(2, 0), None, timed)
    assert list(zip(table["op"], table["category"], table["time_s"], strict=True)) == [
        ("unattributed kernels", "Uncounted", 0.5)
    ]
    assert facts["samples"] == [0.5, 0.5] and facts["span_s"] is None
    assert [line for line in facts["doubts"] if "not profiled" in line and "saw no GPU kernel" in line]
    assert "llama prefill: idle time is not known" in facts["doubts"]
    tries = iter([RuntimeError("No available kernel. Aborting execution.")])
    on_cpu = replace(model, device="cpu")

    def no_kernel_at_first(*_given):
        for error in tries:
            raise error
        prompt = realized(stage, on_cpu.components["lm"], device="cpu", dtype="float32")
        return own(on_cpu, stage, lambda: prompt.work(on_cpu.components["lm"]), Levers(), 1)

    monkeypatch.setattr(stage_runs, "_profile", no_kernel_at_first)
    table, facts = measure_stage(model, stage, Settings(2, 0), None, timed)
    assert not [line for line in facts["doubts"] if "not profiled" in line], "tried again with the math path"


def test_energy_is_read_over_executions_that_each_find_an_empty_cache():
    model = load("llama-2-7b", tiny=True, device="cpu", dtype="float32")
    lengths, joules = [], iter([0.0, 6.0])
    model.components["lm"].register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["past_key_values"].get_seq_length()), with_kwargs=True
    )
    plan = {stage.name: stage for stage in stages(model.spec)}
    _, facts = measure_stage(
        model, plan["prefill"], Settings(2, 0), lambda: next(joules), Measurement((0.4, 0.4), 0, "cpu")
    )
    assert facts["energy_j"] == 2.0  # 6 J of as many executions of 0.4 s as take a second: 3
    assert lengths == [0] * len(lengths)
    lengths.clear()
    measure_stage(model, plan["decode"], Settings(2, 0), lambda: 0.0, Measurement((0.4, 0.4), 0, "cpu"))
    assert lengths[-1] > lengths[-2], "a step's cache may grow meanwhile"


def test_only_the_networks_of_the_stages_are_built():
    table = mmchar.measure("stable-diffusion-1.5", tiny=True, samples=1, stages=["encode_text"], progress=False)
    assert list(table.attrs["params"]) == ["text_encoder"]


def test_attention_settings_are_put_back():
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with attention_backend("eager"):
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_on_a_gpu_rows_have_kernels(specs, attention):
    table = measure(specs["text"], device="cuda", attention=attention, samples=2, progress=False)
    cores = table[table["category"] == "Attention"]
    assert table.attrs["dtype"] == "bfloat16"
    assert (cores["kernels"] >= cores["calls"]).all()
    assert (cores["time_s"] > 0).all()
    assert set(cores["backend"]) <= ({"math"} if attention == "eager" else {"flash", "mem-efficient"})
    for covered in table.attrs["coverage"].values():
        assert covered["of_operators"] >= 0.95
