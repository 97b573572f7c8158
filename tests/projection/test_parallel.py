"""Several GPUs: bytes and FLOPs by hand, what is conserved, and what the project says of it."""

import numpy as np
import pandas as pd
import pytest
from test_roofline import core, linear, table

import mmchar
from mmchar.projection.columns import columns_of
from mmchar.projection.communication import Interconnect, message_s
from mmchar.projection.data_sheets import get_gpu
from mmchar.projection.energy_model import Power, energy_j
from mmchar.projection.parallel.layout import Degrees, parallelize
from mmchar.projection.roofline import project
from mmchar.projection.scaling import count_batch
from mmchar.projection.summary import summarize, summarize_memory

PIXART, SD35, FLUX, SDXL, LLAMA = "pixart-sigma-1024", "sd3.5-medium", "flux.1-dev", "sdxl-base-1.0", "llama-2-7b"
SUMS = ["flop", "read_bytes", "write_bytes"]


def count(model, **request):
    return mmchar.count(model, mmchar.Request(**request) if request else None)


def denoising(rows):
    return rows[rows["stage"].astype(str).str.startswith("denoise")]


def messages(rows, op=None):
    sent = rows[rows["category"] == "Communication"]
    return sent if op is None else sent[sent["op"] == op]


def cores(rows, kind):
    return rows[(rows["attention"] == kind) & (rows["q_len"] > 0) & (rows["category"] == "Attention")]


# degrees


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"gpus": 8, "ulysses": 4}, "gpus=8, but ulysses 4 makes 4; give degrees that multiply to 8"),
        ({"gpus": 4}, "gpus=4, but no degree above 1 makes 1"),
        ({"gpus": 0}, "gpus=0 is not a whole number of 1 or more"),
        ({"ring": 2.0}, "ring=2.0 is not a whole number"),
        ({"ulysses": True}, "ulysses=True is not a whole number"),
        ({"cfg": 3}, "guidance has two halves"),
        ({"ulysses": 2, "pipefusion": 2}, "pipefusion and ulysses or ring do not go together"),
    ],
)
def test_bad_degrees_are_refused(degrees, message):
    with pytest.raises(ValueError, match=message):
        Degrees(**degrees)


@pytest.mark.parametrize(
    ("model", "degrees", "message"),
    [
        (PIXART, {"ulysses": 3}, "ulysses=3 does not divide the 16 heads"),
        (PIXART, {"ring": 3}, "ulysses x ring = 3 does not divide the 4096 image tokens"),
        (PIXART, {"pipefusion": 29}, "pipefusion=29"),
        (PIXART, {"tensor": 2}, "has no language model to split"),
        (SDXL, {"ulysses": 2}, "does not attend over the image as one sequence; share it with patch"),
        (SDXL, {"pipefusion": 2}, "no chain of equal blocks; use patch"),
        (LLAMA, {"tensor": 3}, "tensor=3 does not divide the 32 heads"),
        (LLAMA, {"ulysses": 2}, "denoises nothing"),
        (LLAMA, {"cfg": 2}, "cfg=2 needs guidance above 1"),
    ],
)
def test_degrees_that_do_not_fit_the_model_are_refused(model, degrees, message):
    with pytest.raises(ValueError, match=message):
        parallelize(count(model), **degrees)


# sequence parallelism


def test_ulysses_of_flux_sends_three_quarters_of_every_tensor():
    # 4096 image and 512 text tokens, both shared by 4: 1152 tokens of 24 heads x 128 x 2 bytes = 7_077_888 bytes
    # q, k, v and out, each sends 3/4: 4 * 5_308_416 = 21_233_664 bytes in each of 19 + 38 = 57 cores
    alone = count(FLUX)
    shared = denoising(parallelize(alone, gpus=4, ulysses=4))
    sent = messages(shared)
    assert set(sent["op"]) == {"all_to_all"} and set(sent["overlap"]) == {"none"} and set(sent["peers"]) == {3}
    assert len(sent) == 57 and set(sent["calls"]) == {4}
    assert set(sent["write_bytes"]) == {21_233_664} and (sent["read_bytes"] == sent["write_bytes"]).all()
    attend = cores(shared, "joint")
    assert set(zip(attend["heads"], attend["q_len"], attend["kv_len"], strict=True)) == {(6, 4608, 4608)}
    assert 4 * attend["flop"].sum() == cores(denoising(alone), "joint")["flop"].sum()


