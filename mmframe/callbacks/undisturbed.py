"""Something else in the middle of training, after which training goes on as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import numpy as np
import torch

from mmframe.callbacks.progress import StageProgress
from mmframe.callbacks.throughput import Throughput


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Runs without gradients; afterwards every generator of random numbers and the mode of every module is as before.

    Generators: torch's of the CPU and of this process's GPU, numpy's and Python's. Modes: a module that was in eval
    mode inside of one that trains (a frozen encoder, say) is again.
    """
    modes = [(part, part.training) for part in module.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    # no_grad, not inference_mode: a table that the model caches on the way must be usable in training
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for part, training in modes:
                part.training = training


@contextmanager
def clocks_stopped(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The time in between counts neither for the throughput nor for the time to go, as that of validation."""
    clocks = [c for c in trainer.callbacks if isinstance(c, Throughput | StageProgress)]  # type: ignore[attr-defined]
    for clock in clocks:
        clock.on_validation_start(trainer, module)
    try:
        yield
    finally:
        for clock in clocks:
            clock.on_validation_end(trainer, module)
