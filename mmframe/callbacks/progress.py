"""One line of progress over the stage and the chain: loss, tokens/s, share of image tokens, time to go."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from mmframe.cli.job import Handover
from mmframe.cli.progress_line import clock, rewrite, short


class StageProgress(ProgressBar):
    """Writes e.g.

        [2/4 s1_2_semantic]  37/200  loss 2.31  1.2k tok/s  34% image  0:41 left  chain 23%

    On a terminal the line is rewritten; in a log file there is one line every `log_seconds`.

    Args:
        handover: Place of the stage in the chain.
        seconds: Between two updates on a terminal.
        log_seconds: Between two lines in a file.
    """

    def __init__(self, handover: Handover | None = None, seconds: float = 0.2, log_seconds: float = 10.0) -> None:
        super().__init__()
        self.at = handover or Handover()
        self.stream = sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = seconds if self.terminal else log_seconds
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.enabled and self.terminal:
            self.stream.write("\r\033[K")
        if self.enabled:
            print(*args, **kwargs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun = self._shown = time.monotonic()
        self._from = self._first = trainer.global_step
        self._tokens = self._image = 0
        self._pause = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        stats = getattr(pl_module, "step_stats", None) or {}
        self._tokens += stats.get("tokens", 0)
        self._image += stats.get("image_tokens", 0)
        if trainer.global_step == self._first + 1 and self._from == self._first:
            # the first step warms up; it would spoil the rate of a short stage
            self._begun, self._from = now, trainer.global_step
            self._tokens = self._image = 0
        if self.enabled and now - self._shown >= self.interval:
            self._shown = now
            self._write(self.line(trainer, now))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if hasattr(self, "_begun"):
            self._pause += time.monotonic() - self._paused

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled:
            self._write(self.line(trainer, time.monotonic()), last=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.enabled and self.terminal and hasattr(self, "_begun"):
            self.stream.write("\n")

    def line(self, trainer: pl.Trainer, now: float) -> str:
        """The text for this moment."""
        step, steps = trainer.global_step, trainer.max_steps
        passed = max(now - self._begun - self._pause, 1e-9)
        metrics = trainer.progress_bar_metrics
        loss = metrics.get("train/loss", metrics.get("train/loss_step", metrics.get("loss")))
        parts = [f"[{self.at.index}/{self.at.count} {self.at.stage}]"] if self.at.stage else []
        parts.append(f"{step}/{steps}" if steps > 0 else f"step {step}")
        if loss is not None:
            parts.append(f"loss {float(loss):.3f}")
        if self._tokens:
            parts.append(f"{short(self._tokens * trainer.world_size / passed)} tok/s")
            parts.append(f"{100 * self._image / self._tokens:.0f}% image")
        bad = getattr(getattr(trainer, "datamodule", None), "num_bad", 0)
        if bad:
            parts.append(f"{bad:,} bad")
        done = step - self._from
        if steps > 0 and done > 0:
            parts.append(f"{clock((steps - step) * passed / done)} left")
        if self.at.count > 1 and self.at.steps_total:
            parts.append(f"chain {100 * (self.at.steps_before + step) / self.at.steps_total:.0f}%")
        return "  ".join(parts)

    def _write(self, text: str, last: bool = False) -> None:
        rewrite(self.stream, text, self.terminal, last)
