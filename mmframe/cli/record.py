"""The record of a run: meta.json, config.yaml, the weights handed on, done.json; how it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmframe.cli.job import Job
from mmframe.cli.recipe import recipe_hash
from mmframe.cli.run_dir import read_json, write_atomically, write_numbered
from mmframe.provenance import code_revision, device_name, versions


class RunRecord(Callback):
    """Writes what the run was and how it ended; hands the weights on.

    Ctrl-C is treated as SIGTERM: the run stops after the current batch, where a checkpoint is exact.

    Args:
        job: The run.
        config_text: The configuration with every default, as YAML.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.config_text = ""
        self.ended = ""
        """How training ended early: "", "SIGTERM" or "SIGINT"."""
        self.seconds = 0.0
        self.keyboard = False
        """Whether Ctrl-C was pressed."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self.job.run.path.mkdir(parents=True, exist_ok=True)
            write_numbered(self.job.run.config, self.config_text)
            self._write_meta()

    def _write_meta(self) -> None:
        run = self.job.run
        attempts = read_json(run.meta).get("attempts", [])
        attempts.append(
            {
                "started": _now(),
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "resumed": self.job.resume is not None,
            }
        )
        meta = {
            **self.origin(),
            "device": device_name(),
            "attempts": attempts,
        }
        write_atomically(run.meta, json.dumps(meta, indent=2) + "\n")

    def origin(self) -> dict[str, Any]:
        """What the run is, in plain data: stands in meta.json, in every checkpoint and in the weights."""
        job = self.job
        return {
            "recipe": job.handover.recipe,
            "stage": job.handover.stage,
            "recipe_hash": recipe_hash(job.config),
            "started_from": job.handover.started_from,
            "seed": job.config.get("seed_everything", 0),
            **code_revision(),
            "versions": versions(),
            "command": sys.argv[1:],
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["mmframe"] = {**self.origin(), "config": self.config_text}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        try:
            self._old_handler = signal.signal(signal.SIGINT, self._on_ctrl_c)
        except ValueError:  # not in the main thread
            self._old_handler = None

    def _on_ctrl_c(self, signum: int, frame: Any) -> None:
        if self.keyboard:
            raise KeyboardInterrupt  # the second time: now
        self.keyboard = True
        print("\nstopping after this batch; once more Ctrl-C stops at once, without a checkpoint", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self._start
        if trainer.is_global_zero and not _is_trial(trainer):
            pl_module.save_weights(self.job.run.weights, {**self.origin(), "config": self.config_text})  # type: ignore

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) or (isinstance(exception, SIGTERMException) and self.keyboard):
            self.ended = "SIGINT"
        elif isinstance(exception, SIGTERMException):
            self.ended = "SIGTERM"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if getattr(self, "_old_handler", None) is not None:
            signal.signal(signal.SIGINT, self._old_handler)

    def finish(self, trainer: pl.Trainer) -> None:
        """Writes done.json, if training has come to its end."""
        if self.ended or _is_trial(trainer) or not trainer.is_global_zero or not self.job.run.weights.is_file():
            return
        metrics = {key: _number(value) for key, value in trainer.callback_metrics.items()}
        data = getattr(trainer, "datamodule", None)
        done = {
            "finished": _now(),
            "steps": trainer.global_step,
            "seconds": round(self.seconds, 1),
            "recipe_hash": recipe_hash(self.job.config),
            "weights": self.job.run.weights.name,
            "weights_id": uuid.uuid4().hex[:12],
            "metrics": metrics,
            "totals": totals(trainer),
            "data": data.fingerprint() if hasattr(data, "fingerprint") else {},  # type: ignore[union-attr]
        }
        write_atomically(self.job.run.done, json.dumps(done, indent=2) + "\n")


class LastCheckpoint(ModelCheckpoint):
    """checkpoints/last.ckpt: every n steps, and when the run is told to stop.

    It is written only where a resumed run goes on exactly: after an optimiser step. An error, or a stop between
    the micro-batches of one step, leaves the file of before.

    Args:
        folder: Where.
        every: Optimiser steps between two writings; 0: only when stopped.
    """

    def __init__(self, folder: Path, every: int) -> None:
        # 0 would bring back Lightning's default, the end of each epoch; a number beyond reach turns it off
        super().__init__(
            dirpath=folder,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every or sys.maxsize,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self._steps_at_batch_end = -1
        self._exact = False

    @property
    def state_key(self) -> str:
        return "LastCheckpoint"  # Lightning's holds the arguments, so that another `every` would not find its state

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self._exact = trainer.global_step != self._steps_at_batch_end
        self._steps_at_batch_end = trainer.global_step
        super().on_train_batch_end(trainer, *args, **kwargs)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and self._exact and self._should_save_on_exception(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: weights.safetensors and done.json are the end of a stage."""

    def _ModelCheckpoint__warn_if_dir_not_empty(self, dirpath: Any) -> None:
        """Silent: a run that is continued finds its own checkpoints, as it should."""


def totals(trainer: pl.Trainer) -> dict[str, float]:
    """What the stage took in all, over every attempt: each callback that counts something tells it."""
    found: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "totals"):
            found |= callback.totals(trainer)
    return found


def _is_trial(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)
