"""One readable decoder for the Llama family: RMSNorm, rotary attention with grouped keys, SwiGLU.

InternLM2, Llama, SmolLM2 and Qwen2 differ in sizes, biases, rotary scaling and checkpoint layout only.

B rows, L longest row, K columns of keys, T tokens in plan order, D hidden, F intermediate, H heads, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmframe.cache import KVCache
from mmframe.contracts import SITES, Backbone, check_fp16
from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.layout import Layout, check_attention
from mmframe.plan import Plan


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Args:
        theta: Base of the frequencies.
        scaling: ``none``, ``linear`` (positions divided by `factor`) or ``dynamic`` (NTK: the base grows once the
            context exceeds `max_positions`).
        factor: Scaling factor.
        max_positions: Context the base was trained with, tokens.
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    max_positions: int = 2048

    def __post_init__(self) -> None:
        if self.scaling not in ("none", "linear", "dynamic"):
            raise UserError(f"rope: scaling={self.scaling!r} is not known; use none, linear or dynamic")

    def changes_with_length(self, length: int) -> bool:
        return self.scaling == "dynamic" and length > self.max_positions

    def angles(self, positions: Tensor, lengths: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
        """cos, sin [..., head_dim] in fp32 for integer positions [...] of rows of `lengths` tokens (broadcast).

        Dynamic NTK is computed afresh from the row's length:
        base' = base * (factor * length / max - (factor - 1)) ^ (d / (d - 2)).
        The released code lets its table only grow, so that a short prompt after a long one changes; ours does not.
        """
        base: float | Tensor = self.theta
        if self.scaling == "dynamic":  # a ratio of 1 up to max_positions
            ratio = self.factor * lengths.float() / self.max_positions - (self.factor - 1)
            base = base * ratio.clamp(min=1)[..., None] ** (head_dim / (head_dim - 2))
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        t = positions.to(torch.float32)
        if self.scaling == "linear":
            t = t / self.factor
        angles = t[..., None] * (1.0 / (base**exponents))
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates halves (not interleaved pairs): x [..., head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def attend(q_BHLd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, mask: Tensor | None) -> Tensor:
    """SDPA of torch with grouped keys; causal where there is no mask.

    On the CPU the backward of the fused kernel is slow on many short rows (24 % of a training step of the demo,
    against 9 % for the plain formula), so training takes the plain one there.
    """
    plain = q_BHLd.device.type == "cpu" and torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        return F.scaled_dot_product_attention(
            q_BHLd, k_BHKd, v_BHKd, mask, is_causal=mask is None, enable_gqa=q_BHLd.shape[1] != k_BHKd.shape[1]
        )


class RMSNorm(nn.Module):
    """RMSNorm computed in fp32, cast back, then scaled: the order of the pretrained models."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class FFN(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_TD)) * self.up(x_TD))


class DecoderLayer(nn.Module):
    """x += o(attention(q, k, v)); x += ffn(x): seven sites, each an Experts."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        kv_heads: int,
        qkv_bias: bool,
        bias: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        kv_size = kv_heads * self.head_dim
        self.attn_norm = Experts(RMSNorm(hidden_size, eps))
        self.q = Experts(nn.Linear(hidden_size, hidden_size, bias=qkv_bias))
        self.k = Experts(nn.Linear(hidden_size, kv_size, bias=qkv_bias))
        self.v = Experts(nn.Linear(hidden_size, kv_size, bias=qkv_bias))
        self.o = Experts(nn.Linear(hidden_size, hidden_size, bias=bias))
        self.ffn_norm = Experts(RMSNorm(hidden_size, eps))
        self.ffn = Experts(FFN(hidden_size, intermediate_size))

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        x_TD = x_TD + self.attention(self.attn_norm(x_TD, plan), plan, layout, cache, index)
        return x_TD + self.ffn(self.ffn_norm(x_TD, plan), plan)

    def attention(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        q, k, v = (site(x_TD, plan).unflatten(-1, (-1, self.head_dim)) for site in (self.q, self.k, self.v))
        q = rotate(q, layout.cos, layout.sin)
        if cache is None:
            k, v = layout.grid(rotate(k, layout.cos, layout.sin)), layout.grid(v)
        elif layout.key_cos is not None and layout.key_sin is not None:
            k, v = cache.write(index, k, v, layout)
            k = rotate(k, layout.key_cos, layout.key_sin)
        else:
            k, v = cache.write(index, rotate(k, layout.cos, layout.sin), v, layout)
        q, k, v = (t.transpose(1, 2) for t in (layout.grid(q), k, v))
        y = attend(q, k, v, layout.mask)
        return self.o(layout.ungrid(y.transpose(1, 2)).flatten(1), plan)


class Decoder(Backbone):
    """Decoder-only LLM of the Llama family.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads; the head size is hidden_size / num_heads.
        kv_heads: Key-value heads; divides num_heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        rope: Rotary embedding.
        norm_eps: eps of every RMSNorm.
        tied_head: The head shares the embedding's weights.
        qkv_bias: q, k, v have biases (Qwen2).
        bias: q, k, v and o have biases (an option of InternLM2).
        attention: ``causal`` or ``image_bidirectional`` (slots of one image see one another).
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        kv_heads: int,
        intermediate_size: int,
        vocab_size: int,
        rope: Rope,
        norm_eps: float = 1e-5,
        tied_head: bool = False,
        qkv_bias: bool = False,
        bias: bool = False,
        attention: str = "causal",
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or num_heads % kv_heads:
            raise UserError(
                f"backbone: hidden_size {hidden_size} must divide into {num_heads} heads, "
                f"and num_heads {num_heads} into {kv_heads} kv_heads"
            )
        self.hidden_size, self.num_layers, self.vocab_size = hidden_size, num_layers, vocab_size
        self.kv_heads, self.head_dim = kv_heads, hidden_size // num_heads
        self.attention = check_attention(attention)
        self.rotary = rope
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, intermediate_size, num_heads, kv_heads, qkv_bias or bias, bias, norm_eps)
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.output = None if tied_head else nn.Linear(hidden_size, vocab_size, bias=False)
        self._initialise(std=0.02)

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.device.type != "meta":
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, ids_T: Tensor) -> Tensor:
        return self.embedding(ids_T)

    def rope(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotary.angles(positions, lengths, self.head_dim)

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None = None) -> Tensor:
        check_fp16(x_TD.dtype)
        for index, layer in enumerate(self.layers):
            x_TD = layer(x_TD, plan, layout, cache, index)
        return x_TD

    def head(self, h_SD: Tensor) -> Tensor:
        weight = self.embedding.weight if self.output is None else self.output.weight
        return F.linear(self.norm(h_SD), weight)

    def sites(self) -> Iterator[tuple[int, str, Experts]]:
        for index, layer in enumerate(self.layers):
            for site in SITES:
                yield index, site, getattr(layer, site)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        weight = self.norm.weight
        return KVCache(
            self.num_layers,
            rows,
            capacity,
            self.kv_heads,
            self.head_dim,
            dtype=weight.dtype,
            device=weight.device,
            raw_keys=self.rotary.changes_with_length(capacity),
        )
