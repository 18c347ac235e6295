"""What adapters of linear layers share: which layers a recipe means, putting additions in, and merging them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mmframe.contracts import Adapter
from mmframe.errors import UserError, nearest
from mmframe.layers import within_layers

# The head and the embedding are used by their weights, not by a call that an addition could follow.
CALLED = ("backbone.layers.", "patch_embedder.")


class AdaptedLinear(nn.Linear):
    """A linear layer with something beside it. `weight` and `bias` are the layer's own parameters, by their own names.

    Args:
        base: The layer; its parameters are taken over, not copied.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # not Linear's, which would make weights only to drop them
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)  # None where there is none

    @abstractmethod
    def addition(self) -> Tensor:
        """What is beside the weight, as a weight: fp32 [D_out, D_in]."""

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with weight + addition, computed in fp32 and cast to the weight's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = (self.weight.float() + self.addition()).to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain


class LinearAdapter(Adapter):
    """Puts an AdaptedLinear in place of each linear layer that a pattern matches.

    Args:
        match: Shell-style patterns of layer names in the backbone's layers and the patch embedder.
        layers: Layers of the backbone that the patterns may hit.
    """

    def __init__(self, match: Sequence[str], layers: str = "all") -> None:
        self.name = type(self).__name__
        if isinstance(match, str) or not match:
            raise UserError(f"{self.name}: match must be a list of patterns, got {match!r}")
        self.match, self.layers = list(match), layers

    @abstractmethod
    def adapt(self, base: nn.Linear) -> AdaptedLinear:
        """The layer with its addition."""

    def install(self, net: nn.Module) -> None:
        """Wraps the layers that a pattern matches.

        Raises:
            UserError: a pattern matches no linear layer; with the nearest name.
        """
        linears = [name for name, module in net.named_modules() if type(module) is nn.Linear]
        known = within_layers([name for name in linears if name.startswith(CALLED)], self.layers, self.name)
        chosen: set[str] = set()
        for pattern in self.match:
            found = {name for name in known if fnmatchcase(name, pattern)}
            if not found:
                shapes = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in known})
                where = "" if self.layers == "all" else f" {self.layers}"
                raise UserError(
                    f"{self.name}: pattern {pattern!r} matches no linear layer of the backbone's layers{where} or the "
                    f"patch embedder; {nearest(pattern, shapes)}"
                )
            chosen |= found
        for name in sorted(chosen):
            base = net.get_submodule(name)
            assert isinstance(base, nn.Linear)
            _put(net, name, self.adapt(base))

    def merge(self, net: nn.Module) -> None:
        for name, layer in list(adapted(net)):
            _put(net, name, layer.merged())


def adapted(net: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """The layers that have an addition, by name."""
    return ((name, module) for name, module in net.named_modules() if isinstance(module, AdaptedLinear))


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    module.train(net.training)
    setattr(net.get_submodule(parent), leaf, module)
