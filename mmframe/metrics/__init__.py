"""The metrics of the benchmarks: one family a file, each the official evaluation code's rule or named as our own."""

from mmframe.metrics.base import MeanMetric, TaskMetric

__all__ = ["MeanMetric", "TaskMetric"]
