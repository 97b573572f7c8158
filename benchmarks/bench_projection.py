"""What projections cost: 10,000 of one counted model, and the whole zoo on every GPU.

Targets: 10,000 projections (sizes x batches x GPUs) in 10 s on one core; the zoo on every GPU in 30 s. The ratio is of
a sweep against a call of `project` for each.
"""

import argparse
from time import perf_counter

import mmchar
from mmchar.models.loading import zoo_names
from mmchar.projection.data_sheets import list_gpus
from mmchar.projection.roofline import project
from mmchar.projection.scaling import count_batch, sweep

MODEL = "pixart-sigma-1024"


def main() -> None:
    """Print seconds and one ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--no-zoo", action="store_true", help="leave the whole zoo out")
    args = parser.parse_args()
    sheets = list_gpus()
    able = list(sheets["name"][sheets["bfloat16_flop_s"].notna()])

    sizes, batches = (512, 768, 1024), tuple(range(1, 51))
    requests = {
        (size, batch): mmchar.Request(height=size, width=size, batch=batch) for size in sizes for batch in batches
    }
    tables = {str(key): count_batch(args.model, request) for key, request in requests.items()}
    gpus = (able * 9)[: -(-10_000 // len(tables))]
    start = perf_counter()
    many = len(sweep(tables, gpus))
    sweep_s = perf_counter() - start
    start = perf_counter()
    for table in list(tables.values())[:20]:
        project(table, gpu=able[0])
    project_s = (perf_counter() - start) / 20
    print(f"{many} projections of {args.model} ({len(tables)} sizes and batches): {sweep_s:.1f} s (target 10)")
    print(f"one of a sweep against one call of project: {sweep_s / many / project_s:.3f} x")

    if not args.no_zoo:
        counted = {name: mmchar.count(name) for name in zoo_names()}  # from the cache, if they were counted before
        start = perf_counter()
        for attention in ("flash", "eager"):
            sweep(counted, list(sheets["name"]), attention=attention)
        print(
            f"{len(counted)} models on {len(sheets)} GPUs, flash and eager: {perf_counter() - start:.1f} s (target 30)"
        )


if __name__ == "__main__":
    main()
