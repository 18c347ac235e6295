"""NEO's native rotary embedding: heads get dimensions for the row and the column of a token beside those for its time.

Source: NEO (arXiv 2510.14979) and its released training code. T tokens, H heads, d head_dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.decoder import DecoderLayer
from components.backbones.rope import Rope
from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.plan import Plan

PLACES = Rope(theta=10000.0)
"""Rotary embedding of rows and columns; its base is that of the released code, whatever the LLM's is."""


class HalfNorms(nn.Module):
    """RMSNorm of the row half and the column half of a head [T, H, 2, d / 2], each with weights of its own."""

    def __init__(self, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, head_dim // 2))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class NativeLayer(DecoderLayer):
    """A layer of the Llama family whose queries and keys are twice as wide; half of the new part is for each axis.

    Keys start as zero there, so the scores are those of the pretrained layer. NEO's queries start as a slice of the
    pretrained ones; ours start at random. All tokens share the new weights, text too: once they train, the LLM does not
    compute on text what it did.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        hidden, d = sizes["hidden_size"], self.head_dim
        if d % 4:
            raise UserError(f"backbone: positions=native cuts heads into quarters; head_dim {d} is no multiple of 4")
        self.q_hw = Experts(nn.Linear(hidden, sizes["num_heads"] * d, bias=sizes["qkv_bias"]))
        self.k_hw = Experts(nn.Linear(hidden, sizes["kv_heads"] * d, bias=sizes["qkv_bias"]))
        self.q_hw_norm = Experts(HalfNorms(d, sizes["eps"])) if sizes["qk_norm"] else None
        self.k_hw_norm = Experts(HalfNorms(d, sizes["eps"])) if sizes["qk_norm"] else None
        self.key_dim, self.scale = 2 * d, d**-0.5

    def heads(self, x_TD: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x_TD, plan)
        q_hw, k_hw = (site(x_TD, plan).unflatten(-1, (-1, 2, self.head_dim // 2)) for site in (self.q_hw, self.k_hw))
        if self.q_hw_norm is not None and self.k_hw_norm is not None:
            q_hw, k_hw = self.q_hw_norm(q_hw, plan), self.k_hw_norm(k_hw, plan)
        return joined(q, *q_hw.unbind(-2)), joined(k, *k_hw.unbind(-2)), v


def joined(*parts: Tensor) -> Tensor:
    """One vector in which the first halves of all parts come first: rotated in halves, each part turns by itself."""
    halves = [part.chunk(2, dim=-1) for part in parts]
    return torch.cat([half[i] for i in (0, 1) for half in halves], dim=-1)


def native_angles(rope: Rope, positions: Tensor, lengths: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [..., 2 d] for time, row and column [3, ...] of rows of `lengths` tokens."""
    time, row, column = positions
    parts = [rope.angles(time, lengths, head_dim)]
    parts += [PLACES.angles(axis, lengths, head_dim // 2) for axis in (row, column)]
    cos, sin = (joined(*of_parts) for of_parts in zip(*parts, strict=True))
    return cos, sin
