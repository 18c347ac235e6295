"""From rows of answers to figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mmframe import registry
from mmframe.errors import UserError
from mmframe.metrics import TaskMetric
from mmframe.tasks.task import MODES, Task

Row = dict[str, Any]
"""A line of answers.jsonl, see mmframe.evaluate.record."""


def new_metric(task: Task) -> TaskMetric:
    """The metric of a task.

    Raises:
        UserError: there is no such metric, or it does not take these arguments.
    """
    if task.mode not in MODES:
        raise UserError(f"task {task.name}: mode {task.mode!r} is none of {', '.join(MODES)}")
    cls = registry.get("metric", task.metric["class_path"])
    try:
        return cast(TaskMetric, cls(**task.metric.get("init_args") or {}))
    except TypeError as error:
        raise UserError(f"task {task.name}: metric {cls.__name__}: {error}") from error


def prediction(task: Task, row: Mapping[str, Any]) -> Any:
    """What the metric is given for a row. An example that could not be asked has the worst answer: none."""
    if "error" not in row:
        return row["answer"]
    return [(math.nan, 1)] * len(row.get("options", ())) if task.mode == "likelihood" else ""


def counted(task: Task, rows: Sequence[Row]) -> list[Row]:
    """Rows that have a score: all; of mode perplexity those that could be asked, as no text is worth infinity."""
    return [row for row in rows if task.mode != "perplexity" or "error" not in row]


def add_rows(task: Task, metric: TaskMetric, rows: Sequence[Row]) -> None:
    """Gives rows to the metric."""
    rows = counted(task, rows)
    metric.update(
        [prediction(task, row) for row in rows], [row["reference"] for row in rows], [row["id"] for row in rows]
    )


def with_scores(task: Task, metric: TaskMetric, rows: Sequence[Row], judged: Sequence[Row]) -> list[Row]:
    """Rows with the metric's own row of each as `score`.

    Args:
        task: Theirs.
        metric: The task's.
        rows: As they were answered.
        judged: The same with a judge's verdicts in the references, or the same.
    """
    made = []
    for row, seen in zip(rows, judged, strict=True):
        scored = counted(task, [seen])
        made.append(row | ({"score": metric.score(prediction(task, seen), seen["reference"])} if scored else {}))
    return made
