"""What timing and profiling cost, as ratios measured side by side in one run.

Targets: ``measure_time`` at most 1.01x a bare loop around the same call; on a GPU, kernels under the profiler at most
1.2x the time of a compute-bound stage without it. On a CPU the second ratio is shown for a stage of long operators and
for one of short ones: per operator the profiler adds about a microsecond, and tracing tens of them beside it.
"""

import statistics
import time
from collections.abc import Callable

import torch

from mmchar.counting.planned_stages import stages
from mmchar.measuring.kernels import run_kernels, span_s
from mmchar.measuring.operator_times import profile_once
from mmchar.measuring.optimization.backends import attention_backend
from mmchar.measuring.profiling import measure
from mmchar.measuring.stage_runs import measure_stage
from mmchar.measuring.target import Settings
from mmchar.measuring.timing import measure_time
from mmchar.models.loading import load

ROUNDS = 15
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bare_loop(work: Callable[[], object]) -> float:
    """Seconds of one call, as anybody would time it."""
    with torch.inference_mode():
        start = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def bench_timing() -> None:
    """``measure_time`` against a bare loop, one sample of each in turn so that both see the same machine."""
    x = torch.randn(1024, 1024, device=DEVICE)
    for products in (1, 8):

        def work(products: int = products) -> None:
            for _ in range(products):
                torch.mm(x, x)

        bare_loop(work)
        pairs = [
            (measure_time(lambda: work, device=DEVICE, warmup=0, samples=1).median_s, bare_loop(work))
            for _ in range(ROUNDS)
        ]
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f"measure_time, {products} x mm(1024): {ours * 1e3:8.3f} ms, bare loop {bare * 1e3:8.3f} ms, "
            f"ratio {ours / bare:.3f}, median of paired ratios {ratio:.3f} (target at most 1.01)"
        )


def bench_empty() -> None:
    """What the timed region holds when the work is nothing."""
    empty = measure_time(lambda: lambda: None, device=DEVICE, samples=1000)
    print(f"measure_time of nothing: {empty.median_s * 1e6:.3f} us")


def bench_profiling() -> None:
    """Operators under the profiler, and the whole traced execution, against the execution without either."""
    model = load("stable-diffusion-1.5", tiny=True, device=DEVICE, dtype="float32")
    with attention_backend("flash"):
        for stage in stages(model.spec):
            table, facts = measure_stage(model, stage, Settings(ROUNDS, 2))
            operators, median_s = table["time_s"].sum(), facts["median_s"]
            print(
                f"profiling, tiny {stage.name}: {median_s * 1e3:7.2f} ms; operators under the profiler "
                f"{operators / median_s:.2f}x, traced and profiled from end to end {facts['span_s'] / median_s:.1f}x"
            )


def bench_whole() -> None:
    """The stages of a generation, added up, against the whole of it from end to end."""
    for name in ("stable-diffusion-1.5", "llama-2-7b"):
        facts = measure(name, tiny=True, device=DEVICE, samples=ROUNDS, progress=False).attrs["generation"]
        ratio = facts["sum_of_stages_s"] / facts["median_s"]
        print(f"stages of tiny {name}: {ratio:.2f}x its whole generation ({facts['median_s'] * 1e3:.1f} ms)")


def bench_compute_bound() -> None:
    """One module of long operators under the profiler; the target is for a GPU."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(8))).to(DEVICE)
    x = torch.randn(1024, 1024, device=DEVICE)
    plain = measure_time(lambda: lambda: layers(x), device=DEVICE, samples=ROUNDS)
    profiles = [profile_once(layers, lambda: layers(x), DEVICE) for _ in range(5)]
    ratio = statistics.median(sum(one.time_s) for one in profiles) / plain.median_s
    print(
        f"profiling, 8 x Linear(1024): {plain.median_s * 1e3:.2f} ms; operators under the profiler {ratio:.3f}x (1.2)"
    )
    passes = [run_kernels(lambda: layers(x), DEVICE) for _ in range(5)]
    ratio = statistics.median(span_s(kernels) for kernels in passes) / plain.median_s
    print(f"kernels only, 8 x Linear(1024): span of the kernels, without a tracer, {ratio:.3f}x (1.2)")


if __name__ == "__main__":
    print(f"device {DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    bench_timing()
    bench_empty()
    bench_compute_bound()
    bench_profiling()
    bench_whole()
