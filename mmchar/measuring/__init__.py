"""Time, memory and energy of real runs: stages and whole generations, timed and profiled on this machine.

May use `counting` and below, and nothing of `projection`. Others use :mod:`~mmchar.measuring.profiling` (`measure`),
:mod:`~mmchar.measuring.timing` and :mod:`~mmchar.measuring.recorded.table` (`read_trace`).
"""
