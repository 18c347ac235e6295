"""Looks at every step before the optimiser takes it: a loss or gradient that is not finite, a loss that jumps."""

from __future__ import annotations

import math
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from mmframe.cli.safety import Faults
from mmframe.errors import UserError
from mmframe.faulty_step import save_faulty_step

MOST_SKIPPED = 10
"""Steps left out one after another, after which a run that skips them stops: it learns nothing any more."""


class StepGuard(Callback):
    """Stops, or goes on without the step, before the weights are touched. All ranks decide the same.

    A step left out moves neither weights nor optimiser state; step and learning rate are counted on, so that the run
    sees the same data in the same order. (Leaving out the batches around a spike: PaLM, arXiv 2204.02311, section
    5.1.) Costs one pass over the gradients, and on several ranks one reduction of three numbers.

    Args:
        faults: What to do.
        folder: The run's; a step at which it stops is kept in it, for `mmframe replay`.
    """

    def __init__(self, faults: Faults, folder: Path) -> None:
        self.faults, self.folder = faults, folder
        self.recent: deque[float] = deque(maxlen=faults.spike_window)
        """Losses of the last steps that were taken."""
        self.skipped = self.in_a_row = 0
        self._batches: list[Any] = []
        self._losses: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self._batches.append(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        finite, loss = self._look(trainer, pl_module, optimizer)
        wrong, does = self._judge(finite, loss, trainer)
        if does == "stop":
            self._stop(trainer, pl_module, wrong)
        if does == "skip":
            self._skip(trainer, optimizer, wrong)
        elif finite:
            self.recent.append(loss)
            self.in_a_row = 0
        if does == "warn":
            _say(trainer, f"step {trainer.global_step + 1}: {wrong}")
        self._batches, self._losses = [], []

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> tuple[bool, float]:
        """Whether loss and gradients of all ranks are finite, and the loss of the whole global batch."""
        loss = torch.stack(self._losses).sum()
        finite = torch.isfinite(loss)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # it looks at the gradients itself, and lowers the scale, in which the loss came
            loss = loss / scaler.get_scale()
        else:
            grads = [_local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if grads:
                finite &= torch.isfinite(torch.nn.utils.get_total_norm(grads))
        weight = getattr(module, "_weight_seen", None)  # None: the loss is a mean already
        figures = torch.stack([(~finite).float(), loss, loss.new_zeros(()) if weight is None else weight.float()])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(figures)
        bad, total, weight_of_all = figures.tolist()
        return not bad, total / trainer.world_size / (1.0 if weight is None else max(weight_of_all, 1e-8))

    def _judge(self, finite: bool, loss: float, trainer: pl.Trainer) -> tuple[str, str]:
        """What is wrong, in words, and what to do about it; ("", "") when nothing is."""
        faults = self.faults
        if not finite:
            wrong = (
                f"the loss is {loss}" if not math.isfinite(loss) else f"the loss is {loss:.4g}, its gradient not finite"
            )
            return wrong, faults.nonfinite
        if faults.spike == "off" or len(self.recent) < faults.spike_window:
            return "", ""
        usual = statistics.median(self.recent)
        if loss <= faults.spike_factor * usual:
            return "", ""
        return (
            f"the loss is {loss:.4g}, {loss / max(usual, 1e-12):.1f} times the median {usual:.4g} of the last "
            f"{len(self.recent)} steps (faults.spike_factor={faults.spike_factor:g})",
            faults.spike,
        )

    def _skip(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer, wrong: str) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row > MOST_SKIPPED:
            raise UserError(
                f"step {trainer.global_step + 1}: {wrong}; {MOST_SKIPPED} steps before it were left out as well, so "
                "the run learns nothing any more; take a lower learning rate, or faults.nonfinite=stop"
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # not zero: zero gradients move the weights by momentum and decay
        _say(trainer, f"step {trainer.global_step + 1}: {wrong}; left out ({self.skipped} so far)")

    def _stop(self, trainer: pl.Trainer, module: pl.LightningModule, wrong: str) -> None:
        folder = save_faulty_step(self.folder, trainer, module, self._batches, self._losses, wrong)
        bad = next((n for n, loss in enumerate(self._losses) if not torch.isfinite(loss)), 0)
        keys = getattr(self._batches[bad], "keys", ())
        samples = f"samples {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}; " if keys else ""
        raise UserError(
            f"step {trainer.global_step + 1}: {wrong}; {samples}the weights were not touched, and the step is kept in "
            f"{folder}: `mmframe replay {self.folder}` runs it again and names the first module"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.extend(state_dict.get("recent", []))
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)


def _local(tensor: Any) -> torch.Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _say(trainer: pl.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, file=sys.stderr, flush=True)
