"""Measurements beside projections: read from a folder as a campaign leaves it, and shown as what they are."""

import pytest
from samples import save_measured

from mmchar import measure
from mmchar.runs.campaign.measured import pack
from mmchar.study import measured_runs
from mmchar.study.measured_runs import about, live_runs, read_runs, runs_at_hand
from mmchar.study.measured_shares import attention_gains, beside, peak_memory, project_like, sheet_name, temporal_shares
from mmchar.study.projected_ladder import measured_rungs

MODEL = "stable-diffusion-1.5"


@pytest.fixture(scope="module")
def tables():
    options = {"tiny": True, "stages": ["denoise"], "samples": 2, "progress": False}
    return {kernel: measure(MODEL, attention=kernel, **options) for kernel in ("flash", "eager")}


@pytest.fixture
def folder(tmp_path, tables):
    for kernel, table in tables.items():
        save_measured(tmp_path / "cpu-test", f"sd-{kernel}", table)
    pack(tmp_path / "cpu-test")
    return tmp_path


def test_no_folder_is_no_run_and_every_table_is_empty(tmp_path):
    runs = read_runs(tmp_path / "missing")
    assert runs == []
    for found in (
        about(runs),
        beside(runs, by="category", gpu="t4", dtype="float16"),
        attention_gains(runs, gpu="t4", dtype="float16"),
        measured_rungs(runs),
    ):
        assert found.empty and {"model", "run"} & set(found)


def test_a_run_has_what_was_measured(folder, tables):
    eager, flash = read_runs(folder, [MODEL], tiny=True)
    assert (eager.kernel, flash.kernel, eager.machine, eager.samples) == ("eager", "flash", "cpu-test", 2)
    facts = tables["flash"].attrs
    assert flash.main_stage == "denoise" and flash.stages == ("denoise",)
    assert flash.stage_s["denoise"] == facts["median_s"]["denoise"] * 3  # PNDM: 2 steps, 3 calls
    assert flash.spread == facts["iqr_s"]["denoise"] / facts["median_s"]["denoise"]
    assert about([eager, flash])["time_s"].tolist() == [eager.stage_s["denoise"], flash.stage_s["denoise"]]


def test_shares_by_length_are_of_attention_cores_only(folder):
    both = beside(read_runs(folder, tiny=True), by="q_len", gpu="t4", dtype="float16", cores=True)
    assert (both["q_len"] > 0).all() and set(both["time_kind"]) == {"measured", "projected"}


def test_gains_are_of_pairs_of_the_same_run(folder, tables):
    gains = attention_gains(read_runs(folder, tiny=True), gpu="a100-80gb", dtype="bfloat16")
    measured = gains[gains["time_kind"] == "measured"]
    eager, flash = (tables[kernel].attrs["median_s"]["denoise"] for kernel in ("eager", "flash"))
    assert measured["stage_gain"].tolist() == pytest.approx([eager / flash] * len(measured))
    assert set(gains["time_kind"]) == {"measured", "projected"} and (gains["gain"] > 0).all()
    assert attention_gains(read_runs(folder, tiny=True)[:1], gpu="t4", dtype="float16").empty


def test_a_run_on_a_gpu_is_projected_on_that_gpu_in_its_own_type(folder, tables):
    save_measured(folder / "h200", "sd-gpu", tables["flash"], hardware="NVIDIA H200")
    (run,) = [run for run in read_runs(folder, tiny=True) if run.machine == "h200"]
    timed = project_like(run, gpu="t4", dtype="float16")
    assert (timed.attrs["gpu"], timed.attrs["dtype"]) == ("h200-sxm", "float32")
    assert set(timed["stage"].astype(str)) == {"denoise"}


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("Tesla T4", "t4"),
        ("NVIDIA TITAN V", ""),
        ("AMD EPYC 9454 48-Core Processor, 2 threads", ""),
    ],
)
def test_the_data_sheet_of_a_gpu_by_its_own_name(hardware, name):
    assert sheet_name(hardware) == name


