"""A step that went wrong, kept so that it can be run again: its batches, the weights before it, what was seen."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mmframe.batch import Batch
from mmframe.checkpoint_io import writer_of
from mmframe.cli.run_dir import write_atomically
from mmframe.errors import UserError
from mmframe.safetensors_file import replacing

FOLDER = "faults"


@dataclass(frozen=True)
class FaultySteps:
    """One step of all ranks.

    Attributes:
        folder: Where it lies.
        step: Its number, from 1.
        wrong: What was seen.
        seed: Of the run.
        batches: (rank, number of the micro-batch, batch), as the model saw them.
        losses: Of each of them, recorded.
    """

    folder: Path
    step: int
    wrong: str
    seed: int
    batches: list[tuple[int, int, Batch]]
    losses: list[float]

    @property
    def weights(self) -> Path:
        return self.folder / "weights.ckpt"


def save_faulty_step(
    run: Path,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    batches: Sequence[Batch],
    losses: Sequence[Tensor],
    wrong: str,
) -> Path:
    """Writes RUN/faults/step-N; every rank must call it, because weights may be spread over them.

    Returns:
        The folder.
    """
    folder = run / FOLDER / f"step-{trainer.global_step + 1:08d}"
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    writer_of(trainer).join()
    kept = {
        "losses": [float(loss) for loss in losses],
        "batches": [{f.name: _cpu(getattr(batch, f.name)) for f in fields(Batch)} for batch in batches],
    }
    for batch in kept["batches"]:
        batch["left_out"] = ()  # records that are not in it
    with replacing(folder / f"batches-rank{trainer.global_rank}.pt") as file:
        torch.save(kept, file)
    if trainer.is_global_zero:
        bad = [name for name, p in module.named_parameters() if p.grad is not None and not _finite(p.grad)]
        about = {
            "step": trainer.global_step + 1,
            "wrong": wrong,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "world_size": trainer.world_size,
            "gradients_not_finite": bad,
        }
        write_atomically(folder / "about.json", json.dumps(about, indent=2) + "\n")
    return folder


def load_faulty_step(folder: Path) -> FaultySteps:
    """Reads what save_faulty_step wrote.

    Raises:
        UserError: files are missing.
    """
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        batches, losses = [], []
        for rank in range(about["world_size"]):
            kept = torch.load(folder / f"batches-rank{rank}.pt", weights_only=True)
            batches += [(rank, number, Batch(**batch)) for number, batch in enumerate(kept["batches"])]
            losses += kept["losses"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"replay: {folder} is not complete: {error}") from error
    return FaultySteps(folder, about["step"], about["wrong"], about["seed"], batches, losses)


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _finite(grad: Any) -> bool:
    grad = grad.to_local() if hasattr(grad, "to_local") else grad
    return bool(torch.isfinite(grad).all())
