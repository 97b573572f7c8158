"""mmchar: where does the time of a multi-modal generation go, and what would make it faster.

Rooms on floors, of which a lower one never imports a higher one: tables; tracing, models, generation, counting;
projection and measuring; runs, study, cli (``docs/architecture.md``). One tidy operator table serves all of them;
``data/README.md`` is its dictionary.

Conventions, used everywhere
----------------------------
- One multiply-add is 2 FLOP. ``flop`` counts matrix products, convolutions and attention cores, as torch's
  ``FlopCounterMode`` does; normalizations and elementwise operators have 0 flop and are accounted by their bytes.
- Causal attention is counted in full (``q_len * kv_len``), as the paper's baseline and ``FlopCounterMode`` do.
- Classifier-free guidance (``guidance`` > 1) doubles the batch of the denoiser or decoder.
- A total of a generation is ``value * repeats``.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "request": ["Request"],
        "models.loading": ["Model", "ModelSpec", "get_spec", "list_models", "load"],
        "counting.operator_table": ["count", "count_stage", "summarize_count"],
        "counting.planned_stages": ["stages"],
        "tables.perfetto": ["write_perfetto"],
        "tracing.attention": ["use_backend"],
        "projection.data_sheets": ["get_gpu", "gpu_named", "list_gpus"],
        "projection.roofline": ["project"],
        "projection.efficiency_file": ["read_efficiency"],
        "projection.planning.memory": ["fit_in_memory"],
        "measuring.profiling": ["measure"],
        "measuring.recorded.table": ["kernel_table", "read_trace"],
        "study.beside_traces": ["beside_trace"],
        "study.comparing": ["compare"],
        "provenance": ["doctor"],
    },
)
