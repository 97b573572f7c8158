"""What the levers do to a model and its executions: the same numbers come out, other kernels run, or it is refused."""

import contextlib
import copy
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from samples import one_line
from torch import nn

import mmchar
from mmchar.counting.planned_stages import stages
from mmchar.generation.structure import tensors
from mmchar.measuring.kernels import Kernel
from mmchar.measuring.operator_times import kernel_profiles
from mmchar.measuring.optimization import cuda_graphs, execution
from mmchar.measuring.optimization.chosen_stages import choose_stages, split_guidance
from mmchar.measuring.optimization.execution import (
    apply_levers,
    preparer,
    repeated_blocks,
    with_values,
)
from mmchar.measuring.optimization.ladder import Levers, check_levers
from mmchar.measuring.optimization.static_cache import make_static, rewind
from mmchar.measuring.speculation import find_layers, skipped, time_per_token_s, tokens_per_round
from mmchar.measuring.stage_runs import middle_step
from mmchar.models.loading import get_spec, load
from mmchar.request import Request
from mmchar.tracing.trace import trace

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao: pip install mmchar[quantize]")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


@pytest.fixture(scope="module")
def llama():
    return load("llama-2-7b", tiny=True, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def diffusion():
    return load("stable-diffusion-1.5", tiny=True, device="cpu", dtype="float32")


def stage_of(model, name):
    (stage,) = [stage for stage in stages(model.spec) if stage.name == name]
    return with_values(model, stage.at(middle_step(stage)))


def output(work):
    with torch.inference_mode():
        return work()[0]


def eager_output(model, stage):
    return output(preparer(model, stage, Levers())())


@pytest.mark.parametrize(
    ("levers", "says"),
    [
        (Levers(execution="graphs"), "'graphs' needs an NVIDIA GPU; on a cpu use eager or compiled"),
        (Levers(execution="compiled-graphs"), "'compiled-graphs' needs an NVIDIA GPU"),
        (Levers(quantization="fp8-dynamic"), "compute capability 8.9|pip install 'mmchar\\[quantize\\]'"),
    ],
)
def test_levers_that_a_cpu_cannot_pull_are_refused_before_anything_is_built(monkeypatch, levers, says):
    from mmchar.measuring import target

    monkeypatch.setattr(target, "load", lambda *_a, **_k: pytest.fail("built"))
    with pytest.raises(ValueError, match=says) as caught:
        mmchar.measure("llama-2-7b", tiny=True, levers=levers, progress=False)
    one_line(caught)


def test_quantization_needs_its_package(monkeypatch):
    monkeypatch.setattr("mmchar.measuring.optimization.ladder.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torchao: pip install 'mmchar\[quantize\]'"):
        check_levers(Levers(quantization="int8-dynamic"), device="cpu")


def test_stages_are_chosen_by_name(diffusion):
    plan = stages(diffusion.spec)
    assert [stage.name for stage in choose_stages(plan, ["decode_image", "denoise"], model="sd")] == [
        "denoise",
        "decode_image",
    ]
    with pytest.raises(ValueError, match="sd has no stage 'decode' for this request; it has encode_text, denoise"):
        choose_stages(plan, ["decode"], model="sd")


def test_split_guidance_halves_the_batch_and_doubles_the_executions():
    spec = get_spec("stable-diffusion-1.5", tiny=True)
    full = spec.resolve(Request(batch=3))
    before, after = stages(spec, full), split_guidance(stages(spec, full), full, model="sd")
    assert [stage.name for stage in after] == [stage.name for stage in before]
    batches = {stage.name: (stage.sizes["0"][0], stage.repeats) for stage in after}
    steps = {stage.name: stage.repeats for stage in before}
    # the prompts and the empty prompts are encoded one after the other, 3 each
    assert batches == {"encode_text": (3, 2), "denoise": (3, 2 * steps["denoise"]), "decode_image": (3, 1)}
    assert {stage.name: stage.sizes["0"][0] for stage in before}["denoise"] == 6
    unguided = spec.resolve(Request(guidance=1.0))
    with pytest.raises(ValueError, match="cfg 'split' is not possible"):
        split_guidance(stages(spec, unguided), unguided, model="sd")


@pytest.mark.parametrize("name", ["sdxl-base-1.0", "animatediff-v1.5.2", "cogvideox-2b", "pixart-sigma-1024"])
def test_two_halves_of_a_guided_step_do_what_the_whole_does(name):
    model = load(name, tiny=True)
    full = model.spec.resolve(Request(batch=3))
    plans = stages(model.spec, full), split_guidance(stages(model.spec, full), full, model=name)
    flop = []
    for (stage,) in ([stage for stage in plan if stage.name == "denoise"] for plan in plans):
        network = model.components[stage.component]
        flop.append(stage.repeats * sum(row.flop for row in trace(network, stage.work(network))))
    assert flop[0] == flop[1] > 0


def test_channels_last_and_fused_qkv_compute_the_same(diffusion):
    stage = stage_of(diffusion, "denoise")
    levers = Levers(channels_last=True, fused_qkv=True)
    changed, done = apply_levers(diffusion, levers, [stage], own=False)
    weights = [
        m.weight for m in changed.components["unet"].modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert done["unet"]["channels_last"] > 10 and done["unet"]["fused_qkv"] > 2
    assert changed.components["unet"] is not diffusion.components["unet"], "what was given stays as it is"
    assert not any(getattr(m, "fused_projections", False) for m in diffusion.components["unet"].modules())
    want = eager_output(diffusion, stage)
    torch.testing.assert_close(output(preparer(changed, stage, levers)()), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lever", [{"channels_last": True}, {"fused_qkv": True}])
def test_a_lever_that_finds_nothing_to_change_is_refused(llama, lever):
    with pytest.raises(ValueError, match="is not possible: there is no .* in lm of llama-2-7b") as caught:
        apply_levers(llama, Levers(**lever), stages(llama.spec), own=True)
    one_line(caught)


def test_repeated_blocks_are_those_that_the_library_names(llama, diffusion):
    assert {type(b).__name__ for b in repeated_blocks(llama.components["lm"])} == {"LlamaDecoderLayer"}
    assert len(repeated_blocks(llama.components["lm"])) == llama.components["lm"].config.num_hidden_layers
    assert {type(b).__name__ for b in repeated_blocks(diffusion.components["unet"])} == {"BasicTransformerBlock"}
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2))) == []


