"""What counting costs, as ratios measured side by side in one run.

Targets: one stage at most 3x a plain meta forward; a 50-step Stable Diffusion generation at least 20x faster than
``FlopCounterMode`` over its 50 steps, with the same FLOPs; the whole zoo under 60 s and 1.5 GB; ``import mmchar``
under 0.3 s and without torch.
"""

import resource
import statistics
import subprocess
import sys
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
    """Counting one stage against a plain meta forward of it."""
    import torch

    from mmchar.calls import prepare
    from mmchar.counting import count_stage
    from mmchar.models import load
    from mmchar.stages import stages

    for name in ("stable-diffusion-1.5", "imagen", "muse-3b", "llama-2-7b", "make-a-video"):
        model = load(name)
        stage = max(stages(model.spec), key=lambda s: s.repeats)
        work = prepare(model, stage.at(0))

        def plain(work: Callable[[], object] = work) -> None:
            with torch.no_grad():
                work()

        forwards = 2 if stage.grows else 1  # a decode is traced at its first and at its last step
        ratio = seconds(lambda m=model, s=stage: count_stage(m, s), 3) / (forwards * seconds(plain, 3))
        print(f"count {name} {stage.name}: {ratio:.2f}x a plain meta forward (target at most 3)")


def bench_generation() -> None:
    """Counting a generation against torch's own counter over all its steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mmchar.calls import prepare
    from mmchar.counting import count
    from mmchar.models import load
    from mmchar.stages import stages

    model = load("stable-diffusion-1.5")
    plan = stages(model.spec)
    total = 0

    def by_torch() -> None:
        nonlocal total
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for stage in plan:
                work = prepare(model, stage)
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
    """Time and memory of the whole zoo."""
    from mmchar.counting import count
    from mmchar.models import zoo_names

    start = time.perf_counter()
    for name in zoo_names():
        count(name, cache=False)
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"whole zoo ({len(zoo_names())} models) counted in {spent:.1f} s, peak {peak:.2f} GB (targets 60 s, 1.5 GB)")


if __name__ == "__main__":
    bench_import()
    bench_zoo()
    bench_stage()
    bench_generation()
