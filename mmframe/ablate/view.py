"""The view of a whole sweep: one block that is rewritten on a terminal, a line now and then in a file. No torch."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from mmframe.ablate.queue import Task
from mmframe.ablate.run_folder import Progress, RunFolder
from mmframe.cli.progress_line import bar, clock, short


class SweepView:
    """Shows e.g.

        [######......] 3/6  2 running  1 waiting  0 failed  1:20 left
          ffn-s1    s1_2_semantic  step 40/120  loss 2.310  1.2k tok/s

    It reads the ends of the runs' metrics.jsonl, a few kilobytes a second.

    Args:
        folders: Of all runs of the grid, by task name.
        done_before: Runs that an earlier sweep had finished.
        stream: Where; default: stderr.
        seconds: Between two updates on a terminal.
        log_seconds: Between two lines in a file.
    """

    def __init__(
        self,
        folders: Mapping[str, RunFolder],
        done_before: int = 0,
        stream: TextIO | None = None,
        seconds: float = 1.0,
        log_seconds: float = 60.0,
    ) -> None:
        self.folders, self.done_before = folders, done_before
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.interval = seconds if self.terminal else log_seconds
        self._begun = self._shown = time.monotonic()
        self._height = 0
        self._first: int | None = None

    def changed(self, task: Task) -> None:
        """One line that stays, for a task that has started or ended."""
        name = self.folders[task.name].run.id
        told = {
            "running": f"{name} starts ({self.folders[task.name].path})",
            "done": f"{name} done in {clock(task.ended - task.begun)}",
            "failed": f"{name} FAILED: {task.reason} (see {task.log})",
            "stopped": f"{name} stopped; the same command continues it",
            "waiting": f"{name} waits: {task.reason}",
        }[task.state]
        self._clear()
        self.stream.write(told + "\n")
        self.stream.flush()

    def tick(self, tasks: Sequence[Task], now: float | None = None) -> None:
        """Shows where the sweep is, if it is time."""
        now = time.monotonic() if now is None else now
        if now - self._shown < self.interval:
            return
        self._shown = now
        lines = self.lines(tasks, now)
        self._clear()
        if self.terminal:
            width, height = shutil.get_terminal_size()
            lines = [line[: width - 1] for line in lines[: height - 1]]
            self._height = len(lines)
        self.stream.write("\n".join(lines) + "\n")
        self.stream.flush()

    def lines(self, tasks: Sequence[Task], now: float) -> list[str]:
        """The block for this moment."""
        counts = {
            state: sum(task.state == state for task in tasks) for state in ("running", "waiting", "failed", "done")
        }
        at = {task.name: self.folders[task.name].progress() for task in tasks if task.state == "running"}
        parts = [bar(self.done_before + counts["done"], self.done_before + len(tasks), 12)]
        parts += [f"{counts[state]} {state}" for state in ("running", "waiting", "failed")]
        left = self._left(tasks, at, now)
        head = "  ".join([*parts, *([f"{clock(left)} left"] if left is not None else [])])
        return [head, *(self._line(self.folders[name], progress) for name, progress in at.items())]

    def _left(self, tasks: Sequence[Task], at: Mapping[str, Progress], now: float) -> float | None:
        """Seconds to go, by the optimiser steps done since the sweep began; None: not known."""
        total = done = 0
        for task in tasks:
            steps = sum(self.folders[task.name].run.steps.values())
            total += steps
            done += steps if task.state in ("done", "failed") else at[task.name].done if task.name in at else 0
        if self._first is None:
            self._first = done  # what runs had done that are continued
        moved = done - self._first
        return (total - done) * (now - self._begun) / moved if moved > 0 and total else None

    def _line(self, folder: RunFolder, at: Progress) -> str:
        total = sum(folder.run.steps.values())
        parts = [f"  {folder.run.id}", at.stage, f"step {at.done}/{total}" if total else f"step {at.done}"]
        parts.append(f"loss {float(at.loss):.3f}" if at.loss is not None else "")
        parts.append(f"{short(float(at.tokens_per_s))} tok/s" if at.tokens_per_s is not None else "")
        return (
            "  ".join(part for part in parts if part.strip()) if at.done else f"  {folder.run.id}  {at.stage}  starting"
        )

    def _clear(self) -> None:
        """Takes the block away."""
        if self._height:
            self.stream.write(f"\033[{self._height}A\033[J")
            self._height = 0
