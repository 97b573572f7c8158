"""What a measurement says of its samples, and that a timed region holds the work and nothing else."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import record_function

from mmchar.measuring import timing
from mmchar.measuring.kernels import profiler
from mmchar.measuring.operator_times import _named_and_nested, cpu_profile, gpu_profile
from mmchar.measuring.timing import Measurement, measure_time
from mmchar.tracing.trace import Row


class Clock:
    """A clock that only moves when told to, with a diary of what happened."""

    def __init__(self):
        self.now, self.diary = 1000.0, []

    def __call__(self):
        return self.now

    def spend(self, seconds, what):
        self.now += seconds
        self.diary.append(what)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def prepared(clock, durations, setup_s=100.0):
    """A ``prepare`` that takes long itself and gives works of the given durations, one after the other."""
    left = iter(durations)

    def prepare():
        clock.spend(setup_s, "prepare")
        seconds = next(left)
        return lambda: clock.spend(seconds, "work")

    return prepare


def test_statistics_of_given_samples():
    one = Measurement((4.0, 1.0, 10.0, 2.0, 3.0), warmup=1, device="cpu", label="decode")
    # sorted 1 2 3 4 10: median 3, quartiles 2 and 4, IQR 2
    assert (one.n, one.median_s, one.iqr_s, one.spread) == (5, 3.0, 2.0, pytest.approx(2 / 3))
    assert one.samples_s == (4.0, 1.0, 10.0, 2.0, 3.0), "raw samples stay in the order they ran"
    # of 4 samples the quartiles lie between them: 1 + 0.75 and 3 + 0.25
    assert Measurement((1, 2, 3, 4), 0, "cpu").iqr_s == pytest.approx(3.25 - 1.75)


@pytest.mark.parametrize(("samples", "warns"), [((1.0, 1.01, 1.02), False), ((1.0, 1.2, 1.6), True), ((1.0,), True)])
def test_a_wide_or_unknown_spread_is_said_in_the_repr(samples, warns):
    text = repr(Measurement(samples, warmup=1, device="cpu", label="denoise"))
    assert text.startswith("denoise on cpu: median ")
    assert ("WARNING" in text) == warns


def test_one_sample_has_no_spread():
    one = Measurement((0.5,), warmup=0, device="cpu")
    assert one.median_s == 0.5
    assert math.isnan(one.iqr_s)
    assert math.isnan(one.spread)


def test_only_the_work_is_timed_and_every_execution_is_prepared_anew(clock):
    got = measure_time(prepared(clock, [50.0, 3.0, 1.0, 2.0]), warmup=1, samples=3, label="step")
    assert got.samples_s == (3.0, 1.0, 2.0), "neither the warm-up nor 100 s of preparation is in a sample"
    assert clock.diary == ["prepare", "work"] * 4
    assert (got.warmup, got.device, got.label) == (1, "cpu", "step")


def test_no_warmup_times_the_first_execution(clock):
    assert measure_time(prepared(clock, [7.0]), warmup=0, samples=1).samples_s == (7.0,)


def test_short_work_is_sampled_until_there_is_enough(clock):
    got = measure_time(prepared(clock, [0.25] * 50), warmup=0, samples=2, min_total_s=1.5)
    assert got.n == 6  # 6 * 0.25 = 1.5
    assert measure_time(prepared(clock, [0.0] * 2000), warmup=0, min_total_s=1.0).n == timing.MAX_SAMPLES


def test_work_and_preparation_run_without_gradients_bookkeeping():
    seen = []

    def prepare():
        seen.append(torch.is_inference_mode_enabled())
        return lambda: seen.append(torch.is_inference_mode_enabled())

    measure_time(prepare, warmup=0, samples=1)
    assert seen == [True, True]


@pytest.mark.parametrize("bad", [{"device": "tpu"}, {"device": "meta"}, {"samples": 0}, {"warmup": -1}])
def test_what_cannot_be_timed_is_refused_before_anything_runs(bad):
    def prepare():
        raise AssertionError("prepared")

    with pytest.raises(ValueError, match="choose cpu or cuda|at least 1 sample"):
        measure_time(prepare, **bad)


def test_on_a_gpu_events_enclose_the_work_on_an_idle_device(monkeypatch):
    diary = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            diary.append("record")

        def elapsed_time(self, _stop):
            return 1500.0  # milliseconds

    class Device:
        def __init__(self, name):
            diary.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: diary.append("synchronize"))
    got = measure_time(lambda: lambda: diary.append("work"), device="cuda:1", warmup=0, samples=1)
    assert diary == ["cuda:1", "synchronize", "record", "work", "record", "synchronize"]
    assert (got.samples_s, got.device) == ((1.5,), "cuda:1")


ROWS = [Row("", "Linear", "linear", "Linear"), Row("", "Attention", "scaled_dot_product_attention", "Attention")]


def event(name, us=0.0, children=(), kernels=(), device=DeviceType.CPU):
    """A profiler event as torch gives it, with only what is read."""
    made = SimpleNamespace(name=name, device_type=device, cpu_children=list(children), cpu_parent=None)
    made.time_range = SimpleNamespace(elapsed_us=lambda: us)
    made.kernels = [SimpleNamespace(name=kernel, duration=spent) for kernel, spent in kernels]
    for child in children:
        child.cpu_parent = made
    return made


def everything(*roots):
    """All events below the roots, flat, as ``profiler.events()`` gives them."""
    return [found for root in roots for found in (root, *everything(*root.cpu_children))]


def test_cpu_time_is_that_of_the_operators_and_not_of_the_range_around_them():
    linear = event("aten::linear", 80, [event("aten::addmm", 60)])
    again = event("aten::linear", 70)
    caught = event("aten::linear", 500, [event("mmchar#1", 200, [linear])])
    caught_again = event("aten::linear", 500, [event("mmchar#1", 200, [again])])
    fused = event(
        "aten::_scaled_dot_product_flash_attention_for_cpu", 38, [event("aten::to", 9, [event("aten::to", 8)])]
    )
    core = event("mmchar#0", 90, [event("aten::scaled_dot_product_attention", 40, [fused])])
    view = event("aten::view", 30, [event("PythonDispatchMode", 25, [event("aten::view", 5)])])
    returned = event("aten::to", 20, [event("PythonDispatchMode", 15)])  # nothing ran: its input came back
    unseen = event("aten::mul", 11, [event("aten::to", 3)])  # no mode caught it
    found = cpu_profile(ROWS, everything(caught, caught_again, core, view, returned, unseen), 1.0)
    assert found.time_s == pytest.approx([40e-6, 150e-6])  # 80 + 70 of two calls
    assert (found.ran, found.kernels, found.span_s) == (["flash", ""], [0, 0], 1.0)
    assert (found.free_s, found.other_s) == (pytest.approx(5e-6), pytest.approx(11e-6))


def test_events_are_named_timed_and_nested_as_the_profiler_says():
    attention = torch.nn.MultiheadAttention(8, 2)
    with profiler("cpu") as seen, record_function("mmchar#0"):
        attention(*(torch.randn(3, 1, 8) for _ in range(3)))

    def said(events):
        around = [event.cpu_parent.name if event.cpu_parent else "" for event in events]
        return [
            (event.name, event.time_range.start, event.time_range.end, len(event.cpu_children), outer)
            for event, outer in zip(events, around, strict=True)
        ]

    own = said(_named_and_nested(seen))
    assert len(own) > 20 and sorted(own) == sorted(said(seen.events()))


def test_gpu_time_is_that_of_the_kernels_launched_inside_a_range():
    gemm = event("aten::addmm", 9, kernels=[("gemm", 50.0), ("splitK", 10.0)])
    linear = event("mmchar#0", 99, [event("aten::linear", 20, [gemm])], kernels=[("mmchar#0", 61.0), ("triton", 5.0)])
    flash = event("aten::_scaled_dot_product_flash_attention", 5, kernels=[("flash_fwd", 30.0)])
    core = event("mmchar#1", 50, [flash])
    loose = event("aten::_local_scalar_dense", 3, kernels=[("Memcpy DtoH", 2.0)])
    on_gpu = [("gemm", 50), ("splitK", 10), ("triton", 5), ("flash_fwd", 30), ("Memcpy DtoH", 2), ("mmchar#0", 61)]
    on_gpu += [("at::cuda::(anonymous namespace)::spin_kernel(long)", 1)] * 3  # what a session starts with
    events = everything(linear, core, loose) + [event(name, us, device=DeviceType.CUDA) for name, us in on_gpu]
    found = gpu_profile(ROWS, events, 1.0)
    assert found.time_s == pytest.approx([65e-6, 30e-6])
    assert (found.kernels, found.ran, found.span_s) == ([3, 1], ["", "flash"], 1.0)
    assert (found.other_s, found.other_kernels) == (pytest.approx(2e-6), 1)


def test_a_gpu_profile_without_kernels_is_an_error():
    with pytest.raises(RuntimeError, match="no GPU kernel"):
        gpu_profile(ROWS[:1], [event("mmchar#0", 10, [event("aten::mm", 5)])], 1.0)


def test_a_gpu_profile_that_lost_its_head_is_an_error():
    row = event("mmchar#0", 10, [event("aten::mm", 5, kernels=[("gemm", 50.0)])])
    with pytest.raises(RuntimeError, match="lost the first GPU kernels"):
        gpu_profile(ROWS[:1], [*everything(row), event("gemm", 50, device=DeviceType.CUDA)], 1.0)


@pytest.mark.gpu
def test_gpu_samples_are_seconds():
    x = torch.randn(512, 512, device="cuda")
    got = measure_time(lambda: lambda: x @ x, device="cuda", samples=3)
    assert got.n == 3
    assert all(sample > 0 for sample in got.samples_s)
