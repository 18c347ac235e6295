"""DeepSpeed ZeRO-1, the engine that Mono-InternVL was trained with; `pip install 'mmframe[deepspeed]'`.

Imported only where `trainer.strategy: deepspeed_zero1` asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy


class DeepSpeedZeroOne(DeepSpeedStrategy):
    """Lightning's, of stage 1; runs on CPUs over gloo too, so that a test can hold it to the other strategies.

    It divides gradients itself, so the divisor of a step must be known before its backward: MultimodalModule asks for
    accumulate_grad_batches=1. Its checkpoints are DeepSpeed's, and only it continues them.

    Args:
        settings: Of DeepSpeedStrategy.
    """

    def __init__(self, **settings: Any) -> None:
        # with "auto" Lightning would make a loader only to ask for its batch size, for a line of the log
        given: dict[str, Any] = {"stage": 1, "logging_batch_size_per_gpu": 1}
        super().__init__(**(given | settings))

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        if self.root_device.type == "cpu":
            super(DeepSpeedStrategy, self).setup_environment()  # past Lightning's word that it must be a GPU
        else:
            super().setup_environment()

    def setup_distributed(self) -> None:
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
