"""What the notebooks do: experiments, claims of the papers, measured beside projected, and the figures.

May use every room but `cli`. Notebooks use its modules by name.
"""
