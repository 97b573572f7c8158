"""The commands of ``mmchar``: arguments in, one room's function called, a table or JSON out.

May use every room; no other room uses it. ``main`` is the entry point.
"""
