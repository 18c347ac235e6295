"""predictions.jsonl in the run directory: what `predict` answered, one line for each question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter


class Predictions(BasePredictionWriter):
    """Writes {"id", "prompt", "answer", "reference", "finish_reason", "tokens"} batch by batch.

    With several ranks each writes its share, to predictions.RANK.jsonl.

    Args:
        folder: The run directory; an earlier predictions.jsonl in it is replaced.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder
        self.count = self.equal = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = f".{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.file = self.folder / f"predictions{rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text("", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in prediction)
        self.count += len(prediction)
        self.equal += sum(row["answer"] == row["reference"] for row in prediction)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            print(f"predictions: {self.count} answers, {self.equal} equal the reference -> {self.file}")
