"""Time that training stands still for the next batch."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

FETCH = "train_dataloader_next"
"""How Lightning's profiler names the fetch of a training batch."""


class WaitClock:
    """Counts the seconds between the profiler's start and stop of a fetch; with any profiler, also the silent one.

    With loader processes it is the time that they are late; without them it is all of reading and decoding.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0
        self._watched: Any = None

    def watch(self, trainer: pl.Trainer) -> None:
        """Listens to the trainer's profiler from here on."""
        profiler: Any = getattr(trainer, "profiler", None)
        if profiler is None or self._watched is profiler:
            return
        self._watched = profiler
        start, stop = profiler.start, profiler.stop

        def noted_start(action: str) -> None:
            if action.endswith(FETCH):
                self._since = time.monotonic()
            start(action)

        def noted_stop(action: str) -> None:
            stop(action)
            if self._since and action.endswith(FETCH):
                self.seconds += time.monotonic() - self._since
                self._since = 0.0

        profiler.start, profiler.stop = noted_start, noted_stop

    def taken(self) -> float:
        """Seconds since this was asked before."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
