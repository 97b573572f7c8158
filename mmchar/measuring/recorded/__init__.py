"""Traces that others recorded, as operator tables: `table.read_trace`.

May use `counting` and below, and the names of kernels of `measuring`. Others use `table` only.
"""
