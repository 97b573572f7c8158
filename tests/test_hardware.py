"""The GPU table against its own consistency, its errors, and `doctor` on machines that lack things."""

import importlib.metadata
import platform
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import mmchar
from mmchar import provenance as hardware
from mmchar.projection import data_sheets
from mmchar.projection.data_sheets import get_gpu, gpu_named, list_gpus
from mmchar.provenance import doctor

GPUS = list(list_gpus()["name"])


@pytest.fixture(autouse=True)
def versions_read_anew():
    """What is installed does not change while a process runs, but for tests."""
    hardware.package_version.cache_clear()
    yield
    hardware.package_version.cache_clear()


def test_the_gpus_the_study_names_are_there():
    assert {"a100-80gb", "a100-40gb", "h100-sxm", "h200-sxm", "b200", "l40s", "rtx-4090", "t4", "gh200"} <= set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_a_dated_source_and_sane_numbers(name):
    gpu = get_gpu(name)
    assert any(str(year) in gpu.source for year in range(2017, 2027))
    assert gpu.peak_flop_s["float16"] >= 1.9 * gpu.peak_flop_s["float32"]
    assert gpu.peak_flop_s.get("bfloat16", gpu.peak_flop_s["float16"]) == gpu.peak_flop_s["float16"]
    assert gpu.peak_flop_s.get("tf32", 0) <= gpu.peak_flop_s["float16"] / 1.9
    assert 1e11 < gpu.bandwidth_bytes_s < 1e13
    assert gpu.link_bytes_s < gpu.bandwidth_bytes_s
    assert gpu.host_link_bytes_s <= gpu.link_bytes_s
    assert gpu.l2_bytes < gpu.memory_bytes
    assert 50 <= gpu.tdp_w <= 1400
    assert gpu.device_names


@pytest.mark.parametrize(
    ("name", "dtype", "tflop_s"),
    [  # dense, from the data sheets; the figures with sparsity are twice these
        ("a100-80gb", "bfloat16", 312),
        ("h100-sxm", "bfloat16", 989.4),
        ("b200", "bfloat16", 2250),
        ("l40s", "bfloat16", 362.05),
        ("rtx-4090", "bfloat16", 165.2),
        ("t4", "float16", 65),
        ("rtx-3090", "float16", 71),  # GeForce boards accumulate in float32 at half the rate of float16
        ("rtx-5090", "bfloat16", 209.5),
        ("a10g", "float16", 70),
        ("h100-pcie", "bfloat16", 756),
        ("mi300x", "bfloat16", 1307.4),
    ],
)
def test_peaks_are_dense(name, dtype, tflop_s):
    assert get_gpu(name).peak(dtype) == tflop_s * 1e12


def test_newer_data_centre_gpus_are_faster():
    order = [get_gpu(name) for name in ("t4", "a100-80gb", "h100-sxm", "b200")]
    assert [g.peak("float16") for g in order] == sorted(g.peak("float16") for g in order)
    assert [g.bandwidth_bytes_s for g in order] == sorted(g.bandwidth_bytes_s for g in order)
    assert [g.year for g in order] == sorted(g.year for g in order)


def test_ridge_point():
    # 312e12 FLOP/s / 2039e9 B/s = 153.0 FLOP/B
    assert get_gpu("a100-80gb").ridge_flop_per_byte("bfloat16") == pytest.approx(153.0, abs=0.05)


def test_tf32_only_where_asked_and_there():
    a100, t4 = get_gpu("a100-80gb"), get_gpu("t4")
    assert a100.peak("float32") == 19.5e12
    assert a100.peak("float32", tf32=True) == 156e12
    assert t4.peak("float32", tf32=True) == t4.peak("float32")


def test_unknown_gpu_names_what_comes_close():
    with pytest.raises(
        ValueError, match=r"^unknown gpu 'h100'; did you mean 'h100-pcie' or .*'h100-sxm'\? choose one of .*mi355x$"
    ) as error:
        get_gpu("h100")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^unknown gpu 'abacus'; choose one of"):
        get_gpu("abacus")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("amd instinct mi300x", "mi300x"),
        ("rtx-4090", "rtx-4090"),
    ],
)
def test_a_gpu_is_found_by_what_the_driver_calls_it(device, name):
    assert gpu_named(device).name == name


def test_no_name_of_a_device_is_two_gpus():
    names = [name.casefold() for gpu in map(get_gpu, GPUS) for name in gpu.device_names]
    assert len(names) == len(set(names))


def test_a_device_without_a_data_sheet_is_one_line():
    with pytest.raises(ValueError, match=r"^no data sheet of a device 'NVIDIA TITAN V'; choose one of .*gpus.json$"):
        gpu_named("NVIDIA TITAN V")


def test_missing_dtype_says_what_to_use():
    with pytest.raises(ValueError, match="^t4 has no bfloat16; use float16 or float32$"):
        get_gpu("t4").peak("bfloat16")


def test_a_data_sheet_needs_its_numbers_and_source():
    t4 = get_gpu("t4")
    with pytest.raises(ValueError, match="bandwidth_bytes_s must be there and above 0"):
        replace(t4, bandwidth_bytes_s=0.0)
    with pytest.raises(ValueError, match="float16 must be there"):
        replace(t4, peak_flop_s={"float32": 1.0, "float16": -1.0})
    with pytest.raises(ValueError, match="source must be there"):
        replace(t4, source="")


def test_corrupt_gpu_file_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "gpus.json").write_text('{"t4": {"year": 2018')
    monkeypatch.setattr(data_sheets.resources, "files", lambda _package: tmp_path)
    data_sheets._gpus.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"^gpus.json cannot be read") as error:
            get_gpu("t4")
        assert "\n" not in str(error.value)
    finally:
        data_sheets._gpus.cache_clear()


def test_list_gpus_has_rates_as_columns():
    frame = list_gpus().set_index("name")
    assert frame.loc["a100-80gb", "bfloat16_flop_s"] == 312e12
    assert frame["bfloat16_flop_s"].isna().equals(~frame["compute_capability"].ge(8.0))


def test_doctor_reports_this_machine_and_nothing_private():
    report = doctor()
    assert report["python"] == platform.python_version()
    assert int(report["cores"]) >= 1
    told = " ".join(report.values())
    assert socket.gethostname() not in told
    assert sys.prefix not in told and str(Path.home()) not in told


def test_doctor_works_with_no_package_installed(monkeypatch):
    def nothing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor()
    assert report["flash-attn"].startswith("absent") and "pip install -e .[flash-attn]" in report["flash-attn"]
    assert report["torch"].startswith("absent")
    assert report["cuda device"] == "unknown (torch is absent)"


def test_doctor_survives_a_torch_that_does_not_import(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _package: "2.13.0")
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise ImportError
    assert doctor()["cuda device"].startswith("unknown (torch does not import: ModuleNotFoundError")


def test_the_version_of_mmchar_is_that_of_the_code_that_runs(monkeypatch):
    def none_is_installed(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", none_is_installed)
    assert hardware.package_version("mmchar") == mmchar.__version__
    assert hardware.package_version("torch") is None


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("cpu family\t: 25\nmodel\t: 17\nmodel name\t: AMD EPYC\n\nmodel\t: 18\n", "AMD EPYC (family 25, model 17)"),
        ("model name\t: ARMv8\n", "ARMv8"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_numbers(monkeypatch, said, name):
    monkeypatch.setattr(Path, "read_text", lambda path: said)
    assert hardware.processor() == name