@pytest.mark.parametrize("name", ["llama-2-7b", "chameleon-7b", "seamless-m4t-v2-large", "llama-3.2-11b-vision"])
def test_a_static_cache_gives_the_same_token_and_can_be_rewound(name):
    model = load(name, tiny=True, device="cpu", dtype="float32")
    stage = stage_of(model, "decode")
    want = eager_output(model, stage)
    args, kwargs = held = stage.call.copied()
    assert make_static(held, room=7, growing=stage.growth.layers) > 0

    def work():
        return stage.called(model.components[stage.component])(*args, **kwargs)

    torch.testing.assert_close(output(work), want, rtol=1e-4, atol=1e-4)
    second = output(work)  # one token further
    rewind(held)
    torch.testing.assert_close(output(work), want, rtol=1e-4, atol=1e-4)
    if name == "llama-2-7b":
        assert not torch.equal(second, want), "one more token is in the cache"


@pytest.mark.parametrize("name", ["prefill", "decode"])  # a cache that is empty, and one that is made static
def test_an_execution_is_captured_once_and_every_replay_starts_from_the_same_cache(monkeypatch, llama, name):
    captures = []

    def capture(work, rewind, device):
        rewind()
        captures.append(device)
        return work  # a replay does what was captured

    monkeypatch.setattr(execution, "capture", capture)
    stage = stage_of(llama, name)
    want = eager_output(llama, stage)
    prepare = preparer(llama, stage, Levers(execution="graphs"))
    for _ in range(3):
        torch.testing.assert_close(output(prepare()), want, rtol=1e-4, atol=1e-4)
    assert captures == ["cpu"]


