"""LoRA: a low-rank addition beside frozen linear layers, merged into them when the weights are handed on.

r rank, D_in and D_out of a layer.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from components.adapters.linear import AdaptedLinear, LinearAdapter
from mmframe.errors import UserError
from mmframe.registry import register

TEXT_LAYERS = [*(f"backbone.layers.*.{site}.text" for site in "qkvo"), "backbone.layers.*.ffn.text.*"]
"""Attention and FFN of the pretrained LLM."""


class LowRankAddition(nn.Module):
    """scale * B A x. A module of its own: trained tensors never lie beside frozen ones (mmframe.sharding).

    Args:
        base: The layer that it stands beside.
        rank: r of A [r, D_in] and B [D_out, r]; B starts at zero.
        scale: Factor of the addition.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale = scale
        if not self.lora_a.is_meta:
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear initialises its own weight

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class LoRALinear(AdaptedLinear):
    """y = W x + b + scale * B A x.

    Args:
        base: The layer; its parameters are taken over, not copied.
        rank: r of A [r, D_in] and B [D_out, r]; B starts at zero.
        scale: Factor of the addition.
        dropout: On the addition's input, in training.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        self.added = LowRankAddition(base, rank, scale)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(x, self.weight, self.bias) + self.added(dropped)

    def addition(self) -> Tensor:
        return self.added.scale * (self.added.lora_b.float() @ self.added.lora_a.float())


@register("adapter")
class LoRA(LinearAdapter):
    """Low-rank adaptation of linear layers (Hu et al., arXiv 2106.09685); train it with LoRAParameters.

    For all tokens alike, whatever their kind. VoRA (arXiv 2503.20680) is this on the first layers of the LLM, e.g.
    `layers: 0-23`; a low-rank expert for visual tokens alone is ModalityRouter's `form: low_rank`.

    Args:
        rank: r, size of the bottleneck.
        alpha: The addition is scaled by alpha / rank.
        dropout: On the addition's input, in training.
        match: Shell-style patterns of layer names in the backbone's layers and the patch embedder; default: the text
            attention and FFN, `backbone.layers.*.{q,k,v,o}.text` and `backbone.layers.*.ffn.text.*`. The visual
            experts are `backbone.layers.*.ffn.visual.*` and so on.
        layers: Layers of the backbone that the patterns may hit: all, 0-15, -8--1, 0-3,8-11.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        match: Sequence[str] | None = None,
        layers: str = "all",
    ) -> None:
        super().__init__(TEXT_LAYERS if match is None else match, layers)
        if rank < 1 or not 0 <= dropout < 1:
            raise UserError(f"LoRA: rank={rank} must be at least 1, dropout={dropout} in 0 .. 1")
        self.rank, self.scale, self.dropout = rank, alpha / rank, dropout

    def adapt(self, base: nn.Linear) -> LoRALinear:
        return LoRALinear(base, self.rank, self.scale, self.dropout)
