"""The ways to run a routed FFN that the fused kernels are measured against.

T rows of the batch, D hidden, F intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cupy_kernels.ops import ffn
from cupy_kernels.tiles import TileTable

Weights = list[tuple[Tensor, Tensor, Tensor]]
"""(gate [F, D], up [F, D], down [D, F]) of both experts."""


@dataclass(frozen=True)
class Routed:
    """One layer's FFN input and weights.

    x         [T, D], text rows first, as hidden states travel in mmframe
    mixed     the same rows in the order of a prompt: picture, then text
    is_image  bool [T] of `mixed`
    sizes     rows of text and of images
    """

    x: Tensor
    mixed: Tensor
    is_image: Tensor
    sizes: tuple[int, int]
    weights: Weights

    @classmethod
    def random(cls, visual: int, text: int, hidden: int, intermediate: int, device: torch.device) -> Routed:
        x = torch.randn(text + visual, hidden, device=device).bfloat16()
        is_image = torch.zeros(len(x), dtype=torch.bool, device=device)
        is_image[:visual] = True
        mixed = torch.cat([x[text:], x[:text]])
        return cls(x, mixed, is_image, (text, visual), random_weights(hidden, intermediate, device))


def random_weights(hidden: int, intermediate: int, device: torch.device) -> Weights:
    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, device=device) / columns**0.5).bfloat16()

    D, N = hidden, intermediate
    return [(matrix(N, D), matrix(N, D), matrix(D, N)) for _ in range(2)]


def swiglu_up(x: Tensor, expert: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    gate, up, _ = expert
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def plain_ffn(x: Tensor, expert: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return F.linear(swiglu_up(x, expert), expert[2])


def slices(given: Routed) -> Tensor:
    """cuBLAS on each expert's slice, SwiGLU in eager torch: mmframe's torch backend."""
    pieces = given.x.split(given.sizes)
    return torch.cat([plain_ffn(piece, expert) for piece, expert in zip(pieces, given.weights, strict=True)])


def index(given: Routed) -> Tensor:
    """Row numbers known beforehand, gathered and scattered around each expert."""
    y = torch.empty_like(given.mixed)
    rows = _rows(given)
    for expert, weights in zip(rows, given.weights, strict=True):
        y.index_copy_(0, expert, plain_ffn(given.mixed.index_select(0, expert), weights))
    return y


_known: dict[int, tuple[Tensor, Tensor]] = {}


def _rows(given: Routed) -> tuple[Tensor, Tensor]:
    key = id(given)
    if key not in _known:
        _known[key] = (~given.is_image).nonzero().flatten(), given.is_image.nonzero().flatten()
    return _known[key]


def mask(given: Routed) -> Tensor:
    """Boolean masks gather and scatter in every layer, each waiting for the device."""
    y = torch.empty_like(given.mixed)
    for wanted, weights in ((~given.is_image, given.weights[0]), (given.is_image, given.weights[1])):
        if wanted.any():
            y[wanted] = plain_ffn(given.mixed[wanted], weights)
    return y


def blend(given: Routed) -> Tensor:
    """Both experts on all rows, mixed by the mask."""
    share = given.is_image[:, None].to(given.mixed.dtype)
    return plain_ffn(given.mixed, given.weights[0]) * (1 - share) + plain_ffn(given.mixed, given.weights[1]) * share


def grouped_mm() -> Callable[..., Tensor] | None:
    """torch's grouped product, where this torch has one."""
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def grouped(given: Routed) -> Callable[[], Tensor] | None:
    """torch's grouped GEMM over stacked weights, SwiGLU in eager torch; None where it does not run."""
    product = grouped_mm()
    if product is None:
        return None
    gate_up = torch.stack([torch.cat([gate, up]) for gate, up, _ in given.weights]).transpose(1, 2)
    down = torch.stack([down for _, _, down in given.weights]).transpose(1, 2)
    ends = torch.tensor(given.sizes, device=given.x.device).cumsum(0).int()

    def run() -> Tensor:
        g, u = product(given.x, gate_up, offs=ends).chunk(2, dim=1)
        return product(F.silu(g) * u, down, offs=ends)

    try:
        run()
    except (RuntimeError, NotImplementedError):
        return None
    return run


def kernels(given: Routed) -> Callable[[], Tensor]:
    table = TileTable.sorted(given.sizes, given.x.device)
    return lambda: ffn(given.x, None, given.weights, table)


def candidates(given: Routed) -> dict[str, Callable[[], Tensor]]:
    """Name -> one FFN block of the layer; all give the same rows, sorted or in the prompt's order."""
    found: dict[str, Callable[[], Tensor] | None] = {
        "kernels": kernels(given),
        "slices": lambda: slices(given),
        "grouped": grouped(given),
        "index": lambda: index(given),
        "mask": lambda: mask(given),
        "blend": lambda: blend(given),
    }
    return {name: run for name, run in found.items() if run is not None}
