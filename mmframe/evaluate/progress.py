"""The line of progress of an evaluation: how far, score so far, rate, time left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmframe.cli.progress_line import ProgressLine, bar, clock, short
from mmframe.evaluate.ranks import Ranks
from mmframe.evaluate.scoring import Row, add_rows
from mmframe.metrics import TaskMetric
from mmframe.tasks.task import Task

SHARE = 0.02  # of the time that goes into the running score: a metric is computed from all rows so far


class Progress:
    """Shows a task at work.

    Args:
        line: Where to; None shows nothing and costs nothing.
        task: What is asked.
        metric: Collects rows for the running score.
        total: Examples.
        ranks: The first rank shows its own score; the others are taken to be as far as it is.
    """

    def __init__(self, line: ProgressLine | None, task: Task, metric: TaskMetric, total: int, ranks: Ranks) -> None:
        self.line, self.task, self.metric, self.total, self.ranks = line, task, metric, total, ranks
        self.begun = time.monotonic()
        self.before = self.made = self.tokens = self.bad = 0
        self._score, self._next = "", 0.0

    def start(self, rows: Sequence[Row]) -> None:
        """Says what is there already."""
        self.before = len(rows)
        self._count(rows)
        if rows:
            self.tell(f"{self.before} of {self.total} answers are there; goes on from there")
        if not self.task.scored:
            self.tell(f"answers of split {self.task.split} are not public: ours are written, there is no score")

    def add(self, rows: Sequence[Row]) -> None:
        """Counts new rows, and shows where we are if it is time."""
        if self.line is None:
            return
        self._count(rows)
        self.made += len(rows)
        self.tokens += sum(row.get("tokens", 0) for row in rows)
        if self.line.due():
            self.line.update(self._text())

    def _count(self, rows: Sequence[Row]) -> None:
        self.bad += sum("error" in row for row in rows)
        if self.task.scored and self.line is not None:
            add_rows(self.task, self.metric, rows)

    def tell(self, text: str) -> None:
        """A line of its own, about the task."""
        if self.line is not None:
            self.line.tell(f"{self.task.name}: {text}")

    def end(self) -> None:
        """Leaves the last state standing on a terminal."""
        if self.line is not None and self.line.terminal:
            self.line.update(self._text(), last=True)

    def _text(self) -> str:
        passed = max(time.monotonic() - self.begun, 1e-9)
        made = self.made * self.ranks.count
        done = min(self.before + made, self.total)
        parts = [self.task.name, bar(done, self.total), self._running_score()]
        parts.append(f"{made / passed:.1f} examples/s  {short(self.tokens * self.ranks.count / passed)} tok/s")
        parts.append(f"{self.bad} bad" if self.bad else "")
        parts.append(f"{clock((self.total - done) * passed / made)} left" if made else "")
        return "  ".join(part for part in parts if part)

    def _running_score(self) -> str:
        now = time.monotonic()
        if self.task.scored and now >= self._next:
            self._score = f"{self.metric.headline} {self.metric.compute()[self.metric.headline]:.2f}"
            self._next = now + (time.monotonic() - now) / SHARE
        return self._score
