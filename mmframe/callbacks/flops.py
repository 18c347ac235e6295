"""Floating-point operations of training: counted on a few steps, scaled by tokens."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from mmframe.flops import FlopCounter


class Flops(Callback):
    """Counts forward and backward of the first batches and of every `every`-th, and takes the rest by their tokens.

    Logs `train/flops` (of the run so far, all ranks) and `train/flops_per_token`. A batch that is counted takes longer
    and gives the same loss and gradients, to the last bit.

    Args:
        first: Batches counted at the start of the run.
        every: Afterwards one in so many.
    """

    def __init__(self, first: int = 2, every: int = 200) -> None:
        self.first, self.every = first, every
        self.batches = 0
        self.tokens = 0
        self.counted_tokens = 0
        self.counted_flops = 0
        self._counter: FlopCounter | None = None

    @property
    def per_token(self) -> float:
        """Operations for a token, mean of the counted batches."""
        return self.counted_flops / max(1, self.counted_tokens)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.batches < self.first or (self.batches and self.batches % self.every == 0):
            self._counter = FlopCounter()
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        tokens = (getattr(pl_module, "step_stats", None) or {}).get("tokens", 0)
        counted = self._leave()
        if counted is not None:
            self.counted_flops += counted
            self.counted_tokens += tokens
        self.tokens += tokens
        self.batches += 1
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(
                {"train/flops": self.total(trainer), "train/flops_per_token": self.per_token}, batch_size=1
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> int | None:
        """Operations since the batch began; None when they were not counted."""
        if self._counter is None:
            return None
        self._counter.__exit__(None, None, None)
        counted, self._counter = self._counter.total, None
        return counted

    def total(self, trainer: pl.Trainer) -> float:
        """Operations of all ranks so far."""
        return self.per_token * self.tokens * trainer.world_size

    def totals(self, trainer: pl.Trainer) -> dict[str, float]:
        """For done.json."""
        return {"flops": self.total(trainer), "flops_per_token": self.per_token}

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("batches", "tokens", "counted_tokens", "counted_flops")}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        vars(self).update(state_dict)
