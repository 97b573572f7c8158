"""What to run a generation on: if it fits, what makes it fit, on which GPU, on how many, with which steps cached.

May use the rest of `projection`, which uses nothing of it.
"""
