"""Operations of the kernels for torch's flop counter: those of the matrix products that a step needs, 2 m n k each.

T rows, D hidden, F intermediate, K depth and N columns of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cupy_kernels.reference import triples


def rows(spans: Sequence[int], expert: int) -> int:
    """Rows of one expert."""
    return sum(end - first for owner, first, end in triples(spans) if owner == expert)


def ffn(x: Tensor, residual: Tensor | None, gate0: Tensor, *_: Any, **__: Any) -> int:
    """gate, up and down."""
    return 3 * 2 * x.shape[0] * gate0.numel()


def ffn_backward(dy: Tensor, x: Tensor, gate0: Tensor, *rest: Any, **more: Any) -> int:
    """The gradient of the hidden values; that of x, of each weight that is wanted, and gate and up once more if they
    were not kept."""
    g, _, _, spans, wanted = rest[-5:]
    product = 2 * gate0.numel()
    count = x.shape[0] * (1 + 2 * bool(wanted[0]) + 2 * (g.numel() == 0))
    count += sum(rows(spans, expert) * sum(wanted[1 + 3 * expert : 4 + 3 * expert]) for expert in (0, 1))
    return product * count


def project(x: Tensor, w0: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.shape[0] * w0.numel()


def project_backward(
    dy: Tensor, x: Tensor, w0: Tensor, w1: Tensor, spans: Sequence[int], wanted: Sequence[bool], **_: Any
) -> int:
    """The gradient of x, and of each weight that is wanted."""
    count = x.shape[0] * bool(wanted[0]) + sum(rows(spans, e) * bool(wanted[1 + e]) for e in (0, 1))
    return 2 * w0.numel() * count


def decode_ffn(x: Tensor, delta: Tensor | None, norm0: Tensor, norm1: Tensor, gate0: Tensor, *_: Any, **__: Any) -> int:
    return 3 * 2 * x.shape[0] * gate0.numel()


def register() -> None:
    """Makes them known to torch."""
    formulas: tuple[Any, ...] = (ffn, ffn_backward, project, project_backward, decode_ffn)
    for formula in formulas:
        operator = getattr(torch.ops.cupy_kernels, formula.__name__)
        register_flop_formula(operator, get_raw=True)(formula)
