"""A generation is what its own code does: run a pipeline, ``generate()`` or a module, and watch its networks.

May use `models` and `tracing`. Others use :mod:`~mmchar.generation.subject` (what is asked, ready to run) and
:mod:`~mmchar.generation.run` (`record`: run it and see its networks called).
"""
