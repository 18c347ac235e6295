"""Tensor-parallel inference: the heads and the FFN's columns of every expert are spread over ranks (Megatron-LM,
arXiv 1909.08053).

q, k, v, gate and up lose rows of their weights, o and down columns; after o and down the ranks add up what they have.
Tokens, plan, norms, embedding and head are the same on every rank, and so are the logits, to the last bit. Caches hold
a rank's own heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.expert_backends import TORCH
from mmframe.experts import Experts

COLUMN_SITES = ("q", "k", "v", "q_hw", "k_hw")
SUMMED = "down"
"""Of an FFN's linear layers, the one that writes the result."""


class RowParallelLinear(nn.Module):
    """Columns of a linear layer's weight, for the inputs that this rank has; the ranks' results are added up.

    Args:
        weight: [D_out, D_in / ranks].
        bias: [D_out], added once; or None.
        group: The ranks.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, group: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        if y.numel():
            torch.distributed.all_reduce(y, group=self.group)
        return y if self.bias is None else y + self.bias


def spread(net: nn.Module, mesh: Any) -> None:
    """Spreads a MultimodalLM in place; call it with the same tokens on every rank. For inference alone.

    Args:
        net: With the same weights on every rank.
        mesh: Device mesh of one dimension.

    Raises:
        UserError: heads or columns that do not divide by the ranks, or experts that are not plain linear layers.
    """
    backbone: Any = net.backbone
    rank, ranks, group = mesh.get_local_rank(), mesh.size(), mesh.get_group()
    if ranks == 1:
        return
    for index, layer in enumerate(backbone.stack()):
        if layer.kv_heads % ranks:
            raise UserError(f"tensor parallel: layer {index} has {layer.kv_heads} key heads, not divisible by {ranks}")
        for norm in (layer.q_norm, layer.k_norm):
            if norm is not None and any(p.ndim > 1 for p in norm.parameters()):
                raise UserError(f"tensor parallel: {type(backbone).__name__} has a norm for each head; not supported")
        for site in COLUMN_SITES:
            for name, expert in _experts(layer, site):
                _columns(expert, rank, ranks, f"layer {index} {site}.{name}")
        for name, expert in _experts(layer, "o"):
            layer.o[name] = _rows(expert, rank, ranks, group, f"layer {index} o.{name}")
        for name, expert in _experts(layer, "ffn"):
            where = f"layer {index} ffn.{name}"
            parts = dict(expert.named_children())
            if SUMMED not in parts or any(True for _ in expert.parameters(recurse=False)):
                raise UserError(f"tensor parallel: {where} is a {type(expert).__name__}, not an FFN of gate, up, down")
            for part, linear in parts.items():
                if part != SUMMED:
                    _columns(linear, rank, ranks, f"{where}.{part}")
            setattr(expert, SUMMED, _rows(parts[SUMMED], rank, ranks, group, f"{where}.{SUMMED}"))
        layer.kv_heads //= ranks
    net.use_expert_backend(TORCH)  # type: ignore[operator]  # the kernels would not add up over ranks


def _experts(layer: nn.Module, site: str) -> list[tuple[str, nn.Module]]:
    experts = getattr(layer, site, None)
    return list(experts.items()) if isinstance(experts, Experts) else []


def _plain(linear: nn.Module, size: int, ranks: int, where: str) -> None:
    if type(linear) is not nn.Linear:
        raise UserError(f"tensor parallel: {where} is a {type(linear).__name__}, not a linear layer; merge it first")
    if size % ranks:
        raise UserError(f"tensor parallel: {where} has {size} columns, not divisible by {ranks} ranks")


def _columns(linear: Any, rank: int, ranks: int, where: str) -> None:
    """Keeps this rank's outputs of a linear layer."""
    _plain(linear, linear.out_features, ranks, where)
    linear.out_features //= ranks
    for name in ("weight", "bias"):
        if getattr(linear, name) is not None:
            own = getattr(linear, name).chunk(ranks)[rank].clone()  # clone: the whole tensor is let go
            setattr(linear, name, nn.Parameter(own, requires_grad=False))


def _rows(linear: Any, rank: int, ranks: int, group: Any, where: str) -> RowParallelLinear:
    """This rank's inputs of a linear layer."""
    _plain(linear, linear.in_features, ranks, where)
    own = linear.weight.chunk(ranks, dim=1)[rank].clone()
    return RowParallelLinear(own, linear.bias, group)
