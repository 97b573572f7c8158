"""Measurements beside projections: read from a folder as a campaign leaves it, and shown as what they are."""

import pytest

from mmchar import measure
from mmchar.measured import pack, write_point
from mmchar.measured_shares import about, attention_gains, beside, live_runs, measured_runs, project_like, sheet_name
from mmchar.projected_ladder import measured_rungs

MODEL = "stable-diffusion-1.5"


def save(folder, name, table, *, hardware="a processor, 1 threads", **changes):
    """Write a measured table as a campaign does."""
    asked = {key: table.attrs[key] for key in ("device", "dtype", "attention", "tiny", "levers")}
    asked |= {"model": table.attrs["model"], "request": {}, "stages": None, "samples": 2, "warmup": 1, **changes}
    facts = {key: value for key, value in table.attrs.items() if key != "versions"}
    row = {"id": name, "status": "ok", "reason": "", "asked": asked, "hardware": hardware, "attempts": 1}
    write_point(folder, {**row, "facts": facts}, table)


@pytest.fixture(scope="module")
def tables():
    options = {"tiny": True, "stages": ["denoise"], "samples": 2, "progress": False}
    return {kernel: measure(MODEL, attention=kernel, **options) for kernel in ("flash", "eager")}


@pytest.fixture
def folder(tmp_path, tables):
    for kernel, table in tables.items():
        save(tmp_path / "cpu-test", f"sd-{kernel}", table)
    pack(tmp_path / "cpu-test")
    return tmp_path


def test_no_folder_is_no_run_and_every_table_is_empty(tmp_path):
    runs = measured_runs(tmp_path / "missing")
    assert runs == []
    for found in (
        about(runs),
        beside(runs, by="category", gpu="t4", dtype="float16"),
        attention_gains(runs, gpu="t4", dtype="float16"),
        measured_rungs(runs),
    ):
        assert found.empty and {"model", "run"} & set(found)


def test_a_run_has_what_was_measured(folder, tables):
    eager, flash = measured_runs(folder, [MODEL], tiny=True)
    assert (eager.kernel, flash.kernel, eager.machine, eager.samples) == ("eager", "flash", "cpu-test", 2)
    facts = tables["flash"].attrs
    assert flash.main_stage == "denoise" and flash.stages == ("denoise",)
    assert flash.stage_s["denoise"] == facts["median_s"]["denoise"] * 2  # 2 steps
    assert flash.spread == facts["iqr_s"]["denoise"] / facts["median_s"]["denoise"]
    assert about([eager, flash])["time_s"].tolist() == [eager.stage_s["denoise"], flash.stage_s["denoise"]]


def test_shares_by_length_are_of_attention_cores_only(folder):
    both = beside(measured_runs(folder, tiny=True), by="q_len", gpu="t4", dtype="float16", cores=True)
    assert (both["q_len"] > 0).all() and set(both["time_kind"]) == {"measured", "projected"}


def test_gains_are_of_pairs_of_the_same_run(folder, tables):
    gains = attention_gains(measured_runs(folder, tiny=True), gpu="a100-80gb", dtype="bfloat16")
    measured = gains[gains["time_kind"] == "measured"]
    eager, flash = (tables[kernel].attrs["median_s"]["denoise"] for kernel in ("eager", "flash"))
    assert measured["stage_gain"].tolist() == pytest.approx([eager / flash] * len(measured))
    assert set(gains["time_kind"]) == {"measured", "projected"} and (gains["gain"] > 0).all()
    assert attention_gains(measured_runs(folder, tiny=True)[:1], gpu="t4", dtype="float16").empty


def test_a_run_on_a_gpu_is_projected_on_that_gpu_in_its_own_type(folder, tables):
    save(folder / "h200", "sd-gpu", tables["flash"], hardware="NVIDIA H200")
    (run,) = [run for run in measured_runs(folder, tiny=True) if run.machine == "h200"]
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
        ("Tesla T4", ""),
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
