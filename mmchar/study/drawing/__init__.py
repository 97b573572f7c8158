"""Figures: a tidy table in, axes out. Nothing is computed that is not in the table.

May use `study.experiments` for the order of families; knows no model and no notebook.
"""
