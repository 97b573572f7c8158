"""Time, energy and memory of a counted generation on a named GPU, by a calibrated roofline.

May use `counting` and below. Others use :mod:`~mmchar.projection.roofline` (`project`),
:mod:`~mmchar.projection.summary`, :mod:`~mmchar.projection.data_sheets`, and the rooms `planning` (what fits, what is
fastest), `evidence` (validation and fits) and `parallel`.
"""
