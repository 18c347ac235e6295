"""Visual experts that share the frozen text weight: W_text x + B A x.

r rank, D_in and D_out of a layer.
"""

import copy
import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.experts import Experts, active_parameters


class LowRankLinear(nn.Module):
    """The site's text layer, called with the tokens given here, plus B A x.

    The text layer is looked up at every call and is no sub-module: a checkpoint stores it once, patterns such as
    ``*.visual.*`` hit A and B alone, and when it trains, is adapted or is replaced, this expert follows.

    Args:
        site: Holds the text expert.
        part: Name of the layer within the text expert; "" is the expert itself.
        rank: r of A [r, D_in] and B [D_out, r]; B starts at zero.
    """

    shares_text = True
    """It calls a module of the text expert, so the two are gathered together where the model is sharded."""

    def __init__(self, site: Experts, part: str, rank: int) -> None:
        super().__init__()
        self._text = (site, part)  # in a tuple it is no sub-module
        base: Any = self.text
        self.factor_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.factor_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        if not self.factor_a.is_meta:
            nn.init.kaiming_uniform_(self.factor_a, a=math.sqrt(5))  # as nn.Linear initialises its own weight

    @property
    def text(self) -> nn.Module:
        """The text layer beside it."""
        site, part = self._text
        return site["text"].get_submodule(part)

    def active_parameters(self) -> int:
        return self.factor_a.numel() + self.factor_b.numel() + active_parameters(self.text)

    def forward(self, x: Tensor) -> Tensor:
        return self.text(x) + F.linear(F.linear(x, self.factor_a), self.factor_b)


def low_rank_expert(site: Experts, rank: int) -> nn.Module:
    """A visual expert built like the text expert, whose linear layers are LowRankLinear.

    What else the text expert has is copied: a norm is a vector, of which nothing can be saved.

    Raises:
        UserError: the rank is not below both sizes of a layer, so that a full expert would be smaller.
    """
    text = site["text"]
    made: dict[int, Any] = {}
    for part, layer in text.named_modules():
        if isinstance(layer, nn.Linear):
            if rank >= min(layer.in_features, layer.out_features):
                raise UserError(
                    f"router: rank {rank} is no low rank of a layer {layer.in_features} -> {layer.out_features}; "
                    "take a smaller one, or form full"
                )
            made[id(layer)] = LowRankLinear(site, part, rank)
    return copy.deepcopy(text, made)  # the memo stands in for the linear layers
