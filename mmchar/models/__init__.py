"""What a model is: the zoo's files, folders and hub names, and its networks on any device.

May use `tracing`. Others use :mod:`~mmchar.models.loading` (specs, `load`) and :mod:`~mmchar.models.folders`.
``zoo/`` holds one JSON file per model.
"""