class FakeGraph:
    """Stands for a CUDA graph, its streams and its capture; what happens is written down."""

    def __init__(self, monkeypatch, breaks=None):
        self.diary, self.mode, self.breaks = [], "default", breaks
        for name in ("device", "stream"):
            monkeypatch.setattr(torch.cuda, name, lambda _which: contextlib.nullcontext())
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda _other: None))
        monkeypatch.setattr(
            torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.diary.append("replay"))
        )
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: "default")
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))

    @contextlib.contextmanager
    def capture(self, _graph):
        self.diary.append("capture")
        try:
            yield
        finally:
            if self.breaks:
                raise RuntimeError(self.breaks)


def test_a_capture_is_rehearsed_without_waiting_and_replayed(monkeypatch):
    gpu = FakeGraph(monkeypatch)
    replay = cuda_graphs.capture(
        lambda: gpu.diary.append(gpu.mode) or "out", lambda: gpu.diary.append("rewind"), "cuda"
    )
    assert gpu.diary == ["rewind", "default"] * 3 + ["rewind", "error", "rewind", "capture", "default"]
    assert replay() == "out" and gpu.diary[-1] == "replay"


def test_what_waits_for_the_gpu_is_not_captured_and_says_where_it_does(monkeypatch):
    gpu = FakeGraph(monkeypatch)

    def work():
        if gpu.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match=r"waits for the GPU at test_execution\.py, line \d+"):
        cuda_graphs.capture(work, lambda: None, "cuda")
    assert (gpu.diary, gpu.mode) == ([], "default"), "no capture was begun, so this process can go on"


def test_a_capture_that_breaks_off_says_why_and_not_how_it_ended(monkeypatch):
    gpu = FakeGraph(monkeypatch, breaks="CUDA error: operation failed due to a previous error during capture")

    def work():
        if gpu.diary:
            raise RuntimeError("no stream for this")

    with pytest.raises(RuntimeError, match="no CUDA graph can be captured of it: no stream for this"):
        cuda_graphs.capture(work, lambda: None, "cuda")


def test_a_graph_of_chameleon_needs_no_copy_of_the_tokens_that_it_masks():
    model = load("chameleon-7b", tiny=True, device="cpu", dtype="float32")
    stage = stage_of(model, "decode")
    want = eager_output(model, stage)
    apply_levers(model, Levers(execution="graphs"), [stage], own=True)
    assert isinstance(model.components["lm"].model.vocabulary_mapping.image_tokens, torch.Tensor)
    assert torch.equal(eager_output(model, stage), want)


def test_quantized_and_compiled_has_the_settings_that_torchao_recommends_and_leaves_none():
    import torch._inductor.config as inductor

    with execution.compiling(Levers(execution="compiled", quantization="int8-weight-only")):
        assert inductor.coordinate_descent_tuning and inductor.force_fuse_int_mm_with_mul
    assert not inductor.coordinate_descent_tuning
    with execution.compiling(Levers(execution="compiled")):
        assert not inductor.coordinate_descent_tuning


def filled_cache(*, layers, tokens):
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(layers):
        cache.update(torch.randn(2, 2, tokens, 4), torch.randn(2, 2, tokens, 4), layer)
    return cache


def test_rewinding_tells_what_is_read_next():
    from transformers.cache_utils import EncoderDecoderCache

    both = EncoderDecoderCache(filled_cache(layers=3, tokens=5), filled_cache(layers=3, tokens=9))
    held = ((), {"past_key_values": both})
    assert make_static(held, room=4) == 3
    before = rewind(held)
    both.reorder_cache(torch.tensor([1, 0]))  # as a beam search does
    assert len({type(layer) for layer in both.self_attention_cache.layers}) == 1, "they would be compiled several times"
    assert [layer.keys.shape[-2] for layer in both.self_attention_cache.layers] == [9, 9, 9]  # 5 tokens and room for 4
    assert len(before) == 4 * 3  # keys and values of both caches
    assert not {id(part) for part in before} & {id(part) for part in rewind(held)}, "they were exchanged"


