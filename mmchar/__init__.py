"""mmchar: where does the time of a multi-modal generation go, and what would make it faster.

Three floors: counting (exact numbers from shapes), running (torch), studying (notebooks, batch, figures). One tidy
operator table serves all of them; ``data/README.md`` is its dictionary.

Conventions, used everywhere
----------------------------
- One multiply-add is 2 FLOP. ``flop`` counts matrix products, convolutions and attention cores, as torch's
  ``FlopCounterMode`` does; normalizations and elementwise operators have 0 flop and are accounted by their bytes.
- Causal attention is counted in full (``q_len * kv_len``), as the paper's baseline and ``FlopCounterMode`` do.
- Classifier-free guidance (``guidance`` > 1) doubles the batch of the denoiser or decoder.
- A total of a generation is ``value * repeats``.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Request": "request",
    "ModelSpec": "models",
    "Model": "models",
    "get_spec": "models",
    "list_models": "models",
    "load": "models",
    "count": "counting",
    "count_stage": "counting",
    "summarize_count": "counting",
    "stages": "stages",
    "use_backend": "attention",
    "list_gpus": "hardware",
    "get_gpu": "hardware",
    "doctor": "hardware",
    "project": "roofline",
    "measure": "profiling",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that ``import mmchar`` needs neither torch nor pandas."""
    if name not in _HOME:
        raise AttributeError(f"module 'mmchar' has no attribute {name!r}")
    module = import_module(f"mmchar.{_HOME[name]}")
    value = module if _HOME[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
