"""Scoring in one call, for the tests of the metrics."""

from __future__ import annotations

from typing import Any

from mmframe.metrics import TaskMetric


def scored(metric: TaskMetric, *samples: tuple[Any, dict[str, Any]]) -> dict[str, float]:
    """The figures of (prediction, reference) pairs."""
    metric.update([said for said, _ in samples], [right for _, right in samples])
    return metric.compute()


def headline(metric: TaskMetric, *samples: tuple[Any, dict[str, Any]]) -> float:
    return scored(metric, *samples)[metric.headline]
