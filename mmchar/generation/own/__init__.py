"""Generations that no library runs: small pipelines, each with a `__call__` that reads from top to bottom."""
