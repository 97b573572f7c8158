"""A step that hits the cache runs what diffusers' own hook runs, and projections know it."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from test_roofline import linear, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mmchar
from mmchar.generation.on_device import realized
from mmchar.generation.programs import plan
from mmchar.projection.parallel.layout import parallelize
from mmchar.projection.planning.step_caching import cache_steps
from mmchar.projection.summary import summarize
from mmchar.tables.totals import executions

FLUX = "flux.1-dev"
TINY = {"dtype": "float32", "tiny": True}


def denoiser(*modules, **more):
    rows = [linear(64, 64, 64, stage="denoise", module=module, repeats=10) for module in modules]
    made = table(linear(8, 8, 8, stage="encode_text"), *rows, linear(8, 8, 8, stage="decode_image"))
    made.attrs = {"model": "m", **more}
    return made


BLOCKS = ("x_embedder", "blocks.0.norm1", "blocks.0.attn.to_q", "blocks.0.norm2", "blocks.1.norm1", "norm_out.linear")


def remaining(cached):
    return cached[cached["stage"] == "denoise_cached"]["module"].tolist()


def test_the_first_block_remains_or_only_its_first_norm():
    whole = denoiser(*BLOCKS)
    assert remaining(cache_steps(whole, "first-block", hit_rate=0.4)) == [*BLOCKS[:4], "norm_out.linear"]
    assert remaining(cache_steps(whole, "teacache", hit_rate=0.4)) == [*BLOCKS[:2], "norm_out.linear"]


def test_hits_and_misses_are_all_steps_and_the_first_is_no_hit():
    for rate, hits in ((0.4, 4), (0.34, 3), (0.99, 9)):
        cached = cache_steps(denoiser(*BLOCKS), "first-block", hit_rate=rate)
        assert executions(cached).to_dict() == {
            "encode_text": 1,
            "denoise": 10 - hits,
            "denoise_cached": hits,
            "decode_image": 1,
        }
    assert list(executions(cache_steps(denoiser(*BLOCKS), "teacache", hit_rate=0.0)).index) == [
        *("encode_text", "denoise", "decode_image")
    ]


@pytest.mark.parametrize(
    ("made", "kind", "rate", "line"),
    [
        (denoiser(*BLOCKS), "magcache", 0.4, "^unknown step cache 'magcache'; choose one of first-block, teacache$"),
        (denoiser(*BLOCKS), "teacache", 1.0, "^hit_rate=1.0 is not a number from 0 to below 1$"),
        (denoiser(*BLOCKS), "teacache", float("nan"), "^hit_rate=nan is not a number"),
        (denoiser("down_blocks.0.conv"), "teacache", 0.4, "^the denoiser of m is no list of blocks"),
        (denoiser("blocks.0", "temporal_transformer_blocks.0"), "teacache", 0.4, "no list of blocks of one kind"),
        (denoiser(*BLOCKS, degrees={"patch": 2}), "teacache", 0.4, "goes with ulysses, ring and cfg, not with patch$"),
        (denoiser(), "teacache", 0.4, "^m denoises nothing"),
    ],
)
def test_what_cannot_be_cached_is_one_line(made, kind, rate, line):
    with pytest.raises(ValueError, match=line):
        cache_steps(made, kind, hit_rate=rate)


@pytest.mark.parametrize("name", [FLUX, "cogvideox-2b", "wan2.1-t2v-1.3b", "hunyuanvideo", "ltx-video-2b", "mochi-1"])
def test_a_hit_runs_what_the_hook_of_diffusers_runs(name):
    cached = cache_steps(mmchar.count(name, **TINY), "first-block", hit_rate=0.5)
    model = mmchar.load(name, device="cpu", **TINY)
    (stage,) = [stage for stage in plan(model.spec, model.spec.resolve(None)) if stage.name == "denoise"]
    denoiser = model.components[stage.component]
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    work = realized(stage, denoiser, device="cpu", dtype="float32").work(denoiser)
    for seen in ("denoise", "denoise_cached"):  # the first fills the cache, the second hits it
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), denoiser.cache_context("cond"), sdpa_kernel(SDPBackend.MATH), counter:
            work()
        assert counter.get_total_flops() == cached[cached["stage"] == seen]["flop"].sum(), seen


def test_a_projection_of_cached_steps_is_shorter_by_the_steps_that_hit():
    whole = mmchar.count(FLUX)
    plain, cached = (
        summarize(mmchar.project(made, gpu="h100-sxm"))
        for made in (whole, cache_steps(whole, "first-block", hit_rate=0.5))
    )
    stages = {row["stage"]: row for row in cached["stages"]}
    assert (stages["denoise"]["repeats"], stages["denoise_cached"]["repeats"]) == (14, 14)
    step_s = next(row["time_s"] for row in plain["stages"] if row["stage"] == "denoise")
    assert stages["denoise"]["time_s"] == pytest.approx(step_s)
    assert stages["denoise_cached"]["time_s"] < 0.1 * step_s  # one block of 57, and what is around them
    assert cached["time_s"] == pytest.approx(plain["time_s"] - 14 * (step_s - stages["denoise_cached"]["time_s"]))


def test_gpus_that_share_the_tokens_skip_blocks_and_their_messages():
    shared = parallelize(mmchar.count(FLUX), ulysses=2)
    cached = cache_steps(shared, "first-block", hit_rate=0.5)
    sent = cached["category"] == "Communication"
    blocks = cached[sent].groupby("stage", observed=True)["module"].nunique()
    assert blocks["denoise_cached"] == 1 and blocks["denoise"] == 57
