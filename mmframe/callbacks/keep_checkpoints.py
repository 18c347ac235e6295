"""Which checkpoints a run writes, and which of them stay: the last ones, those of every n steps, the best."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmframe.checkpoint_files import SUMS, numbered, publish, seal, step_name, step_of, surplus
from mmframe.checkpoint_io import writer_of
from mmframe.cli.safety import Checkpoints
from mmframe.errors import UserError, suggest


class KeepCheckpoints(Checkpoint):
    """Writes checkpoints/step-N.ckpt every n steps, and when the run is told to stop.

    It is written only where a resumed run goes on exactly: after an optimiser step. An error, or a stop between the
    micro-batches of one step, leaves the files of before.

    Args:
        folder: Where.
        every: Optimiser steps between two; 0: only when stopped.
        keep: How many stay, and of which metric the best.
    """

    def __init__(self, folder: Path, every: int, keep: Checkpoints | None = None) -> None:
        self.folder, self.every, self.keep = folder, every, keep or Checkpoints()
        self.scores: dict[str, float] = {}
        """File name of each best checkpoint -> its metric."""
        self._saved = self._steps_at_batch_end = -1
        self._exact = False

    @property
    def state_key(self) -> str:
        return "LastCheckpoint"  # as in the first checkpoints; without arguments, so that others find it too

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict.get("scores", {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = self._steps_at_batch_end = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            for left in self.folder.glob(".*.ckpt.*"):  # of a write that was killed
                if left.is_file() or left.is_symlink():
                    left.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        self._exact = step != self._steps_at_batch_end
        self._steps_at_batch_end = step
        if self._exact and self.every and step % self.every == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.keep.best is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._keep_if_best(trainer, self.keep.best)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and self._exact and self._saved != trainer.global_step:
            self._save(trainer)
        if not isinstance(exception, UserError):  # else that is what must be told
            writer_of(trainer).join()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes nothing: weights.safetensors and done.json are the end of a stage."""
        writer_of(trainer).join()

    def _save(self, trainer: pl.Trainer) -> None:
        path = self.folder / step_name(trainer.global_step)
        self._saved = trainer.global_step
        trainer.save_checkpoint(path)

        def finish() -> None:
            if path.is_dir() and not (path / SUMS).is_file():  # DeepSpeed's own
                seal(path)
            publish(path)
            for old in surplus(numbered(self.folder), self.keep.keep_last, self.keep.keep_every):
                _remove(old)

        if trainer.is_global_zero:
            writer_of(trainer).then(finish)

    def _keep_if_best(self, trainer: pl.Trainer, metric: str) -> None:
        found = trainer.callback_metrics.get(metric)
        if found is None:
            raise UserError(f"checkpoints.best: {metric!r} was not logged; {suggest(metric, trainer.callback_metrics)}")
        name, score = step_name(trainer.global_step, "best"), float(found)
        worse = (lambda value: -value) if self.keep.mode == "min" else (lambda value: value)
        ranked = sorted({**self.scores, name: score}.items(), key=lambda item: worse(item[1]), reverse=True)
        kept = dict(ranked[: self.keep.keep_best])
        if name not in kept or score != score:
            return
        self.scores = kept
        trainer.save_checkpoint(self.folder / name)

        def finish() -> None:
            for old in numbered(self.folder, "best"):
                if old.name not in kept and (step_of(old, "best") or 0) <= trainer.global_step:
                    _remove(old)

        if trainer.is_global_zero:
            writer_of(trainer).then(finish)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