def test_a_cache_that_is_not_static_is_rewound_to_what_it_was():
    cache, was = filled_cache(layers=2, tokens=3), filled_cache(layers=2, tokens=3)
    cache.update(torch.randn(2, 2, 1, 4), torch.randn(2, 2, 1, 4), 1)
    rewind([cache], [was])
    assert [layer.keys.shape[-2] for layer in cache.layers] == [3, 3]
    assert all(a is b for a, b in zip(tensors(cache), tensors(was), strict=True))
    cache.update(torch.randn(2, 2, 1, 4), torch.randn(2, 2, 1, 4), 1)
    assert was.layers[1].keys.shape[-2] == 3, "what it is rewound to stays as it is"


def test_a_cache_of_another_kind_has_no_static_form():
    cache = filled_cache(layers=1, tokens=3)
    cache.layers[0] = copy.copy(cache.layers[0])
    cache.layers[0].__class__ = type("OddLayer", (type(cache.layers[0]),), {})
    with pytest.raises(ValueError, match="no static KV cache for layers of kind OddLayer"):
        make_static([cache], room=2)


def test_speculation_formulas():
    # 4 drafted tokens, each accepted with 0.8: 1 + 0.8 + 0.64 + 0.512 + 0.4096 = 3.3616
    assert tokens_per_round(0.8, 4) == pytest.approx(3.3616)
    assert (tokens_per_round(0, 4), tokens_per_round(1, 4)) == (1, 5)
    # (4 * 5 ms + 11 ms) / 3.3616
    assert time_per_token_s(0.005, 0.011, acceptance=0.8, draft_tokens=4) == pytest.approx(0.031 / 3.3616)


def test_a_draft_leaves_layers_out_and_puts_them_back(llama):
    lm = llama.components["lm"]
    layers = list(find_layers(lm))
    with skipped(lm, 2) as kept:
        assert kept == len(find_layers(lm)) == len(layers) - len(layers) // 2
        assert find_layers(lm)[0] is layers[0], "the first stays: it knows the length of the cache"
    assert list(find_layers(lm)) == layers


def test_self_speculation_is_measured_in_steps_and_marked_as_projected(llama):
    levers = Levers(layer_skip=2, acceptance=0.5, draft_tokens=3)
    table = mmchar.measure(llama, Request(new_tokens=5), samples=2, levers=levers, progress=False)
    assert table.attrs["speculation"]["prefill"] is None
    found = table.attrs["speculation"]["decode"]
    assert found["draft_layers"] < found["layers"]
    # 1 + 0.5 + 0.25 + 0.125 tokens per round
    want = (3 * found["draft_s"] + found["verify_s"]) / 1.875
    assert found["time_per_token_s"] == pytest.approx(want)
    assert "projected" in found["time_kind"] and found["acceptance"] == 0.5
    with pytest.raises(ValueError, match="no stage of stable-diffusion-1.5 decodes"):
        mmchar.measure("stable-diffusion-1.5", tiny=True, levers=levers, progress=False)


def test_kernels_without_a_known_name_are_one_amount_beside_the_rows():
    one = [Kernel("nvjet_a", 0, 2), Kernel("odd", 2, 3), Kernel("nvjet_a", 4, 5), Kernel("strange", 5, 7)]
    two = [Kernel("nvjet_a", 0, 2), Kernel("triton_poi_fused_add_3", 2, 3)]
    first, second = kernel_profiles([one, two], on_gpu=True)
    assert [(row.op, row.category, row.calls) for row in first.rows] == [
        ("nvjet_a", "Linear", 2),
        ("triton_poi_fused_add", "Elementwise", 0),
    ]
    assert (first.time_s, first.kernels, first.other_s, first.other_kernels) == ([3, 0], [2, 0], 3, 2)
    assert (second.time_s, second.rows == first.rows, second.other_s) == ([2, 1], True, 0)


