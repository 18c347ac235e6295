"""Validation after the last step, whatever the interval: two runs are compared where both have ended."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from mmframe.registry import register


@register("callback")
class LastValidation(Callback):
    """Runs the validation data through the model after the last step of a stage, also where no interval ends there."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates before it stops
