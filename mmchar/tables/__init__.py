"""Operator tables as tables: on disk, remembered, summed up, shown in a notebook or in Perfetto. None decides a number.

May use `files` and `locks`. Others use :mod:`~mmchar.tables.stored`, :mod:`~mmchar.tables.cache` and
:mod:`~mmchar.tables.totals`.
"""