def test_a_ring_passes_its_keys_on_and_merges_what_it_attends():
    # 4096 tokens shared by 4: k and v of 2 x 1024 x 1152 x 2 bytes = 4_718_592 each, passed on 3 times
    alone = count(PIXART)
    shared = denoising(parallelize(alone, ring=4))
    sent = messages(shared)
    assert len(sent) == 28 and set(sent["op"]) == {"send_recv"} and set(sent["overlap"]) == {"attention"}
    assert set(sent["calls"]) == {3} and set(sent["write_bytes"]) == {2 * 4_718_592 * 3}
    attend = cores(shared, "self")
    assert set(attend["q_len"]) == set(attend["kv_len"]) == {1024} and set(attend["heads"]) == {16}
    assert attend.groupby("module", observed=True)["calls"].sum().eq(4).all()
    assert 4 * attend["flop"].sum() == cores(denoising(alone), "self")["flop"].sum()
    # out and block in float32 are 2 x 1024 x 1152 x 4 = 9_437_184 bytes; 3 merges of 3 operators read two, write one
    first = shared[(shared["op"] == "sub") & (shared["category"] == "Elementwise")].iloc[0]
    assert (first["calls"], first["read_bytes"], first["write_bytes"]) == (9, 9 * 2 * 9_437_184, 9 * 9_437_184)


def test_each_step_of_a_ring_reads_its_part_of_the_mask():
    alone = denoising(mmchar.count("hunyuanvideo", tiny=True))
    shared = denoising(parallelize(mmchar.count("hunyuanvideo", tiny=True), ring=4))
    whole, parts = (cores(rows, "joint").groupby("module", observed=True)["mask_bytes"] for rows in (alone, shared))
    assert (whole.sum() > 0).all() and (whole.sum() == parts.sum()).all()
    later = cores(shared, "joint").query("calls == 3").iloc[0]  # 16 queries and 16 keys of 2 bytes, and the mask
    width = later["batch"] * later["heads"] * later["head_dim"] * 2 * 3
    assert later["read_bytes"] == width * (16 + 2 * 16) + later["mask_bytes"]


