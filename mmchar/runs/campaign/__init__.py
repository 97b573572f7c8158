"""Measurements in batch: a grid's points, each measured once on each machine, and what is committed of them."""
