"""Throughput, memory and gradient norms in the logged metrics."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from mmframe.callbacks.data_wait import WaitClock
from mmframe.freezing import component_of

_COUNTS = ("tokens", "image_tokens", "supervised", "samples")


class Throughput(Callback):
    """Logs, every `log_every_n_steps`: tokens per second, share of image tokens, share of the time in which training
    waited for data, peak memory, gradient norms.

    The module tells what a batch held: `step_stats = {"tokens": ..., "image_tokens": ..., "supervised": ...,
    "samples": ...}`. Times of validation and of checkpoints are not counted. The rank's own tokens are logged, times
    the world size. `totals` stand in done.json, over every attempt of the run.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.image_tokens = 0
        self.supervised = 0
        self.samples = 0
        self.seconds = 0.0
        self._busy = 0.0
        self._seen = 0
        self._seen_image = 0
        self._logged = 0
        self._start = 0.0
        self._wait = WaitClock()
        self.rate = 0.0
        """Tokens per second of all ranks, as it was last logged."""
        self.just_logged = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait.watch(trainer)
        self._logged = trainer.global_step  # else a run that goes on would log in the middle of its first step

    def leave_out(self, seconds: float) -> None:
        """Does not count so much of the time since the last batch."""
        self._start += seconds

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not self._start:
            self._start = time.monotonic()
            self._wait.taken()  # the first fetch, in which loaders start

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        stats = getattr(pl_module, "step_stats", None) or {}
        self.tokens += stats.get("tokens", 0)
        self.image_tokens += stats.get("image_tokens", 0)
        self.supervised += stats.get("supervised", 0)
        self.samples += stats.get("samples", 0)
        now = time.monotonic()
        self._busy += now - self._start
        self.seconds += now - self._start
        self._start = now
        step = trainer.global_step
        if step == self._logged or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            self.just_logged = False
            return
        self._logged, self.just_logged = step, True
        tokens, image = self.tokens - self._seen, self.image_tokens - self._seen_image
        self.rate = tokens / max(self._busy, 1e-9) * trainer.world_size
        values = {
            "train/tokens_per_s": self.rate,
            "train/data_wait_share": min(1.0, self._wait.taken() / max(self._busy, 1e-9)),
            "train/image_token_share": image / max(tokens, 1),
            "train/tokens": float(self.tokens) * trainer.world_size,
            **memory(),
        }
        data = getattr(trainer, "datamodule", None)
        if hasattr(data, "num_bad"):  # records that this rank has left out
            values["data/bad"] = float(data.num_bad)  # type: ignore[union-attr]
        pl_module.log_dict(values, batch_size=1)
        self._seen, self._seen_image, self._busy = self.tokens, self.image_tokens, 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._start:  # else no batch has begun yet
            self._start += time.monotonic() - self._paused

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict({f"grad_norm/{k}": v for k, v in gradient_norms(pl_module).items()}, batch_size=1)

    def totals(self, trainer: pl.Trainer) -> dict[str, float]:
        """Tokens and samples of all ranks, seconds of training, peak memory of this process."""
        seen = {name: getattr(self, name) * trainer.world_size for name in _COUNTS}
        return {**seen, "seconds": round(self.seconds, 3), **memory()}

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*_COUNTS, "seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in (*_COUNTS, "seconds"):
            setattr(self, name, state_dict.get(name, 0))
        self._seen, self._seen_image = self.tokens, self.image_tokens


def memory() -> dict[str, float]:
    """Peak memory of this process, GiB: resident, and on the GPU where there is one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"memory/peak_rss_gib": peak / 2**30}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["memory/peak_cuda_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def gradient_norms(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """L2 norm of the gradients of each component that trains."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(part_of(name), []).append(parameter.grad)
    return {key: _norm(grads) for key, grads in groups.items()}


def part_of(name: str) -> str:
    """The part a parameter belongs to: "embedder", "experts" (the new ones), "text", or its top-level name."""
    name = name.removeprefix("net.")
    if name.startswith("backbone."):
        return "text" if ", " not in (part := component_of(name)) or part.endswith(", text") else "experts"
    return {"patch_embedder": "embedder"}.get(name.split(".")[0], name.split(".")[0])


def _norm(grads: list[torch.Tensor]) -> torch.Tensor:
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]))
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # type: ignore[operator]
