"""Freezing policy for a model with an adapter: the additions train, the pretrained weights do not."""

from collections.abc import Sequence

from components.freezing.delta_tuning import EMBEDDER
from mmframe.contracts import FreezingPolicy, TrainableGroup
from mmframe.registry import register

ADDITIONS = ["*.lora_a", "*.lora_b"]


@register("freezing")
class LoRAParameters(FreezingPolicy):
    """Trains what `model.adapter: LoRA` adds; all pretrained weights are frozen.

    Args:
        lr: Peak rate of the additions; ten times that of full tuning is usual.
        embedder_lr: Peak rate of the patch embedder; null freezes it. It trains when the start was a text LLM.
    """

    toy_args = {"lr": 1e-3}

    def __init__(self, lr: float, embedder_lr: float | None = None) -> None:
        self.lr, self.embedder_lr = lr, embedder_lr

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        groups = {"lora": TrainableGroup(ADDITIONS, self.lr)}
        if self.embedder_lr is not None:
            groups["embedder"] = TrainableGroup(EMBEDDER, self.embedder_lr)
        return groups
