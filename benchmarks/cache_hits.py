"""L1 and L2 hit rates of spatial against temporal attention kernels, through Nsight Compute.

The profiler of PyTorch no longer reads cache counters. This script runs itself under ``ncu``, which replays every
kernel of a few attention calls, and reads its table. Where there is no GPU, no ``ncu``, or no right to read the
counters (ERR_NVGPUCTRPERM: the driver keeps them for root), it says which of them is missing and measures nothing.

    python benchmarks/cache_hits.py [--attention flash] [--frames 16] [--side 64] [--channels 320] [--heads 8]

Spatial attention has the frames in the batch and the positions as tokens, temporal attention the other way round, as in
a pseudo-3D U-Net (Make-A-Video, arXiv 2209.14792); the copy between the two layouts is measured beside them.

Sources: Nsight Compute documentation, metrics ``l1tex__t_sector_hit_rate.pct`` and ``lts__t_sector_hit_rate.pct``.
"""

import argparse
import csv
import io
import shutil
import subprocess
import sys

import torch

from mmchar.measuring.optimization.backends import MEASURED, attention_backend

METRICS = {"l1": "l1tex__t_sector_hit_rate.pct", "l2": "lts__t_sector_hit_rate.pct", "time": "gpu__time_duration.sum"}


def missing() -> str:
    """What this machine lacks, or ""."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    return "" if shutil.which("ncu") else "no ncu on the path; it comes with the CUDA toolkit (Nsight Compute)"


def attend(args: argparse.Namespace, kind: str) -> None:
    """One spatial or temporal attention, after one outside of the profiled range."""
    positions, head_dim = args.side * args.side, args.channels // args.heads
    batch, tokens = (args.frames, positions) if kind == "spatial" else (positions, args.frames)
    made = torch.randn(3, batch, args.heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(args.frames, positions, args.channels, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode(), attention_backend(args.attention):
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.nvtx.range_push(f"{kind}_attention")
            torch.nn.functional.scaled_dot_product_attention(*made)
            torch.cuda.nvtx.range_pop()
            torch.cuda.nvtx.range_push(f"{kind}_copy")
            x.transpose(0, 1).contiguous()
            torch.cuda.nvtx.range_pop()
    torch.cuda.synchronize()


def profile(args: argparse.Namespace, part: str) -> list[dict[str, str]]:
    """Nsight Compute's table of the kernels inside one range, a row per kernel and metric."""
    kind = part.split("_")[0]
    options = ["--csv", "--page", "raw", "--nvtx", "--nvtx-include", f"{part}/"]
    own = [sys.executable, __file__, "--inside", kind]
    for name in ("attention", "frames", "side", "channels", "heads"):
        own += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(
        ["ncu", *options, "--metrics", ",".join(METRICS.values()), *own], capture_output=True, text=True
    )
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        print("cache hit rates cannot be measured here: the driver keeps the counters for root (ERR_NVGPUCTRPERM)")
        raise SystemExit(0)
    if done.returncode:
        raise SystemExit(f"ncu failed: {(done.stdout + done.stderr).strip()[-400:]}")
    return read_table(done.stdout)


def read_table(text: str) -> list[dict[str, str]]:
    """The rows of ncu's raw page: what it prints before the table, and the row of units, are left out."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    return [row for row in rows if row.get("ID")]


def main() -> int:
    """Print the hit rates of each kernel, or what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", choices=MEASURED, default="flash")
    for name, default in (("frames", 16), ("side", 64), ("channels", 320), ("heads", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--inside", choices=("spatial", "temporal"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if lacking := missing():
        print(f"cache hit rates cannot be measured here: {lacking}")
        return 0
    if args.inside:
        attend(args, args.inside)
        return 0
    print(f"{'part':<20} {'L1 hit %':>9} {'L2 hit %':>9}  kernel")
    for part in ("spatial_attention", "temporal_attention", "spatial_copy"):
        for row in profile(args, part):
            l1, l2 = (row.get(METRICS[level], "") for level in ("l1", "l2"))
            print(f"{part:<20} {l1:>9} {l2:>9}  {row.get('Kernel Name', '')[:80]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
