"""The attention backends that a measurement can ask for, and which of them this machine and these shapes can run.

Asking for one is a demand: it runs, or the measurement is refused before anything is timed. Only ``flash``, the
default, may leave a call to another kernel, because few models have none that flash refuses; rows and doubts say where.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pandas as pd

MEASURED = ("flash", "eager", "math", "mem-efficient", "cudnn", "flash-attn")
ON_CPU = ("flash", "eager", "math")
_DTYPES = {"flash-attn": ("bfloat16", "float16"), "cudnn": ("bfloat16", "float16")}


def check_backend(attention: str, *, device: str, dtype: str) -> None:
    """Refuse an attention backend that is unknown, or that this device, dtype or environment cannot run."""
    if attention not in MEASURED:
        raise ValueError(f"unknown attention {attention!r}; choose one of {', '.join(MEASURED)}")
    if device.startswith("cpu") and attention not in ON_CPU:
        raise ValueError(f"attention {attention!r} needs an NVIDIA GPU; on a cpu choose one of {', '.join(ON_CPU)}")
    if attention == "flash-attn" and find_spec("flash_attn") is None:
        raise ValueError("attention 'flash-attn' needs the package flash-attn: pip install mmchar[flash-attn]")
    possible = _DTYPES.get(attention, (dtype,))
    if dtype not in possible:
        raise ValueError(f"attention {attention!r} has no {dtype}; use --dtype {' or '.join(possible)}")


def check_shapes(attention: str, table: pd.DataFrame, *, device: str) -> None:
    """Refuse a backend that cannot take an attention call of a counted table; ``flash`` and the math paths take all."""
    if attention not in ("mem-efficient", "cudnn", "flash-attn"):
        return
    sites = ["stage", "batch", "heads", "q_len", "kv_len", "head_dim", "dtype"]
    cores = table[(table["category"] == "Attention") & (table["q_len"] > 0)].assign(masked=table["mask_bytes"] > 0)
    for site in cores[[*sites, "masked"]].drop_duplicates().to_dict("records"):
        if not _takes(attention, site, device):
            shape = ", ".join(f"{name} {site[name]}" for name in sites[1:])
            mask = "with a mask" if site["masked"] else "without a mask"
            raise ValueError(
                f"attention {attention!r} cannot take a call of stage {site['stage']} ({shape}, {mask}); "
                "choose flash, which uses another fused kernel there, or measure other stages"
            )


def _takes(attention: str, site: dict[str, Any], device: str) -> bool:
    if attention == "flash-attn":  # the package has no masks; its README: head dimensions up to 256
        return not site["masked"] and site["head_dim"] <= 256
    import torch
    from torch.backends import cuda

    takes = {"mem-efficient": cuda.can_use_efficient_attention, "cudnn": cuda.can_use_cudnn_attention}[attention]
    empty = functools.partial(torch.empty, dtype=getattr(torch, site["dtype"]), device=device)
    # [b, q, h, d] in memory, as models leave it after their projections
    q, k, v = (
        empty(site["batch"], length, site["heads"], site["head_dim"]).transpose(1, 2)
        for length in (site["q_len"], site["kv_len"], site["kv_len"])
    )
    mask = empty(1, 1, 1, site["kv_len"]).expand(*q.shape[:3], -1) if site["masked"] else None
    return bool(takes(cuda.SDPAParams(q, k, v, mask, 0.0, False, False)))


@contextmanager
def attention_backend(attention: str) -> Iterator[None]:
    """PyTorch's attention restricted to what was asked for.

    ``flash`` allows its fused kernels, flash and memory-efficient; ``eager`` is the math path in the model's own dtype,
    ``math`` the same as PyTorch ships it, which computes in float32; ``flash-attn`` replaces the call with the package.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    allowed = {
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
        "mem-efficient": [SDPBackend.EFFICIENT_ATTENTION],
        "cudnn": [SDPBackend.CUDNN_ATTENTION],
    }
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(attention == "eager")  # the CPU obeys it too
    try:
        if attention == "flash-attn":
            from mmchar.measuring.optimization.flash_attn import FlashAttn

            answers: Any = FlashAttn()
        else:
            answers = sdpa_kernel(allowed.get(attention, [SDPBackend.MATH]))
        with answers:
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def any_kernel() -> Any:
    """Fused kernels where they can, and the math path for what none of them takes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def byte_model(attention: str) -> str:
    """Which of the two byte models of counting stands for a backend: ``eager`` for the math paths, else ``flash``."""
    return "eager" if attention in ("eager", "math") else "flash"
