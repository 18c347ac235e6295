"""LoRA: a low-rank addition beside frozen linear layers, merged into them when the weights are handed on.

r rank, D_in and D_out of a layer.
"""

import math
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.contracts import Adapter
from mmframe.errors import UserError, nearest
from mmframe.registry import register

TEXT_LAYERS = [*(f"backbone.layers.*.{site}.text" for site in "qkvo"), "backbone.layers.*.ffn.text.*"]
"""Attention and FFN of the pretrained LLM."""
# The head and the embedding are used by their weights, not by a call that an addition could follow.
CALLED = ("backbone.layers.", "patch_embedder.")


class LoRALinear(nn.Linear):
    """y = W x + b + scale * B A x. `weight` and `bias` are the pretrained layer's own parameters, by their own names.

    Args:
        base: The layer; its parameters are taken over, not copied.
        rank: r of A [r, D_in] and B [D_out, r]; B starts at zero.
        scale: Factor of the addition.
        dropout: On the addition's input, in training.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)  # not Linear's, which would make weights only to drop them
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)  # None where there is none
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale, self.dropout = scale, dropout
        if not self.lora_a.is_meta:
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear initialises its own weight

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = F.linear(dropped, self.lora_a)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(inner, self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with W + scale * B A, computed in fp32 and cast to W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        addition = self.scale * (self.lora_b.float() @ self.lora_a.float())
        weight = (self.weight.float() + addition).to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain


@register("adapter")
class LoRA(Adapter):
    """Low-rank adaptation of linear layers (Hu et al., arXiv 2106.09685); train it with LoRAParameters.

    Args:
        rank: r, size of the bottleneck.
        alpha: The addition is scaled by alpha / rank.
        dropout: On the addition's input, in training.
        match: Shell-style patterns of layer names in the backbone's layers and the patch embedder; default: the text
            attention and FFN, `backbone.layers.*.{q,k,v,o}.text` and `backbone.layers.*.ffn.text.*`. The visual
            experts are `backbone.layers.*.ffn.visual.*` and so on.
    """

    def __init__(
        self, rank: int = 16, alpha: float = 32.0, dropout: float = 0.0, match: Sequence[str] | None = None
    ) -> None:
        if rank < 1 or not 0 <= dropout < 1:
            raise UserError(f"LoRA: rank={rank} must be at least 1, dropout={dropout} in 0 .. 1")
        if isinstance(match, str) or (match is not None and not match):
            raise UserError(f"LoRA: match must be a list of patterns, got {match!r}")
        self.rank, self.scale, self.dropout = rank, alpha / rank, dropout
        self.match = TEXT_LAYERS if match is None else list(match)

    def install(self, net: nn.Module) -> None:
        """Wraps the layers that a pattern matches.

        Raises:
            UserError: a pattern matches no linear layer; with the nearest name.
        """
        linears = [name for name, module in net.named_modules() if type(module) is nn.Linear]
        known = [name for name in linears if name.startswith(CALLED)]
        chosen: set[str] = set()
        for pattern in self.match:
            found = {name for name in known if fnmatchcase(name, pattern)}
            if not found:
                shapes = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in known})
                raise UserError(
                    f"LoRA: pattern {pattern!r} matches no linear layer of the backbone's layers or the patch "
                    f"embedder; {nearest(pattern, shapes)}"
                )
            chosen |= found
        for name in sorted(chosen):
            base = net.get_submodule(name)
            assert isinstance(base, nn.Linear)
            _put(net, name, LoRALinear(base, self.rank, self.scale, self.dropout))

    def merge(self, net: nn.Module) -> None:
        for name, layer in list(adapted(net)):
            _put(net, name, layer.merged())


def adapted(net: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The layers that have an addition, by name."""
    return ((name, module) for name, module in net.named_modules() if isinstance(module, LoRALinear))


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    module.train(net.training)
    setattr(net.get_submodule(parent), leaf, module)
