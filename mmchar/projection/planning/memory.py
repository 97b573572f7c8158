"""What a generation holds in the memory of a GPU, and which offloading, tiling or slicing makes it fit.

A peak is weights plus the most activations alive (``live_bytes``), in bytes that tensors take. What PyTorch's allocator
reserves is more: CogVideoX-2b in diffusers' documentation held 33, 19 and 11 GiB resident, with its models offloaded
and with tiling besides, 1.21 to 1.26 times what is counted here. A board has up to 7 % more than the decimal GB it is
sold by, and a CUDA context takes half a GB of it. So a peak is called tight between 1 / `RESERVED` and `AS_BUILT`
of the memory on the data sheet.

**Source**: huggingface/diffusers, docs/source/en/api/pipelines/cogvideox.md, "Memory optimization" (2024).
"""

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mmchar.projection.data_sheets import Gpu, get_gpu
from mmchar.projection.planning.decoders import DECODERS, Generation, can
from mmchar.projection.summary import weights_of
from mmchar.tables.totals import executions

if TYPE_CHECKING:
    from torch import nn

RESERVED, AS_BUILT = 1.25, 1.05
ROOMS = ("none", "tight", "fits")


def fit_in_memory(model: Any, *inputs: Any, gpu: str | Gpu, **call: Any) -> pd.DataFrame:
    """One row per way to hold a generation in the memory of a GPU: its peak, and what it costs.

    Takes what `mmchar.count` takes. ``offload`` is ``none`` (all weights stay), ``model`` (diffusers'
    ``enable_model_cpu_offload``: one component at a time) or ``sequential`` (``enable_sequential_cpu_offload``: one
    module with weights of its own at a time). ``decoder`` is ``whole``, ``sliced`` (a batch one by one) or ``tiled``
    (and sliced), where the library's own autoencoder can, which is run so on ``meta`` and watched.

    Returns
    -------
    DataFrame
        ``offload, decoder``; ``peak_bytes`` = ``weight_bytes`` + ``live_bytes``, weights and activations at the peak,
        and the ``stage`` and ``component`` where it is; ``else_bytes``, the peak of the other components;
        ``moved_bytes`` between host and GPU in one generation, and ``moved_s``, what that takes at least, at the full
        rate of the host's link: weights go up and, with ``model``, down again once for each component; with
        ``sequential`` up in every execution; ``room``: ``fits``, ``tight`` or ``none``.
    """
    sheet = get_gpu(gpu)
    return pd.DataFrame(ways_to_hold(Generation.of(model, *inputs, **call), sheet))


def first_to_fit(generation: Generation, gpu: Gpu) -> list[dict[str, Any]]:
    """The first row of `fit_in_memory` that is tight, if it comes before one that fits, and the first that fits.

    Less offloading comes first. An autoencoder is sliced or tiled only where that could make the difference.
    """
    found: dict[str, dict[str, Any]] = {}
    for way in ways_to_hold(generation, gpu, only_if_it_helps=True):
        found.setdefault(way["room"], way)
        if way["room"] == "fits":
            break
    return [way for name, way in found.items() if name != "none"]


def ways_to_hold(generation: Generation, gpu: Gpu, *, only_if_it_helps: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of `fit_in_memory`, one after the other."""
    several = sum(many > 0 for many in weights_of(generation.table).values()) > 1
    for offload in ("none", "model", "sequential") if several else ("none", "sequential"):
        whole = _held(generation, offload, "whole")
        yield _on(gpu, whole)
        for decoder in list(DECODERS)[1:]:
            if only_if_it_helps and not _would_help(generation, offload, decoder, gpu):
                continue
            if held := _held(generation, offload, decoder):
                yield _on(gpu, held)


def _would_help(generation: Generation, offload: str, decoder: str, gpu: Gpu) -> bool:
    """Whether an autoencoder that can decode so has the peak, and all else finds more room without it."""
    held = _held(generation, offload, "whole")
    able = can(generation.subject().networks.get(held["component"]), decoder)
    return able and ROOMS.index(room(held["else_bytes"], gpu)) > ROOMS.index(room(held["peak_bytes"], gpu))


@functools.lru_cache(maxsize=16)
def _held(generation: Generation, offload: str, decoder: str) -> dict[str, Any]:
    """What a row of `fit_in_memory` says of any GPU; nothing where no autoencoder decodes so."""
    table = generation.table if decoder == "whole" else generation.decoded(decoder)
    if table.empty:
        return {}
    weights = weights_of(table)
    if offload == "none":
        held, moved = pd.Series(sum(weights.values()), table.index), 0
    elif offload == "model":
        held = table["component"].astype(str).map(weights)
        moved = 2 * sum(weights[role] for role in table["component"].astype(str).unique())
    else:
        held, moved = _one_by_one(table, generation.subject().networks)
    peak = held + table["live_bytes"]
    at = peak.idxmax()
    others = peak[table["component"].astype(str) != str(table["component"][at])]
    return {
        "offload": offload,
        "decoder": decoder,
        "peak_bytes": int(peak[at]),
        "weight_bytes": int(held[at]),
        "live_bytes": int(table["live_bytes"][at]),
        "stage": str(table["stage"][at]),
        "component": str(table["component"][at]),
        "else_bytes": int(others.max()) if len(others) else 0,
        "moved_bytes": int(moved),
    }


def _on(gpu: Gpu, held: dict[str, Any]) -> dict[str, Any]:
    return {**held, "moved_s": held["moved_bytes"] / gpu.host_link_bytes_s, "room": room(held["peak_bytes"], gpu)}


def room(peak_bytes: int, gpu: Gpu) -> str:
    """Whether a peak ``fits`` a GPU with what an allocator reserves besides, is ``tight``, or has ``none``."""
    if peak_bytes * RESERVED <= gpu.memory_bytes:
        return "fits"
    return "tight" if peak_bytes <= AS_BUILT * gpu.memory_bytes else "none"


def _one_by_one(table: pd.DataFrame, networks: "Mapping[str, nn.Module]") -> tuple[pd.Series, int]:
    """Bytes of weights on the GPU while each row runs, and bytes moved up in all, where modules come one by one.

    A module's own weights are there while it runs, what it calls included.
    """
    own = {
        (role, path): sum(part.nbytes for part in module._parameters.values() if part is not None)
        for role, network in networks.items()
        for path, module in network.named_modules()
    }
    sites = list(zip(*(table[name].astype(str) for name in ("stage", "component", "module")), strict=True))
    ran = {(stage, role, path) for stage, role, module in set(sites) for path in _up(module)}
    held = {site: sum(own.get((site[1], path), 0) for path in _up(site[2])) for site in set(sites)}
    runs = executions(table)
    moved = sum(own.get((role, path), 0) * int(runs[stage]) for stage, role, path in ran)
    return pd.Series([held[site] for site in sites], table.index), moved


def _up(path: str) -> list[str]:
    """A module's path and those of the modules around it, to the root."""
    parts = path.split(".") if path else []
    return [".".join(parts[:many]) for many in range(len(parts) + 1)]
