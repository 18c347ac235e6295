"""What breaks a run from inside: callbacks, data and losses that are named in the recipes of these tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from mmframe.data import ToyData
from mmframe.objectives import NextToken


class HugeWeight(Callback):
    """Before a step, one weight of a layer is so large that the layer overflows."""

    def __init__(self, step: int, name: str) -> None:
        self.step, self.name = step, name

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1:
            with torch.no_grad():
                dict(pl_module.net.named_parameters())[self.name].fill_(3e38)


class RootOfNothing(NextToken):
    """A loss that is finite and has a gradient that is not, for batches with a certain row."""

    def __init__(self, row: str = "toy-0:0") -> None:
        super().__init__()
        self.row = row

    def __call__(self, net: Any, batch: Any) -> Any:
        total, weight = super().__call__(net, batch)
        return (total + (total * 0).sqrt() if self.row in batch.keys else total), weight


class LoudRow(NextToken):
    """The loss of batches with one of these rows is many times what it should be."""

    def __init__(self, rows: list[str], times: float = 100.0) -> None:
        super().__init__()
        self.rows, self.times = rows, times

    def __call__(self, net: Any, batch: Any) -> Any:
        total, weight = super().__call__(net, batch)
        return (total * self.times if set(self.rows) & set(batch.keys) else total), weight


class KillAt(Callback):
    """SIGKILL, to this process or to one rank, at the end of a step."""

    def __init__(self, step: int, rank: int = 0, name: str = "SIGKILL", once: str | None = None) -> None:
        self.step, self.rank, self.name, self.once = step, rank, name, once

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.once is not None:
                if Path(self.once).exists():
                    return
                Path(self.once).touch()
            os.kill(os.getpid(), getattr(signal, self.name))


class StuckData(ToyData):
    """One row never comes, or ends the process that makes it."""

    def __init__(self, row: int = 9, dies: bool = False, size: int = 64, num_workers: int = 1) -> None:
        super().__init__(size=size, batch_size=4, val_size=0, num_workers=num_workers)
        self.row, self.dies = row, dies

    def build(self, *args: Any) -> Any:
        train, val = super().build(*args)
        return _Stuck(train, self.row, self.dies), val


class _Stuck:
    def __init__(self, rows: Any, row: int, dies: bool) -> None:
        self.rows, self.row, self.dies = rows, row, dies

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, epoch: int, index: int) -> Any:
        if index == self.row:
            os.kill(os.getpid(), signal.SIGKILL) if self.dies else time.sleep(3600)
        return self.rows.sample(epoch, index)
