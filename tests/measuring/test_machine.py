"""Memory and energy of an execution, the state of a GPU, busy cores: by hand, from fake counters, absent if unknown."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from samples import wait_for

from mmchar.measuring import energy, machine
from mmchar.measuring.energy import energy_counter, run_energy
from mmchar.measuring.machine import other_cores
from mmchar.measuring.memory import run_memory, timeline


def test_memory_of_a_small_computation_on_a_cpu_is_known_to_the_byte():
    x = torch.randn(256, 256)

    def work():
        a = x + 1  # 256 * 256 * 4 = 262_144 bytes
        b = torch.cat([a, a])  # twice as many, while a lives
        del a
        return b.sum(dim=0)

    found = run_memory(work, "cpu")
    assert found["peak_bytes"] == pytest.approx(3 * 262_144, rel=0.01)  # a few bytes of scalars beside
    assert max(found["timeline"]["bytes"]) == found["peak_bytes"]
    assert found["timeline"]["time_s"][0] == 0
    assert found["reserved_bytes"] is None and found["allocated_bytes"] is None, "a CPU does not tell"


def test_a_timeline_adds_up_and_keeps_its_peak_when_thinned():
    assert timeline([(1.0, 10), (3.0, -10), (2.0, 5)]) == ([0.0, 1.0, 2.0], [10, 15, 5])
    assert timeline([]) == ([], [])
    changes = [(float(i), 1 if i < 700 else -1) for i in range(1000)]
    times, alive = timeline(changes, most=50)
    assert len(times) == len(alive) == 50
    assert max(alive) == 700


def test_energy_of_one_execution_is_the_counters_rise_over_all_of_them():
    used, runs = [0.0], []

    def work():
        runs.append(1)
        used[0] += 3.0

    assert run_energy(work, "cpu", expected_s=0.1, counter=lambda: used[0]) == pytest.approx(3.0)
    assert len(runs) == 10, "as many as take a second"
    assert run_energy(work, "cpu", expected_s=0.001, counter=lambda: used[0], most=4) == pytest.approx(3.0)
    assert len(runs) == 14, "no more than a KV cache has room for"
    assert run_energy(work, "cpu", expected_s=1.0, counter=lambda: 5.0) is None, "a counter that stands still"


def test_a_cpu_without_rapl_has_no_counter(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy_counter("cpu") is None


def rapl(folder, index, *, now, wrap):
    package = folder / f"intel-rapl:{index}"
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{now}\n")
    (package / "max_energy_range_uj").write_text(f"{wrap}\n")


def test_rapl_sums_packages_and_survives_a_wrap(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    rapl(tmp_path, 0, now=9_000_000, wrap=10_000_000)
    rapl(tmp_path, 1, now=0, wrap=10_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, already in it
    counter = energy_counter("cpu")
    assert counter() == 0
    rapl(tmp_path, 0, now=2_000_000, wrap=10_000_000)  # 1 J up to the end, then 2 J
    rapl(tmp_path, 1, now=500_000, wrap=10_000_000)
    assert counter() == pytest.approx(3.5)


def test_a_rapl_that_only_root_may_read_is_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir(parents=True)  # reading it is an OSError
    assert energy_counter("cpu") is None


class Nvml:
    """A stand-in for NVIDIA's management library, whose counter rises by 250 J with every reading."""

    def __init__(self, has_counter=True):
        self.has_counter, self.asked, self.millijoules = has_counter, [], 0

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, _handle):
        self.asked.append(uuid)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle, millijoules):
        self.millijoules += 250_000
        millijoules._obj.value = self.millijoules
        return 0 if self.has_counter else 3  # NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize("has_counter", [True, False])
def test_a_gpu_is_asked_by_its_uuid_for_millijoules(monkeypatch, has_counter):
    nvml = Nvml(has_counter)
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-cd"))
    counter = energy_counter("cuda")
    assert nvml.asked == [b"GPU-ab-cd"]
    if not has_counter:
        assert counter is None, "absent, not zero"
        return
    first = counter()
    assert counter() - first == pytest.approx(250.0)


def test_a_gpu_without_nvml_has_no_counter(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(energy.ctypes, "CDLL", absent)
    assert energy_counter("cuda") is None


def test_the_line_of_nvidia_smi_becomes_facts():
    line = "NVIDIA H200, 570.172.08, 1980, 3201, 1980, 3201, 700.00, 131.52, 34, 1024, Disabled"
    found = machine.parse_state(line)
    assert (found["name"], found["driver"], found["sm_clock_mhz"]) == ("NVIDIA H200", "570.172.08", 1980.0)
    assert (found["power_limit_w"], found["power_draw_w"], found["mig"]) == (700.0, 131.52, "Disabled")
    lacking = machine.parse_state(line.replace("700.00", "[N/A]").replace("131.52", "[Insufficient Permissions]"))
    assert (lacking["power_limit_w"], lacking["power_draw_w"]) == (None, None)


def test_other_processes_are_counted_without_our_own():
    assert set(machine.parse_state("Unable to determine the device handle").values()) == {None}
    assert machine.others("", 7) == 0
    assert machine.others("7\n", 7) == 0
    assert machine.others("7\n8\n9\n", 7) == 2
    assert machine.others("1234\n", 7) == 0, "ourselves, under the number outside the container"
    assert machine.others("[N/A]\n", 7) == 0


def test_a_cpu_has_no_gpu_state():
    assert machine.gpu_state("cpu") is None


@pytest.mark.gpu
def test_on_a_gpu_memory_state_and_energy_are_known():
    x = torch.randn(2048, 2048, device="cuda")
    found = run_memory(lambda: x @ x, "cuda")
    assert found["peak_bytes"] >= 2048 * 2048 * 4
    assert found["reserved_bytes"] >= found["allocated_bytes"] > 0
    assert machine.gpu_state("cuda")["driver"]
    counter = energy_counter("cuda")
    if counter is not None:
        joules = run_energy(lambda: x @ x, "cuda", expected_s=1e-3, counter=counter)
        assert joules is None or 0 < joules < 100


BUSY = """
import sys, time
open(sys.argv[1], "w").write("x")
end = time.monotonic() + 60
while time.monotonic() < end:
    pass
"""


def test_the_work_of_another_process_is_seen_and_our_own_is_not(tmp_path):
    with other_cores() as quiet:
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass
    other = subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path / "started")])
    try:
        wait_for(tmp_path / "started")
        with other_cores() as beside:
            time.sleep(1.0)
    finally:
        other.kill()
        other.wait()
    # on a machine that is busy anyway both are high; ours alone adds nothing, the other process its share
    assert len(quiet) == len(beside) == 1 and quiet[0] >= 0
    assert beside[0] > 0.3
