"""The learning rate of each group, as the step used it."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


class LearningRates(Callback):
    """Logs `lr/GROUP` of the freezing policy's groups. (A group's vectors have no decay of their own, but its rate.)"""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            groups = enumerate(optimizer.param_groups)
            rates = {str(g.get("name", i)).removesuffix("/no_decay"): float(g["lr"]) for i, g in groups}
            pl_module.log_dict({f"lr/{name}": rate for name, rate in rates.items()}, batch_size=1)
