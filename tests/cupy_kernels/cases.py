"""Shapes and checks of every kernel, against float64: the same for the emulator and for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cupy_kernels import kernels, reference
from cupy_kernels.launch import GATE_UP_COLUMNS, PROJECT_COLUMNS, Launcher
from cupy_kernels.reference import Pair
from cupy_kernels.tiles import TileTable

NORM_TOLERANCE = 4e-3
"""Of the difference's norm over the norm: rounding to bf16 alone gives 1.7e-3."""
ELEMENT_TOLERANCE = 2e-2
"""Of one element, relative to itself plus the rms: several roundings in a row."""


@dataclass(frozen=True)
class Shape:
    """spans (expert, rows) one after another, D and F."""

    spans: tuple[tuple[int, int], ...]
    hidden: int
    intermediate: int

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.spans)

    def table(self, device: torch.device | str) -> TileTable:
        first, triples = 0, []
        for expert, rows in self.spans:
            triples.append((expert, first, first + rows))
            first += rows
        return TileTable.make(triples, device)


SHAPES = {
    "whole_tiles": Shape(((0, 128), (1, 128)), 128, 128),
    "sorted_ragged": Shape(((0, 37), (1, 166)), 136, 72),
    "text_image_text": Shape(((0, 20), (1, 150), (0, 13)), 64, 200),
    "many_short_spans": Shape(tuple((n % 2, 1 + n % 5) for n in range(24)), 96, 72),
    "one_token": Shape(((1, 1),), 72, 40),
    "expert_0_alone": Shape(((0, 130), (1, 0)), 40, 136),
    "expert_1_alone": Shape(((0, 0), (1, 65)), 72, 72),
    "deep": Shape(((0, 9), (1, 20)), 520, 392),
}
"""Small, but ragged in every dimension; `deep` goes more than once around each pipeline."""
DECODE = {
    "one_text": (1, 1),
    "one_image": (1, 0),
    "two_mixed": (2, 1),
    "three_mixed": (3, 1),
    "five_text": (5, 5),
    "eight_mixed": (8, 3),
    "eight_images": (8, 0),
}
"""(tokens, of them text)."""

Got = dict[str, tuple[Tensor, Tensor]]
"""What was computed, and float64."""


def matrix(rows: int, columns: int, device: torch.device | str) -> Tensor:
    return (torch.randn(rows, columns) / columns**0.5).bfloat16().to(device)


def pair(rows: int, columns: int, device: torch.device | str) -> Pair:
    return matrix(rows, columns, device), matrix(rows, columns, device)


def wide(tensors: Pair) -> Pair:
    return tensors[0].double(), tensors[1].double()


@contextmanager
def tiles_of(columns: int) -> Iterator[None]:
    """Within, Hopper's tiles have so many columns, whatever would be the fastest."""
    before, kernels.tile_columns = kernels.tile_columns, lambda *_: columns
    try:
        yield
    finally:
        kernels.tile_columns = before


WIDTHS = [
    *(("gate_up", columns) for columns in GATE_UP_COLUMNS),
    *(("project", columns) for columns in PROJECT_COLUMNS),
]
"""Kernels that there are for several widths of tiles."""


def check_gate_up(run: Launcher, shape: Shape, device: torch.device | str = "cpu") -> Got:
    table = shape.table(device)
    x = torch.randn(shape.rows, shape.hidden).bfloat16().to(device)
    gates, ups = (pair(shape.intermediate, shape.hidden, device) for _ in range(2))
    h, g, u = kernels.gate_up(run, x, gates, ups, table.tiles, keep=True)
    alone, nothing, _ = kernels.gate_up(run, x, gates, ups, table.tiles, keep=False)
    assert nothing is None and torch.equal(h, alone)
    assert g is not None and u is not None
    want = reference.gate_up(x.double(), wide(gates), wide(ups), table.spans)
    return dict(zip(("h", "g", "u"), zip((h, g, u), want, strict=True), strict=True))


def check_project(run: Launcher, shape: Shape, device: torch.device | str = "cpu") -> Got:
    table = shape.table(device)
    x = torch.randn(shape.rows, shape.intermediate).bfloat16().to(device)
    weights = pair(shape.hidden, shape.intermediate, device)
    residual = torch.randn(shape.rows, shape.hidden).bfloat16().to(device)
    bias = torch.randn(shape.hidden).bfloat16().to(device)
    out: Got = {}
    for name, biases, added in (("plain", (None, None), None), ("all", (bias, -bias), residual)):
        y = kernels.project(run, x, weights, biases, added, table.tiles)
        of_experts = tuple(None if b is None else b.double() for b in biases)
        more = None if added is None else added.double()
        out[name] = y, reference.project(x.double(), wide(weights), of_experts, more, table.spans)  # type: ignore[arg-type]
    return out


def check_swiglu_backward(run: Launcher, shape: Shape, device: torch.device | str = "cpu") -> Got:
    table = shape.table(device)
    dy = torch.randn(shape.rows, shape.hidden).bfloat16().to(device)
    g, u = (torch.randn(shape.rows, shape.intermediate).bfloat16().to(device) for _ in range(2))
    downs = pair(shape.hidden, shape.intermediate, device)
    got = kernels.swiglu_backward(run, dy, downs, g, u, table.tiles)
    want = reference.swiglu_backward(dy.double(), wide(downs), g.double(), u.double(), table.spans)
    return dict(zip(("dg", "du", "h"), zip(got, want, strict=True), strict=True))


def check_decode_ffn(run: Launcher, case: tuple[int, int], device: torch.device | str = "cpu") -> Got:
    tokens, first = case
    D, F = 264, 136
    x, delta = (torch.randn(tokens, D).bfloat16().to(device) for _ in range(2))
    norms = tuple((1 + 0.1 * torch.randn(D)).bfloat16().to(device) for _ in range(2))
    gates, ups, downs = pair(F, D, device), pair(F, D, device), pair(D, F, device)
    out: Got = {}
    for name, added in (("with_delta", delta), ("plain", None)):
        y = kernels.decode_ffn(run, x, added, norms, gates, ups, downs, first, 1e-5)  # type: ignore[arg-type]
        total = x if added is None else x + added  # rounded, as the residual stream is
        want = reference.decode_ffn(total.double(), None, wide(norms), wide(gates), wide(ups), wide(downs), first, 1e-5)  # type: ignore[arg-type]
        out[name] = y, want
    return out


CHECKS: dict[str, Callable[..., Got]] = {
    "gate_up": check_gate_up,
    "project": check_project,
    "swiglu_backward": check_swiglu_backward,
}


def wrong(got: Got) -> list[str]:
    """What is further from float64 than rounding explains."""
    found = []
    for name, (have, want) in got.items():
        difference = (have.double() - want).abs()
        norm = (difference.norm() / want.norm()).item() if want.numel() else 0.0
        allowed = ELEMENT_TOLERANCE * (want.abs() + want.square().mean().sqrt())
        if not norm < NORM_TOLERANCE:
            found.append(f"{name}: relative error {norm:.1e}")
        elif want.numel() and bool((difference > allowed).any()):
            found.append(f"{name}: an element is off by {difference.max():.1e}")
    return found
