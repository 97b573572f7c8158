"""Runs that can be resumed, on one engine: notebooks and measurements in batch, and what each leaves behind.

May use `measuring`, `projection` and below. Others use :mod:`~mmchar.runs.records` (`save_result`) and
:mod:`~mmchar.runs.study_batch`.
"""
