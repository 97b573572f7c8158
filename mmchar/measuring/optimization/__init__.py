"""How a model is run: attention backends, compilation, graphs, static caches, integer weights."""
