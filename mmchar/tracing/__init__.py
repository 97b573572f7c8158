"""What one call of a network does, operator by operator: FLOPs, bytes, shapes and the kind of attention.

Knows torch, and neither models nor pipelines; uses nothing else of mmchar.
Others use :mod:`~mmchar.tracing.trace`, :mod:`~mmchar.tracing.attention` and :mod:`~mmchar.tracing.operators`.
"""
