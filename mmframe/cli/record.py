"""The record of a run: meta.json, config.yaml, the weights handed on, done.json; how it ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import uuid
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mmframe.cli.job import Job
from mmframe.cli.recipe import recipe_hash
from mmframe.cli.run_dir import read_json, write_atomically, write_numbered
from mmframe.provenance import code_revision, device_name, versions
from mmframe.sharding import is_sharded


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
        checkpoint["mmframe"] = {**self.origin(), "config": self.config_text, "data": _fingerprint(trainer)}

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
        takes_part = trainer.is_global_zero or is_sharded(pl_module.net)  # type: ignore[arg-type]
        if takes_part and not _is_trial(trainer):
            told = {**self.origin(), "config": self.config_text, "data": _fingerprint(trainer)}
            pl_module.save_weights(self.job.run.weights, told)  # type: ignore[operator]

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
        done = {
            "finished": _now(),
            "steps": trainer.global_step,
            "seconds": round(self.seconds, 1),
            "recipe_hash": recipe_hash(self.job.config),
            "weights": self.job.run.weights.name,
            "weights_id": uuid.uuid4().hex[:12],
            "metrics": metrics,
            "totals": totals(trainer),
            "data": _fingerprint(trainer),
        }
        write_atomically(self.job.run.done, json.dumps(done, indent=2) + "\n")


def totals(trainer: pl.Trainer) -> dict[str, float]:
    """What the stage took in all, over every attempt: each callback that counts something tells it."""
    found: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "totals"):
            found |= callback.totals(trainer)
    return found


def _fingerprint(trainer: pl.Trainer) -> dict[str, str]:
    """What the training data is made of, where it says so."""
    data = getattr(trainer, "datamodule", None)
    return data.fingerprint() if hasattr(data, "fingerprint") else {}  # type: ignore[union-attr]


def _is_trial(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)
