"""Measured comparisons and benchmarks; may import everything, is imported by nothing."""
