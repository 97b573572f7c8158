"""A library's pipeline around networks of configurations alone, with stand-ins for what a folder lacks."""