@needs_torchao
@pytest.mark.parametrize("scheme", ["int8-weight-only", "int8-dynamic", "fp8-weight-only"])
def test_quantized_layers_run_and_are_counted(llama, scheme):
    stage = stage_of(llama, "decode")
    changed, done = apply_levers(llama, Levers(quantization=scheme), [stage], own=False)
    linears = [m for m in llama.components["lm"].modules() if isinstance(m, nn.Linear)]
    fits = [m for m in linears if m.in_features % 16 == 0 and m.out_features % 16 == 0]
    assert done == {"lm": {"quantized": len(fits)}} and 0 < len(fits) < len(linears)
    want, got = (eager_output(model, stage) for model in (llama, changed))
    assert not torch.equal(got, want), "the weights were rounded"
    assert torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.9
    table = mmchar.measure(llama, samples=1, levers=Levers(quantization=scheme), stages=["decode"], progress=False)
    assert set(table["module_type"]) == {"kernel"}
    assert table.attrs["changed"]["decode"] == done["lm"]
    assert table.attrs["coverage"]["decode"]["of_operators"] >= 0.95


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("how", ["compiled", "compiled-full"])
def test_compiled_steps_are_timed_and_attributed_by_kernel(how):
    model = load("seamless-m4t-v2-large", tiny=True, device="cpu", dtype="float32")
    stage, levers = stage_of(model, "decode"), Levers(execution=how)
    want = eager_output(model, stage)
    changed, done = apply_levers(model, levers, [stage], own=False)
    with execution.compiling(levers) as counts, torch.inference_mode():
        first = preparer(changed, stage, levers)()()[0]
        again = preparer(changed, stage, levers)()()[0]
    torch.testing.assert_close(first, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again, want, rtol=1e-3, atol=1e-3)
    assert counts["graphs"] >= 1 and counts["graph_breaks"] == 0
    assert bool(done) == (how == "compiled")
    table = mmchar.measure(model, samples=2, levers=levers, stages=["decode"], progress=False)
    assert set(table["module_type"]) == {"kernel"}
    assert any("cpp_fused" in op for op in table["op"])
    assert table.attrs["compiled"]["decode"]["graphs"] == counts["graphs"], "one compilation serves every execution"
    assert table.attrs["coverage"]["decode"]["of_operators"] >= 0.95
    assert not any(getattr(m, "_compiled_call_impl", None) for m in model.components["model"].modules())


@needs_compiler
def test_being_compiled_over_and_over_is_an_error_and_not_eager():
    levers = Levers(execution="compiled-full")
    limit = torch._dynamo.exc.FailOnRecompileLimitHit("limit reached")
    with pytest.raises(ValueError, match="compiled over and over"), execution.compiling(levers):
        raise limit


def test_a_component_without_repeated_blocks_is_in_doubt(monkeypatch, llama):
    from mmchar.measuring import profiling

    def nothing(model, levers, plan, *, own):
        return model, {"lm": {"compiled_blocks": 0}}

    monkeypatch.setattr(profiling, "apply_levers", nothing)
    levers = Levers(execution="compiled")
    table = mmchar.measure(llama, samples=1, levers=levers, stages=["prefill"], progress=False)
    assert any("nothing was compiled" in line for line in table.attrs["doubts"]["prefill"])


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["graphs", "compiled", "compiled-full", "compiled-graphs"])
@pytest.mark.parametrize("name", ["llama-2-7b", "stable-diffusion-1.5"])
def test_on_a_gpu_every_execution_runs_and_its_kernels_are_known(name, how):
    stage = "decode" if name == "llama-2-7b" else "denoise"
    table = mmchar.measure(
        name, device="cuda", tiny=True, samples=3, levers=Levers(execution=how), stages=[stage], progress=False
    )
    assert table["kernels"].sum() > 0
    assert table.attrs["idle"][stage]["kernels"] > 0
    assert 0 <= table.attrs["idle_share"][stage] < 1
    assert table.attrs["coverage"][stage]["of_operators"] >= 0.95


@pytest.mark.gpu
def test_on_a_gpu_a_replay_repeats_the_same_token():
    model = load("llama-2-7b", tiny=True, device="cuda", dtype="float32")
    stage = stage_of(model, "decode")
    want = eager_output(model, stage)
    prepare = preparer(model, stage, Levers(execution="graphs"))
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(prepare()()[0], want, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_torchao
@pytest.mark.parametrize("scheme", ["int8-weight-only", "int8-dynamic", "fp8-weight-only", "fp8-dynamic"])
def test_on_a_gpu_quantized_models_run(scheme):
    table = mmchar.measure(
        "llama-2-7b", device="cuda", tiny=True, samples=2, levers=Levers(quantization=scheme), progress=False
    )
    assert table["kernels"].sum() > 0
