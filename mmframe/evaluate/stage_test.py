"""A stage's model on one task: what `lightning test` does with each task of TaskData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmframe.cli.progress_line import ProgressLine
from mmframe.data.task_data import TaskData
from mmframe.evaluate.identity import Identity
from mmframe.evaluate.ranks import Ranks
from mmframe.evaluate.record import Result
from mmframe.evaluate.run import evaluate_task
from mmframe.loading import LoadedModel
from mmframe.tasks.task import Task

if TYPE_CHECKING:
    from mmframe.module import MultimodalModule


def test_task(module: MultimodalModule, task: Task) -> Result:
    """Asks and scores; the folder is results/TASK in the run directory.

    Autocast is off: a trainer's precision is how it trains, and the score is to be that of the weights.
    """
    trainer = module.trainer
    data: TaskData = trainer.datamodule  # type: ignore[attr-defined]
    run = Path(trainer.default_root_dir)
    model = LoadedModel(module.net, module.processor, dict(module.metadata))
    with torch.autocast(module.device.type, enabled=False):
        return evaluate_task(
            task,
            model,
            run / "results" / task.name,
            batch_size=data.batch_size,
            limit=data.limit,
            max_tiles=data.max_tiles,
            identity=Identity.of(module.net, str(run), f"{run.parent.name}-{run.name}"),
            ranks=Ranks.joined(),
            progress=ProgressLine(),
            force=data.force,
        )
