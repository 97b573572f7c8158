"""What one notebook each computes: a module a question, whose functions give tidy tables and the figures of them.

May use every module of `study` and the rooms below it, but for `verdicts`.
"""
