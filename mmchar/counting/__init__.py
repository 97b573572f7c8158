"""The operator table of a generation: every call of every stage with its FLOPs, bytes and sequence lengths.

May use `generation`, `models` and `tracing`. Others use :mod:`~mmchar.counting.operator_table` (`count`) and
:mod:`~mmchar.counting.seqlen`, whose closed forms are the second route to the same lengths.
"""
