"""Transformer layers over the tokens of a tile: those of InternViT, with the options of decoder layers.

n tiles, C width, K tokens of a tile, H heads, d head size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from components.backbones.decoder import FFN, RMSNorm
from components.backbones.rope import rotate
from mmframe.errors import UserError, suggest

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}


def chosen(name: str, value: str, known: Sequence[str]) -> str:
    """The value of an option; a UserError that says which there are."""
    if value not in known:
        raise UserError(f"patch_embedder: {name}={value!r} is not known; {suggest(value, known)}")
    return value


class Attention(nn.Module):
    """Every token of a tile sees every other, or those before it. The norms of q and k go over all heads together, and
    are RMSNorms whatever the norms of the layer are (REF modeling_intern_vit.py)."""

    def __init__(self, channels: int, num_heads: int, qkv_bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        if channels % num_heads:
            raise UserError(f"patch_embedder: channels {channels} do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.q_norm = RMSNorm(channels, eps) if qk_norm else None
        self.k_norm = RMSNorm(channels, eps) if qk_norm else None
        self.proj = nn.Linear(channels, channels)

    def forward(self, x_nKC: Tensor, angles: tuple[Tensor, Tensor] | None = None, causal: bool = False) -> Tensor:
        q, k, v = self.qkv(x_nKC).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if angles is not None:
            cos_Kd, sin_Kd = (angle.to(q.dtype) for angle in angles)
            q, k = rotate(q, cos_Kd, sin_Kd), rotate(k, cos_Kd, sin_Kd)
        y_nHKd = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.proj(y_nHKd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(gelu(fc1 x)), with the exact GELU."""

    def __init__(self, channels: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, channels)

    def forward(self, x_nKC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_nKC)))


FFNS = {"gelu": MLP, "swiglu": FFN}


class Layer(nn.Module):
    """x += ls1 * attn(norm1 x); x += ls2 * mlp(norm2 x); without a layer scale, both factors are 1."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        intermediate_size: int,
        norm: str,
        eps: float,
        qkv_bias: bool,
        qk_norm: bool,
        layer_scale: float | None,
        drop_path: float = 0.0,
        ffn: str = "gelu",
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[chosen("norm", norm, list(NORMS))](channels, eps=eps)
        self.attn = Attention(channels, num_heads, qkv_bias, qk_norm, eps)
        self.ls1 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.norm2 = NORMS[norm](channels, eps=eps)
        self.mlp = FFNS[chosen("ffn", ffn, list(FFNS))](channels, intermediate_size)
        self.ls2 = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_nKC: Tensor, angles: tuple[Tensor, Tensor] | None = None, causal: bool = False) -> Tensor:
        y = self.attn(self.norm1(x_nKC), angles, causal)
        x_nKC = x_nKC + self.drop_path(y if self.ls1 is None else y * self.ls1)
        y = self.mlp(self.norm2(x_nKC))
        return x_nKC + self.drop_path(y if self.ls2 is None else y * self.ls2)