def test_nothing_runs_live_without_a_gpu_unless_a_device_is_named():
    import torch

    if not torch.cuda.is_available():
        assert live_runs([MODEL]) == []
    (run,) = live_runs(["parti-350m"], attention=["flash"], stages=["decode"], device="cpu", tiny=True, samples=1)
    assert run.asked["model"] == "parti-350m" and run.stages == ("decode",) and run.samples == 1
    assert set(beside([run], by="category", gpu="t4", dtype="float16")["time_kind"]) == {"measured", "projected"}


def test_peak_memory_is_measured_and_counted_of_the_same_stage_and_kernel(folder, tables):
    found = peak_memory(read_runs(folder, tiny=True)).set_index("kernel")
    assert set(found.index) == {"eager", "flash"} and set(found["stage"]) == {"denoise"}
    for kernel, table in tables.items():
        assert found.loc[kernel, "measured_bytes"] == table.attrs["memory"]["denoise"]["peak_bytes"]
    # 2 guided x 2 heads x (16 x 16 tokens)^2 x 4 bytes
    assert found["similarity_bytes"].tolist() == [2 * 2 * 256**2 * 4] * 2
    assert found.loc["eager", "counted_bytes"] > found.loc["flash", "counted_bytes"]


def test_stages_over_a_growing_cache_have_no_peak_to_compare():
    (run,) = live_runs(["parti-350m"], attention=["flash"], device="cpu", tiny=True, samples=1)
    assert "decode" in run.stages
    stages = set(peak_memory([run])["stage"])
    assert "prefill" in stages and "decode" not in stages


def test_temporal_shares_are_of_runs_that_attend_over_time(folder):
    options = {"attention": ["flash"], "stages": ["denoise"], "device": "cpu", "tiny": True, "samples": 1}
    (run,) = live_runs(["modelscope-t2v-1.7b"], **options)
    runs = [*read_runs(folder, tiny=True), run]
    shares = temporal_shares(runs, gpu="t4", dtype="float16")
    assert set(shares["case"]) == {"modelscope-t2v-1.7b, flash"}
    assert set(shares["time_kind"]) == {"measured", "projected"} and shares["share"].between(0, 100).all()
    core = shares[(shares["reading"] == "core") & (shares["time_kind"] == "measured")].iloc[0]
    seconds = run.table.groupby(run.table["attention"].astype(str))["time_s"].sum()
    assert core["share"] == pytest.approx(100 * seconds["temporal"] / (seconds["temporal"] + seconds["spatial"]))


def test_what_this_machine_cannot_run_is_left_out_with_a_warning():
    options = {"attention": ["cudnn", "flash"], "stages": ["decode"], "device": "cpu", "tiny": True, "samples": 1}
    with pytest.warns(UserWarning, match="parti-350m, cudnn, is not measured here"):
        (run,) = live_runs(["parti-350m"], **options)
    assert run.kernel == "flash"


def test_a_gpu_measures_only_what_was_not_committed_for_it(folder, tables, monkeypatch):
    asked = []
    monkeypatch.setattr(measured_runs, "_gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(measured_runs, "live_runs", lambda names, **options: asked.append(names) or [])
    save_measured(folder / "h200", "sd-gpu", tables["flash"], hardware="NVIDIA H200")
    found = runs_at_hand(folder, [MODEL, "parti-350m"], tiny=True)
    assert asked == [["parti-350m"]] and {run.machine for run in found} == {"cpu-test", "h200"}


def test_an_image_is_measured_by_all_stages_or_not_at_all():
    options = {"attention": ["eager"], "device": "cpu", "tiny": True, "samples": 1}
    whole, part = (
        live_runs(["sdxl-base-1.0"], stages=stages, **options)[0] for stages in (None, ["encode_text", "denoise"])
    )
    rungs = measured_rungs([part, whole])
    assert rungs["rung"].tolist() == ["eager fp32"] and rungs["spread"].isna().all()  # one sample has no spread
    assert rungs["value"].tolist() == [sum(whole.stage_s.values())]
