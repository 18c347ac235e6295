"""Freezing policies of EViP and EViP++: delta tuning that widens stage by stage.

Sources: Mono-InternVL section 3.2 (S1.1, S1.2: patch embedding and visual experts; S1.3: attention too; S2:
everything) and internvl_chat_finetune.py of the released code (attention means wqkv and wo, never the norms).
"""

from collections.abc import Sequence

from mmframe.contracts import FreezingPolicy, TrainableGroup
from mmframe.registry import register

EMBEDDER = ["patch_embedder.*"]
EXPERTS = ["backbone.layers.*.visual.*"]
TEXT_ATTENTION = [f"backbone.layers.*.{site}.text.*" for site in "qkvo"]


def visual_experts(experts: Sequence[str], lr: float) -> dict[str, TrainableGroup]:
    """The group of the visual experts; none in a model without them (the dense baseline)."""
    return {"experts": TrainableGroup(EXPERTS, lr)} if "visual" in experts else {}


@register("freezing")
class TrainOnly(FreezingPolicy):
    """Trains the named groups and freezes all else: the general policy.

    Source: delta tuning (Mono-InternVL, arXiv 2410.08202, section 3.2) of any parts.

    Args:
        train: Name -> ``{match: [patterns], lr: peak rate, weight_decay: override, layers: 0-11}``, the last two if
            wanted. Patterns are shell-style over names such as ``backbone.layers.3.ffn.visual.gate.weight``,
            ``patch_embedder.conv.weight``; `layers` says which layers of the backbone they may hit.
    """

    toy_args = {"train": {"embedder": {"match": ["patch_embedder.*"], "lr": 1e-3}}}

    def __init__(self, train: dict[str, TrainableGroup]) -> None:
        # a recorded call holds plain data
        self.train = {name: TrainableGroup(**g) if isinstance(g, dict) else g for name, g in train.items()}

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        return self.train


@register("freezing")
class EmbedderOnly(FreezingPolicy):
    """Trains the patch embedder alone.

    Source: the first stage of LLaVA (arXiv 2304.08485), which trains what lies between picture and LLM.

    Args:
        lr: Peak learning rate.
    """

    toy_args = {"lr": 1e-3}

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        return {"embedder": TrainableGroup(EMBEDDER, self.lr)}


@register("freezing")
class VisualParameters(FreezingPolicy):
    """S1.1 and S1.2: patch embedder and visual experts (of the FFN and, in 1.5, of the attention).

    The whole text path is frozen: text-only logits stay those of the base LLM, to the last bit. Source: Mono-InternVL
    (arXiv 2410.08202), section 3.2; Mono-InternVL-1.5 (arXiv 2507.12566).

    Args:
        embedder_lr: Peak rate of the patch embedder.
        experts_lr: Peak rate of the experts.
    """

    toy_args = {"embedder_lr": 1e-3, "experts_lr": 1e-3}

    def __init__(self, embedder_lr: float, experts_lr: float) -> None:
        self.embedder_lr, self.experts_lr = embedder_lr, experts_lr

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        return {"embedder": TrainableGroup(EMBEDDER, self.embedder_lr)} | visual_experts(experts, self.experts_lr)


@register("freezing")
class VisualAndAttention(VisualParameters):
    """S1.3: also the pretrained q, k, v, o. Norms, text FFN, embedding and head stay frozen.

    Source: Mono-InternVL (arXiv 2410.08202), section 3.2 and Table 9; the released code trains wqkv and wo.

    Args:
        embedder_lr: Peak rate of the patch embedder.
        experts_lr: Peak rate of the experts.
        attention_lr: Peak rate of the pretrained attention.
        attention_layers: Layers whose attention trains: all, 0-11, -4--1, 0-3,8-11.
    """

    toy_args = {"embedder_lr": 1e-3, "experts_lr": 1e-3, "attention_lr": 1e-4}

    def __init__(
        self, embedder_lr: float, experts_lr: float, attention_lr: float, attention_layers: str = "all"
    ) -> None:
        super().__init__(embedder_lr, experts_lr)
        self.attention = TrainableGroup(TEXT_ATTENTION, attention_lr, layers=attention_layers)

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        return super().groups(experts) | {"attention": self.attention}


@register("freezing")
class Everything(FreezingPolicy):
    """S2, and the full-tuning baseline: every parameter trains.

    Source: Mono-InternVL (arXiv 2410.08202), section 3.2 and Table 5.

    Args:
        text_lr: Peak rate of the pretrained LLM.
        embedder_lr: Peak rate of the patch embedder.
        experts_lr: Peak rate of the experts.
        text_layers: Layers of the LLM that train: all, 0-11, -4--1, 0-3,8-11; embedding, final norm and head always do.
    """

    toy_args = {"text_lr": 1e-4, "embedder_lr": 1e-3, "experts_lr": 1e-3}

    def __init__(self, text_lr: float, embedder_lr: float, experts_lr: float, text_layers: str = "all") -> None:
        self.text_lr, self.embedder_lr, self.experts_lr = text_lr, embedder_lr, experts_lr
        self.text_layers = text_layers

    def groups(self, experts: Sequence[str]) -> dict[str, TrainableGroup]:
        text = ["backbone.*.text.*", "backbone.[!l]*"]  # [!l]: embedding, final norm, head; not layers
        groups = {
            "text": TrainableGroup(text, self.text_lr, layers=self.text_layers),
            "embedder": TrainableGroup(EMBEDDER, self.embedder_lr),
        }
        return groups | visual_experts(experts, self.experts_lr)
