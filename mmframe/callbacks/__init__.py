"""Callbacks and loggers of a run: progress line, throughput, append-only metrics."""
