"""Benchmarks: what a verb costs beside the least that the same work can cost, in one run, as ratios."""
