"""The same operators in plain torch, span by span: the oracle of the tests, and what runs on CPUs and in fp32.

T rows of the batch, D hidden, F intermediate, N columns of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cupy_kernels.tiles import triples

Pair = tuple[Tensor, Tensor]
"""One tensor for each of the two experts."""


def of_expert(x: Tensor, spans: Sequence[int], expert: int) -> Tensor:
    """Rows of one expert, in order; a view where they lie together."""
    slices = [x[first:end] for owner, first, end in triples(spans) if owner == expert]
    return slices[0] if len(slices) == 1 else torch.cat(slices) if slices else x[:0]


def by_span(x: Tensor, spans: Sequence[int], weights: Pair) -> Tensor:
    """Each row times its expert's weight [N, K]: [T, K] -> [T, N]."""
    pieces = [x[first:end] @ weights[expert].T for expert, first, end in triples(spans)]
    return torch.cat(pieces) if pieces else x.new_empty(0, weights[0].shape[0])


def project(
    x: Tensor, weights: Pair, biases: tuple[Tensor | None, Tensor | None], residual: Tensor | None, spans: Sequence[int]
) -> Tensor:
    pieces = [F.linear(x[first:end], weights[e], biases[e]) for e, first, end in triples(spans)]
    y = torch.cat(pieces) if pieces else x.new_empty(0, weights[0].shape[0])
    return y if residual is None else residual + y


def gate_up(x: Tensor, gates: Pair, ups: Pair, spans: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """SwiGLU's h [T, F], and the gate's and up's products."""
    g, u = by_span(x, spans, gates), by_span(x, spans, ups)
    return F.silu(g) * u, g, u


def swiglu_backward(dy: Tensor, downs: Pair, g: Tensor, u: Tensor, spans: Sequence[int]) -> tuple[Tensor, ...]:
    """dy [T, D] -> dg, du [T, F]; and h anew."""
    pieces = [dy[first:end] @ downs[expert] for expert, first, end in triples(spans)]
    dh = torch.cat(pieces) if pieces else dy.new_empty(0, downs[0].shape[1])
    precise = torch.promote_types(g.dtype, torch.float32)
    dh, g_, u_ = dh.to(precise), g.to(precise), u.to(precise)
    s = torch.sigmoid(g_)
    dg, du, h = dh * u_ * s * (1 + g_ * (1 - s)), dh * g_ * s, g_ * s * u_
    return dg.to(g.dtype), du.to(g.dtype), h.to(g.dtype)


def decode_ffn(
    x: Tensor, delta: Tensor | None, norms: Pair, gates: Pair, ups: Pair, downs: Pair, first: int, eps: float
) -> Tensor:
    spans = (0, 0, first, 1, first, len(x))
    total = x if delta is None else x + delta
    normed = F.rms_norm(total, total.shape[-1:], eps=eps)
    normed = torch.cat([normed[:first] * norms[0], normed[first:] * norms[1]])
    h, _, _ = gate_up(normed, gates, ups, spans)
    return total + by_span(h, spans, downs)
