"""A gated branch: a second, full-size weight beside a linear layer that fades in, and is merged in the end."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.adapters.linear import AdaptedLinear, LinearAdapter
from mmframe.errors import UserError
from mmframe.registry import register

FFN_LAYERS = ["backbone.layers.*.ffn.text.up", "backbone.layers.*.ffn.text.down"]


class Branch(nn.Module):
    """tanh(g) V x. A module of its own: trained tensors never lie beside frozen ones (mmframe.sharding).

    Args:
        base: The layer that it stands beside.
        std: Of V, normal.
    """

    def __init__(self, base: nn.Linear, std: float) -> None:
        super().__init__()
        self.branch_weight = nn.Parameter(torch.empty_like(base.weight))
        self.branch_gate = nn.Parameter(base.weight.new_zeros(1))
        if not self.branch_weight.is_meta:
            nn.init.normal_(self.branch_weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch_gate.tanh() * F.linear(x, self.branch_weight)


class GatedLinear(AdaptedLinear):
    """y = W x + b + tanh(g) V x.

    Args:
        base: The layer; its parameters are taken over, not copied.
        std: Of the new V [D_out, D_in], normal; g is a number and starts at zero, so that V learns once g has moved.
    """

    def __init__(self, base: nn.Linear, std: float) -> None:
        super().__init__(base)
        self.added = Branch(base, std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.added(x)

    def addition(self) -> Tensor:
        return self.added.branch_gate.float().tanh() * self.added.branch_weight.float()


@register("adapter")
class GatedBranch(LinearAdapter):
    """A full-size branch behind a tanh gate, for all tokens; train it with GatedBranchParameters.

    EVE v1.2 (the step between EVE, arXiv 2406.11832, and EVEv2; merge_moe.py of its released code): beside the up and
    down projections of the FFN, merged into them after training, so that the model is as large as before.

    Args:
        match: Shell-style patterns of layer names in the backbone's layers and the patch embedder; default: up and
            down of the text FFN.
        layers: Layers of the backbone that the patterns may hit: all, 0-15, -8--1, 0-3,8-11.
        std: Standard deviation of the branch's new weights.
    """

    def __init__(self, match: Sequence[str] | None = None, layers: str = "all", std: float = 0.02) -> None:
        super().__init__(FFN_LAYERS if match is None else match, layers)
        if std <= 0:
            raise UserError(f"GatedBranch: std={std} must be above 0: behind a gate of zero, zeros never move")
        self.std = std

    def adapt(self, base: nn.Linear) -> GatedLinear:
        return GatedLinear(base, self.std)
