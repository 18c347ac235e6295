"""Benchmarks: ratios within one run, written to experiments/results with the machine's name."""
