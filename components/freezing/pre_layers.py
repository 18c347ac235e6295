"""Freezing policy for a backbone with new layers in front of the pretrained ones."""

from collections.abc import Sequence

from components.freezing.delta_tuning import EMBEDDER
from mmframe.contracts import FreezingPolicy, TrainableGroup
from mmframe.registry import register

PRE_LAYERS = ["backbone.pre_layers.*"]
NATIVE = ["backbone.layers.*_hw*"]


@register("freezing")
class PreLayers(FreezingPolicy):
    """Trains the patch embedder and the layers of `backbone.pre_layers`; the pretrained LLM is frozen.

    HoVLE's alignment (arXiv 2412.16158: the holistic embedding learns, the LLM is frozen) and NEO's
    pre-training (arXiv 2510.14979: the pre-Buffer).

    Args:
        lr: Peak rate of the new layers.
        embedder_lr: Peak rate of the patch embedder.
        native_lr: Peak rate of what `positions: native` adds to the pretrained layers (NEO); null freezes it.
    """

    toy_args = {"lr": 1e-3, "embedder_lr": 1e-3}

    def __init__(self, lr: float, embedder_lr: float, native_lr: float | None = None) -> None:
        self.lr, self.embedder_lr, self.native_lr = lr, embedder_lr, native_lr

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        groups = {
            "pre_layers": TrainableGroup(PRE_LAYERS, self.lr),
            "embedder": TrainableGroup(EMBEDDER, self.embedder_lr),
        }
        return groups if self.native_lr is None else groups | {"native": TrainableGroup(NATIVE, self.native_lr)}
