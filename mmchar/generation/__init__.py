"""A generation is what its own code does: run a pipeline, ``generate()`` or a module, and watch its networks."""