def test_ulysses_and_ring_together():
    shared = denoising(parallelize(count(PIXART), gpus=8, ulysses=4, ring=2))
    attend = cores(shared, "self")
    assert set(zip(attend["heads"], attend["q_len"], attend["kv_len"], strict=True)) == {(4, 2048, 2048)}
    # 512 tokens x 2 x 1152 x 2 bytes, q, k, v, out, 3/4 of each
    assert set(messages(shared, "all_to_all")["write_bytes"]) == {4 * 512 * 2 * 1152 * 2 * 3 // 4}
    # k and v of 2048 tokens and 4 of 16 heads, once
    assert set(messages(shared, "send_recv")["write_bytes"]) == {2 * 2048 * 2 * (1152 // 4) * 2}


def test_text_that_gpus_do_not_divide_is_on_each_of_them_whole():
    # 77 + 256 = 333 tokens of text; their queries go through the all-to-all of each of 8 GPUs: 4096 + 8 * 333 = 6760
    shared = denoising(parallelize(count(SD35), ulysses=8))
    attend = cores(shared, "joint")
    assert set(zip(attend["q_len"], attend["kv_len"], attend["heads"], strict=True)) == {(6760, 4429, 3)}
    # q and out of 512 + 333 tokens, k and v of 512 (the text's are there already); 2 x 24 x 64 x 2 bytes, 7/8
    want = (2 * (512 + 333) + 2 * 512) * 2 * 24 * 64 * 2 * 7 // 8
    assert set(messages(shared[shared["module"].isin(attend["module"])])["write_bytes"]) == {want}
    alone = count(SD35)
    text = denoising(alone)["module"].astype(str).str.contains("add_q_proj|context_embedder")
    assert denoising(alone)[text]["flop"].sum() == shared[shared["module"].astype(str).str.contains(
        "add_q_proj|context_embedder")]["flop"].sum()  # fmt: skip


def test_what_belongs_to_the_image_is_shared_and_the_rest_is_not():
    # by module names, which the sharing itself does not look at: conditioning, caption, keys and values of the text
    full = parallelize(count(PIXART), ulysses=4)
    products = [rows[rows["category"].isin(("Linear", "Convolution"))] for rows in (denoising(count(PIXART)), full)]
    alone, same = (rows.reset_index(drop=True) for rows in (products[0], denoising(products[1])))
    assert (alone["module"].astype(str) == same["module"].astype(str)).all()
    whole = alone["module"].astype(str).str.contains(r"adaln|caption|attn2\.to_[kv]$")
    assert (same["flop"][whole] == alone["flop"][whole]).all() and whole.any()
    assert (4 * same["flop"][~whole] == alone["flop"][~whole]).all() and not whole.all()
    # a product's weights are read whole: 1152 x 1152 + 1152 of bfloat16; its 2 x 1024 x 1152 inputs are a quarter
    to_q = same[same["module"] == "transformer_blocks.0.attn1.to_q"].iloc[0]
    assert to_q["read_bytes"] == 2 * (2 * 1024 * 1152 + 1152 * 1152 + 1152)
    assert to_q["write_bytes"] == 2 * 2 * 1024 * 1152
    crossed = cores(full, "cross").iloc[0]  # every GPU has the keys of the text
    assert (crossed["q_len"], crossed["kv_len"], crossed["heads"]) == (1024, 300, 16)


def test_other_stages_run_whole_on_every_gpu():
    alone, shared = count(PIXART), parallelize(count(PIXART), ulysses=2)
    for stage in ("encode_text", "decode_image"):
        here, there = (rows[rows["stage"] == stage][SUMS].sum() for rows in (alone, shared))
        assert (here == there).all()
    assert list(shared["stage"].unique()) == list(alone["stage"].unique())
    assert shared.attrs["gpus"] == 2 and "gpus" not in alone.attrs


def test_sharing_among_one_changes_nothing():
    alone = count(PIXART)
    assert (parallelize(alone, gpus=1)[SUMS].to_numpy() == alone[SUMS].to_numpy()).all()


# guidance, layers, patches, weights


def test_halves_of_guidance_run_apart_and_exchange_their_predictions():
    alone, shared = count(PIXART), parallelize(count(PIXART), cfg=2)
    assert 2 * denoising(shared)["flop"].sum() == denoising(alone)["flop"].sum()
    sent = messages(shared)
    # 4096 tokens of 2 x 2 x 8 channels in bfloat16
    assert sent["write_bytes"].tolist() == [4096 * 32 * 2] and sent["op"].tolist() == ["all_gather"]
    both = parallelize(alone, gpus=8, cfg=2, ulysses=4)
    assert messages(both, "all_gather")["write_bytes"].tolist() == [1024 * 32 * 2]


def test_sequential_guidance_runs_half_as_often():
    alone = count("wan2.1-t2v-1.3b", height=256, width=256, frames=5, steps=2)
    shared = parallelize(alone, cfg=2)
    assert set(denoising(alone)["repeats"]) == {4} and set(denoising(shared)["repeats"]) == {2}


def test_a_half_without_a_prompt_that_is_not_padded_is_waited_for():
    alone = count("qwen-image", height=256, width=256, prompt_tokens=40, steps=2)
    assert list(denoising(alone)["stage"].unique()) == ["denoise", "denoise_variant_2"]
    shared = parallelize(alone, cfg=2)
    assert list(denoising(shared)["stage"].unique()) == ["denoise"]
    # 16 x 16 patches and 40 tokens with a prompt; the half without one is smaller, and ends before
    assert set(cores(denoising(shared), "joint")["q_len"]) == {16 * 16 + 40}
    kept, whole = ((rows["flop"] * rows["repeats"]).sum() for rows in (denoising(shared), denoising(alone)))
    assert whole / 2 < kept < whole


def test_three_forwards_are_no_two_halves():
    sizes = {"height": 64, "width": 64, "frames": 5, "steps": 2}
    with pytest.raises(ValueError, match="guidance of open-sora-2-11b is not two halves"):
        parallelize(count("open-sora-2-11b", **sizes), cfg=2)


def test_text_that_does_not_follow_the_prompt_stays_whole_on_every_gpu():
    # the empty prompt has 5 tokens, which 5 GPUs would divide, but they are no part of what grows with the prompt
    shared = parallelize(count("qwen-image", height=320, width=256, prompt_tokens=40, steps=2), ring=5)
    attend = cores(denoising(shared), "joint")
    lengths = {name: set(attend["q_len"][attend["stage"] == name]) for name in ("denoise", "denoise_variant_2")}
    # 20 x 16 patches and 40 tokens on five GPUs; patches alone on five, and 5 tokens on each
    assert lengths == {"denoise": {360 // 5}, "denoise_variant_2": {320 // 5 + 5}}


def test_pipefusion_holds_a_share_of_the_blocks_and_sends_activations():
    alone = count(FLUX)
    shared = denoising(parallelize(alone, pipefusion=4))
    steady, warm = shared[shared["step"] == 1], shared[shared["step"] == 0]
    assert set(steady["repeats"]) == {27} and set(warm["repeats"]) == {1}
    # 57 blocks on 4 GPUs are at most 15; 15 of the first 19 are double ones
    assert steady["module"].astype(str).str.extract(r"^(\w+\.\d+)\.")[0].nunique() == 15
    block = "transformer_blocks.3."
    here, there = (rows[rows["module"].astype(str).str.startswith(block)] for rows in (steady, denoising(alone)))
    attend = cores(here, "joint").iloc[0]
    assert (attend["q_len"], attend["kv_len"], attend["calls"]) == (1152, 4608, 4)
    assert attend["flop"] == cores(there, "joint")["flop"].item()
    # weights of a product once per patch: (3072 + 1) * 3072 numbers, inputs of 4096 tokens in all
    to_q = here[here["module"] == f"{block}attn.to_q"].iloc[0]
    assert to_q["read_bytes"] == 2 * (4096 * 3072 + 4 * (3072 + 1) * 3072)
    sent = messages(steady).iloc[0]
    assert (sent["calls"], sent["write_bytes"], sent["overlap"]) == (4, 4608 * 3072 * 2, "stage")
    assert messages(warm)["overlap"].tolist() == ["none"]
    weights = parallelize(alone, pipefusion=4).attrs["params"]
    assert weights["transformer"] == -(-alone.attrs["params"]["transformer"] // 4)
    assert weights["vae"] == alone.attrs["params"]["vae"]


def test_distrifusion_gathers_keys_edges_and_statistics_behind_the_step():
    alone = count(SDXL)
    shared = denoising(parallelize(alone, patch=4))
    warm, steady = (shared[shared["repeats"] == many] for many in (4, 46))
    assert set(messages(steady)["overlap"]) == {"stage"} and set(messages(warm)["overlap"]) == {"none"}
    # 4096 tokens at the second level: k and v of 2 x 1024 x 640 in bfloat16 to 3 others
    one = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    gathered = messages(steady[steady["module"] == one])
    assert gathered["write_bytes"].tolist() == [2 * 2 * 1024 * 640 * 2 * 3]
    attend = steady[(steady["module"] == one) & (steady["q_len"] > 0)].iloc[0]
    assert (attend["q_len"], attend["kv_len"]) == (1024, 4096)
    # rows above and below: of [2, 4, 128, 128], of [2, 320, 128, 128] and, before a stride of 2, of the same
    for module, channels in (
        ("conv_in", 4),
        ("down_blocks.0.resnets.0.conv1", 320),
        ("down_blocks.0.downsamplers.0.conv", 320),
    ):
        assert messages(steady[steady["module"] == module])["write_bytes"].tolist() == [2 * 2 * channels * 128 * 2], (
            module
        )
    # a 1 x 1 convolution needs no neighbours
    assert messages(steady[steady["module"] == "up_blocks.0.resnets.0.conv_shortcut"]).empty
    # means and inverse deviations of 32 groups of 2 images, bfloat16, to 3 others
    norm = messages(steady[steady["module"] == "down_blocks.0.resnets.0.norm1"])
    assert norm["write_bytes"].tolist() == [2 * 2 * 32 * 2 * 3]
    # FLOPs are shared, but for text, time, and keys of the text
    here, there = (rows[(rows["op"] == "convolution")]["flop"].sum() for rows in (steady, denoising(alone)))
    assert 4 * here == there


def test_steps_of_a_stage_are_counted_once_however_they_are_split():
    shared = summarize(project(parallelize(count(SDXL), patch=4), gpu="h100-sxm"))
    stage = next(part for part in shared["stages"] if part["stage"] == "denoise")
    assert stage["repeats"] == 50


def test_tensor_parallel_language_model_by_hand():
    alone = count(LLAMA)
    shared = parallelize(alone, tensor=4)
    # the output of attention and of the MLP, 512 x 4096 in bfloat16, all-reduced: 2 * 3/4 of it, in each of 32 layers
    reduced = messages(shared[shared["stage"] == "prefill"])
    assert len(reduced) == 64 and set(reduced["write_bytes"]) == {2 * 3 * 512 * 4096 * 2 // 4}
    rows = shared[shared["stage"] == "prefill"].set_index("module")
    q, down = rows.loc["model.layers.0.self_attn.q_proj"], rows.loc["model.layers.0.mlp.down_proj"]
    assert (q["read_bytes"], q["write_bytes"]) == (2 * (512 * 4096 + 4096 * 1024), 2 * 512 * 1024)
    down = down[down["op"] == "linear"].iloc[0]
    assert (down["read_bytes"], down["write_bytes"]) == (2 * (512 + 4096) * (11008 // 4), 2 * 512 * 4096)
    attend = shared[(shared["stage"] == "decode") & (shared["q_len"] > 0)]
    assert set(attend["heads"]) == {8}
    layers = [part["module"].astype(str).str.contains(r"layers\.\d+\..*_proj$") for part in (shared, alone)]
    split = [
        part[here & (part["op"] == "linear")]["flop"].sum() for part, here in zip((shared, alone), layers, strict=True)
    ]
    assert 4 * split[0] == split[1]
    # embedding, norms and the last projection are whole on each GPU
    assert (shared.query("module == 'lm_head'")["flop"].sum()) == (alone.query("module == 'lm_head'")["flop"].sum())
    assert shared.attrs["params"]["lm"] == alone.attrs["params"]["lm"] / 4


# time


def test_time_of_a_message_by_hand():
    row = {"category": "Communication", "op": "all_to_all", "calls": 4, "read_bytes": 10**9, "write_bytes": 10**9}
    rows = table(*({**row, "peers": peers, "overlap": "none"} for peers in (1, 2, 7)), {"peers": 0, "overlap": "none"})
    links = Interconnect(bandwidth=0.8, pair=0.25, latency_s=1e-5, host_s=0.0)
    busy_s = message_s(columns_of(rows), get_gpu("h100-sxm"), links)  # 450e9 B/s in one direction
    want = [4e-5 + 1e9 / (450e9 * share) for share in (0.25, 0.5, 0.8)]
    assert busy_s == pytest.approx([*want, 0.0])


def _with_message(message, *rows):
    base = {"peers": 0, "overlap": "none", "module": "a"}
    sent = {"category": "Communication", "op": "send_recv", "peers": 1, **message}
    return project(table(*(base | row for row in rows), base | sent), gpu="h100-sxm", execution="compiled",
                   interconnect=Interconnect(bandwidth=1.0, pair=1.0, latency_s=0.0, host_s=0.0))  # fmt: skip


def test_a_ring_hides_behind_the_attention_of_its_module_only():
    work = core(4096, 4096, heads=32, module="a"), linear(8192, 8192, 8192, module="b")
    bytes_s = 450e9
    attend_s = _with_message({}, *work)["time_s"].iloc[0]
    for share, left in ((0.5, 0.0), (3.0, 2.0)):
        size = int(share * attend_s * bytes_s)
        sent = {"read_bytes": size, "write_bytes": size, "overlap": "attention"}
        out = _with_message(sent, *work)
        assert out["time_s"].iloc[2] == pytest.approx(left * attend_s, rel=1e-5)
        other = _with_message(sent | {"module": "b"}, *work)  # no attention there
        assert other["time_s"].iloc[2] == pytest.approx(share * attend_s, rel=1e-5)
        assert out["time_s"].iloc[0] == pytest.approx(attend_s)
    assert out["bound"].iloc[2] == "communication"


def test_displaced_messages_hide_behind_the_whole_step():
    work = core(4096, 4096, heads=32, module="a"), linear(8192, 8192, 8192, module="b")
    step_s = _with_message({}, *work)["time_s"].sum()
    size = int(1.5 * step_s * 450e9)
    out = _with_message({"read_bytes": size, "write_bytes": size, "overlap": "stage"}, *work)
    assert out["time_s"].iloc[2] == pytest.approx(0.5 * step_s, rel=1e-5)


def test_eight_gpus_in_a_ring_can_be_slower_than_four():
    # at batch 1 the host issues the ring's operators one after the other, whatever the number of tokens
    seconds = {n: project(parallelize(count(PIXART), ring=n), gpu="h100-sxm")["time_s"].sum() for n in (4, 8)}
    assert seconds[8] > seconds[4]
    seconds = {
        n: summarize(project(parallelize(count_batch(PIXART, mmchar.Request(batch=32)), ring=n), gpu="h100-sxm"))
        for n in (1, 4)
    }
    assert seconds[4]["time_s"] < seconds[1]["time_s"]


def test_summary_names_gpus_and_communication_only_for_several():
    shared = summarize(project(parallelize(count(PIXART), ulysses=2), gpu="h100-sxm"))
    assert shared["gpus"] == 2 and "communication" in shared["bound"]
    assert sum(shared["bound"].values()) == pytest.approx(shared["time_s"])
    alone = summarize(project(count(PIXART), gpu="h100-sxm"))
    assert "gpus" not in alone and "communication" not in alone["bound"]


# energy, memory, batches


def test_energy_by_hand():
    rows = table({"repeats": 2}, {}, {}).assign(time_s=[1.0, 3.0, 0.0], bound=["compute", "launch", ""])
    rows.attrs["gpus"] = 4
    power = Power(compute=0.9, memory=0.7, launch=0.2, communication=0.4)
    # 4 boards of 700 W: 2 s at 0.9, 3 s at 0.2
    assert energy_j(rows, get_gpu("h100-sxm"), power) == pytest.approx(4 * 700 * (2 * 0.9 + 3 * 0.2))


def test_energy_is_between_idle_and_the_power_limit():
    projected = project(count(PIXART), gpu="h100-sxm")
    totals = summarize(projected)
    assert 0.1 * 700 * totals["time_s"] < totals["energy_j"] <= 700 * totals["time_s"]


def test_memory_of_one_gpu():
    alone, sheet = count("llama-2-13b"), get_gpu("t4")
    whole, quarter = summarize_memory(alone, sheet), summarize_memory(parallelize(alone, tensor=4), sheet)
    assert whole["weight_bytes"] == 2 * 13_015_864_320 and not whole["fits"]
    assert quarter["weight_bytes"] == whole["weight_bytes"] // 4 and quarter["fits"]


@pytest.mark.parametrize("model", [PIXART, SD35])
def test_a_batch_from_two_counts_is_the_batch_counted(model):
    request = mmchar.Request(batch=5, steps=2)
    columns = [*SUMS, "calls", "mask_bytes", "live_bytes", "batch", "q_len", "kv_len"]
    derived, counted = count_batch(model, request), mmchar.count(model, request)
    assert (derived[columns].to_numpy() == counted[columns].to_numpy()).all()
    assert derived.attrs == counted.attrs


def test_tables_of_several_gpus_hold_integers_and_survive_a_file(tmp_path):
    from mmchar.tables.stored import read_table, write_table

    shared = parallelize(count(PIXART), gpus=4, ulysses=2, ring=2)
    for column in [*SUMS, "calls", "heads", "q_len", "kv_len", "mask_bytes", "live_bytes", "peers"]:
        assert np.issubdtype(shared[column].dtype, np.integer) and (shared[column] >= 0).all(), column
    back = read_table(write_table(tmp_path / "t.parquet", shared))
    pd.testing.assert_frame_equal(back, shared)
    assert back.attrs["degrees"] == {"gpus": 4, "ulysses": 2, "ring": 2}


def test_a_stage_that_runs_one_after_the_other_runs_as_often_as_the_batch_is_large():
    sizes = {"height": 64, "width": 64, "frames": 5, "steps": 2}
    one, three = (count_batch("open-sora-2-11b", mmchar.Request(batch=many, **sizes)) for many in (1, 3))
    here, there = (rows[rows["stage"] == "decode_video"] for rows in (one, three))
    assert (there["repeats"] == 3 * here["repeats"]).all() and (there["flop"] == here["flop"]).all()
    assert 3 * denoising(one)["flop"].sum() == denoising(three)["flop"].sum()
