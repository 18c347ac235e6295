"""Freezing policies for a model with an adapter: the additions train, the pretrained weights do not."""

from collections.abc import Sequence
from typing import ClassVar

from components.freezing.delta_tuning import EMBEDDER
from mmframe.contracts import FreezingPolicy, TrainableGroup
from mmframe.registry import register


class AdditionsOnly(FreezingPolicy):
    """Trains what an adapter adds, and the patch embedder if it is given a rate.

    Args:
        lr: Peak rate of the additions; ten times that of full tuning is usual for LoRA.
        embedder_lr: Peak rate of the patch embedder; null freezes it. It trains when the start was a text LLM.
    """

    group: ClassVar[str]
    additions: ClassVar[list[str]]
    toy_args = {"lr": 1e-3}

    def __init__(self, lr: float, embedder_lr: float | None = None) -> None:
        self.lr, self.embedder_lr = lr, embedder_lr

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        groups = {self.group: TrainableGroup(self.additions, self.lr)}
        if self.embedder_lr is not None:
            groups["embedder"] = TrainableGroup(EMBEDDER, self.embedder_lr)
        return groups


@register("freezing")
class LoRAParameters(AdditionsOnly):
    """Trains what `model.adapter: LoRA` adds; all pretrained weights are frozen.

    Source: LoRA (arXiv 2106.09685); VoRA (arXiv 2503.20680) trains its embedder beside.
    """

    group = "lora"
    additions = ["*.lora_a", "*.lora_b"]


@register("freezing")
class GatedBranchParameters(AdditionsOnly):
    """Trains what `model.adapter: GatedBranch` adds; all pretrained weights are frozen.

    Source: EVE v1.2 (the step after arXiv 2406.11832, in its released code).
    """

    group = "branch"
    additions = ["*.branch_weight", "*.branch_gate"]
