"""One verdict per statement of the papers: ours under every reading, what holds if what, which assumption decides.

Notebook 10 and the command ``mmchar claims`` use `scorecard`, `moves` and `figure`; a new claim is a `Claim` of the
module of its kind.
"""
