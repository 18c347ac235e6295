"""heartbeat.json: what a run is doing, for `mmframe watch` and `mmframe runs`, also from another machine."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmframe.cli.job import Handover
from mmframe.cli.run_state import HEARTBEAT


class Heartbeat(Callback):
    """Writes, from rank 0 and at most every few seconds: `time`, `host`, `pid`, `phase`, `step`, `steps` and the place
    in the chain.

    It is written between batches, not from a thread, so that a run that hangs falls silent. `phase` is "starting",
    "training" or "validating"; at the end "done", "stopped" (SIGTERM, Ctrl-C) or "failed", then with `error`, its
    first line.

    Args:
        folder: The run directory.
        handover: Place of the stage in the chain.
        seconds: Between two writings.
    """

    def __init__(self, folder: Path, handover: Handover | None = None, seconds: float = 5.0) -> None:
        self.file, self.at, self.seconds = folder / HEARTBEAT, handover or Handover(), seconds
        self._written = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._beat(trainer, "starting", now=True)  # what an attempt before has left here is no longer true

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat(trainer, "training", now=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._beat(trainer, "training")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._beat(trainer, "validating")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat(trainer, "done", now=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException | KeyboardInterrupt):
            self._beat(trainer, "stopped", now=True)
        else:
            line = next(iter(str(exception).splitlines()), "") or type(exception).__name__
            self._beat(trainer, "failed", now=True, error=line)

    def _beat(self, trainer: pl.Trainer, phase: str, now: bool = False, **more: Any) -> None:
        passed = time.monotonic() - self._written
        if not trainer.is_global_zero or (passed < self.seconds and not now):
            return
        self._written = time.monotonic()
        told = {
            "time": round(time.time(), 2),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": phase,
            "step": trainer.global_step,
            "steps": trainer.max_steps,
            "recipe": self.at.recipe,
            "stage": self.at.stage,
            **more,
        }
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            # renamed, but not synced: a reader must see all of it, and the next one comes soon
            temporary.write_text(json.dumps(told) + "\n", encoding="utf-8")
            os.replace(temporary, self.file)
        except OSError:  # e.g. the disk is full: no reason to end a run
            temporary.unlink(missing_ok=True)
