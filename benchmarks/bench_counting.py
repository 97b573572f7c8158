"""What counting costs, as ratios measured side by side in one run.

Targets: one stage at most 3x a plain meta forward; a 50-step Stable Diffusion generation at least 20x faster than
``FlopCounterMode`` over its 50 steps, with the same FLOPs; the paper's models under 60 s and 1.5 GB, the whole zoo
under 4 minutes and 2 GB, and under 3 s from the cache; ``import mmchar`` under 0.3 s and without torch.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

REPEATS = 5


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of ``repeats`` calls, after one that is not counted."""
    work()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def bench_import() -> None:
    """Time of the import, and whether it loads torch."""
    code = "import time, sys; t = time.perf_counter(); import mmchar; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - t, 'torch' in sys.modules)"]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(REPEATS)]
    spent, torch_loaded = zip(*(run.stdout.split() for run in runs), strict=True)
    print(f"import mmchar: {statistics.median(map(float, spent)):.3f} s, torch loaded: {set(torch_loaded)}")


def bench_stage() -> None:
    """Counting one call of a network against a plain meta forward of it."""
    import torch
    from torch import nn

    from mmchar.counting.operator_table import rows_frame
    from mmchar.counting.planned_stages import stages
    from mmchar.generation.recording import Stage
    from mmchar.models.loading import load
    from mmchar.tracing.trace import trace

    for name in ("stable-diffusion-1.5", "imagen", "muse-3b", "llama-2-7b", "make-a-video"):
        model = load(name)
        stage = max(stages(model.spec), key=lambda s: s.repeats)
        network = model.components[stage.component]

        def counted(stage: Stage = stage, network: nn.Module = network) -> None:
            rows_frame(trace(network, stage.work(network)))

        def plain(stage: Stage = stage, network: nn.Module = network) -> None:
            with torch.no_grad():
                stage.work(network)()

        ratio = seconds(counted, 3) / seconds(plain, 3)
        print(f"count {name} {stage.name}: {ratio:.2f}x a plain meta forward (target at most 3)")


def bench_generation() -> None:
    """Counting a generation, with its pipeline's own code, against torch's own counter over all its steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mmchar.counting.operator_table import count
    from mmchar.counting.planned_stages import stages
    from mmchar.models.loading import load

    model = load("stable-diffusion-1.5")
    plan = stages(model.spec)
    total = 0

    def by_torch() -> None:
        nonlocal total
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for stage in plan:
                work = stage.work(model.components[stage.component])
                for _ in range(stage.repeats):
                    work()
        total = counter.get_total_flops()

    start = time.perf_counter()
    by_torch()
    theirs = time.perf_counter() - start
    ours = seconds(lambda: count(model), 3)
    table = count(model)
    assert (table["flop"] * table["repeats"]).sum() == total
    print(f"Stable Diffusion 1.5, 50 steps: {theirs / ours:.0f}x the speed of FlopCounterMode, same FLOP (target 20)")


def bench_zoo() -> None:
    """Time and memory of counting the paper's models, then the whole zoo, then reading it from the cache."""
    from mmchar.counting.operator_table import count
    from mmchar.models.loading import zoo_names
    from mmchar.study.experiments import PAPER

    for what, names, cache, target in (
        ("the paper's models counted", zoo_names(PAPER), False, "60 s, 1.5 GB"),
        ("the whole zoo counted", zoo_names(), True, "240 s, 2 GB"),
        ("the whole zoo read from the cache", zoo_names(), True, "3 s"),
    ):
        start = time.perf_counter()
        for name in names:
            count(name, cache=cache)
        spent = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{what} ({len(names)} models): {spent:.1f} s, peak {peak:.2f} GB (target {target})")


if __name__ == "__main__":
    bench_import()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMCHAR_CACHE"] = folder
        bench_zoo()
    bench_stage()
    bench_generation()
