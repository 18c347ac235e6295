"""Gemma 4 Unified: norms on both sides of attention and FFN, GeGLU, and two kinds of layers.

Local layers see the last `window` tokens (and their whole image, where it is within); global layers see everything
before them, with fewer and larger key heads whose keys are the values too.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.decoder import Decoder, DecoderLayer
from components.backbones.gemma_config import gemma_arguments, gemma_config, global_layers
from components.backbones.geometry_options import check_sections
from components.backbones.hf_config import check_model_type
from components.backbones.official_names import GEMMA_SITES, LLAMA_FFN, site_links, top_links
from components.backbones.rope import Rope
from mmframe.cache import KVCache
from mmframe.checkpoints import TensorLink
from mmframe.contracts import check_fp16
from mmframe.errors import UserError
from mmframe.layout import Layout
from mmframe.plan import Plan
from mmframe.registry import register


def normalise(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) in fp32, not cast back."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


class GemmaNorm(nn.Module):
    """RMSNorm that is cast back after its scale, not before it."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (normalise(x, self.eps) * self.weight.float()).to(x.dtype)


class GeGLU(nn.Module):
    """down(gelu(gate x) * up x), with the GELU by tanh."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x_TD), approximate="tanh") * self.up(x_TD))


class GemmaLayer(DecoderLayer):
    """x += out_norm(attention(norm x)); x += out_norm(ffn(norm x)); x *= out_scale.

    The two norms behind and the scale are no sites: all kinds of tokens share them.

    Args:
        local: It sees the last tokens alone.
        own_values: It has a `v`; else the keys before their norm are the values.
        sizes: Of DecoderLayer.
    """

    norm_class = GemmaNorm
    ffn_class = GeGLU
    out_scale: Tensor
    scale = 1.0  # the norms of q and k say how sharp attention is

    def __init__(self, local: bool = True, own_values: bool = True, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.local, self.eps = local, sizes["eps"]
        if not own_values:
            self.v = None
        self.attn_out_norm = GemmaNorm(sizes["hidden_size"], self.eps)
        self.ffn_out_norm = GemmaNorm(sizes["hidden_size"], self.eps)
        self.register_buffer("out_scale", torch.ones(1))

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        x_TD = x_TD + self.attn_out_norm(self.attention(self.attn_norm(x_TD, plan), plan, layout, cache, index))
        x_TD = x_TD + self.ffn_out_norm(self.ffn(self.ffn_norm(x_TD, plan), plan))
        return x_TD * self.out_scale

    def heads(self, x_TD: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        assert self.q_norm is not None and self.k_norm is not None
        q, k = (site(x_TD, plan).unflatten(-1, (-1, self.head_dim)) for site in (self.q, self.k))
        v = k if self.v is None else self.v(x_TD, plan).unflatten(-1, (-1, self.head_dim))
        return self.q_norm(q, plan), self.k_norm(k, plan), normalise(v, self.eps).to(v.dtype)


@register("backbone")
class Gemma(Decoder):
    """The decoder of Gemma 4 Unified, of any size; the defaults are the 12B model (11.9 B parameters, head tied).

    Source: Gemma 4 (arXiv 2607.02770), config.json of google/gemma-4-12B-it and the code of transformers. What that
    model does not use is not here: layers that share keys, inputs per layer, experts. Audio is not either. Within
    images local layers alone are bidirectional, as when transformers generates (its plain forward makes global layers
    so too). The cache keeps all tokens of local layers, not the window alone.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads of local layers.
        global_kv_heads: Key-value heads of global layers.
        head_dim: Size of a head of local layers.
        global_head_dim: Size of a head of global layers.
        intermediate_size: F of the GeGLU.
        vocab_size: V.
        global_every: Each layer of this number is global, and the last one; the others are local.
        window: Tokens that local layers see, with the token itself.
        values_from_keys: Global layers have no `v`.
        rope_theta: Base of the rotary embedding of local layers.
        global_rope_theta: Base of that of global layers.
        global_rotary: Share of the pairs of dimensions of a global head that turn, the fastest ones.
        logit_cap: Logits are cap * tanh(logits / cap); null: they are not capped.
        norm_eps: eps of every norm.
        tied_head: The head shares the embedding's weights.
        attention: Mask of local layers, within their window; global layers are causal.
        positions: ``linear``, ``shared`` (one an image) or ``grid`` (time, row, column).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
            Of local layers; those frequencies of global layers that turn are shared out as in Qwen2-VL.
        pre_layers: New local layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
    """

    official_attention = ("image_bidirectional", "causal")
    model_types = ("gemma4_unified_text",)
    toy_args = dict(
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        kv_heads=2,
        global_kv_heads=1,
        head_dim=8,
        global_head_dim=16,
        intermediate_size=48,
        vocab_size=64,
        global_every=2,
        window=4,
    )

    def __init__(
        self,
        hidden_size: int = 3840,
        num_layers: int = 48,
        num_heads: int = 16,
        kv_heads: int = 8,
        global_kv_heads: int = 1,
        head_dim: int = 256,
        global_head_dim: int = 512,
        intermediate_size: int = 15360,
        vocab_size: int = 262144,
        global_every: int = 6,
        window: int = 1024,
        values_from_keys: bool = True,
        rope_theta: float = 10000.0,
        global_rope_theta: float = 1000000.0,
        global_rotary: float = 0.25,
        logit_cap: float | None = 30.0,
        norm_eps: float = 1e-6,
        tied_head: bool = True,
        attention: str = "image_bidirectional",
        positions: str = "linear",
        grid_sections: list[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
    ) -> None:
        if num_heads % global_kv_heads or global_head_dim % 2 or window < 1:
            raise UserError(
                f"backbone: global_kv_heads {global_kv_heads} must divide num_heads {num_heads}, global_head_dim "
                f"{global_head_dim} must be even, window {window} at least 1"
            )
        everywhere = dict(local=False, kv_heads=global_kv_heads, head_dim=global_head_dim)
        everywhere["own_values"] = not values_from_keys
        super().__init__(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            kv_heads=kv_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            rope=Rope(rope_theta),
            head_dim=head_dim,
            norm_eps=norm_eps,
            tied_head=tied_head,
            qk_norm=True,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
            layer_class=GemmaLayer,
            single_layers=dict.fromkeys(global_layers(num_layers, global_every), everywhere),
        )
        self.window, self.logit_cap = window, logit_cap
        self.global_rotary, self.global_head_dim = Rope(global_rope_theta), global_head_dim
        self.turning_pairs = int(global_rotary * global_head_dim // 2)
        time, row, column = check_sections(None, self.turning_pairs)
        still = global_head_dim // 2 - self.turning_pairs  # whose these are makes no difference
        sections = (time, row, column + still)
        self.global_sections = sections if positions == "grid" else None

    def embed(self, ids_T: Tensor) -> Tensor:
        scale = torch.tensor(self.hidden_size**0.5, dtype=self.embedding.weight.dtype)  # rounded, as officially
        return self.embedding(ids_T) * scale.item()

    def rope(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of local layers, then those of global ones."""
        local = super().rope(positions, lengths)
        cos, sin = self.global_rotary.angles(positions, lengths, self.global_head_dim, self.global_sections)
        pair = torch.arange(self.global_head_dim, device=cos.device) % (self.global_head_dim // 2)
        still = pair >= self.turning_pairs
        whole = cos.masked_fill(still, 1.0), sin.masked_fill(still, 0.0)
        return torch.cat([local[0], whole[0]], dim=-1), torch.cat([local[1], whole[1]], dim=-1)

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None = None) -> Tensor:
        check_fp16(x_TD.dtype)
        d = self.head_dim
        local = replace(layout.local(), cos=layout.cos[..., :d], sin=layout.sin[..., :d])
        whole = replace(layout, cos=layout.cos[..., d:], sin=layout.sin[..., d:])
        for index, layer in enumerate((*self.pre_layers, *self.layers)):
            x_TD = layer(x_TD, plan, local if layer.local else whole, cache, index)
        return x_TD

    def head(self, h_SD: Tensor) -> Tensor:
        logits = super().head(h_SD)
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        return gemma_arguments(config)

    def hf_config(self) -> dict[str, Any]:
        return gemma_config(self)

    def tensor_map(self) -> list[TensorLink]:
        links = top_links(self, "model.embed_tokens.weight", "model.norm", "lm_head.weight")
        links += site_links(self, GEMMA_SITES, LLAMA_FFN)
        behind = {
            "post_attention_layernorm.weight": "attn_out_norm.weight",
            "post_feedforward_layernorm.weight": "ffn_out_norm.weight",
            "layer_scalar": "out_scale",
        }
        for index in range(self.num_layers):
            for theirs, ours in behind.items():
                links.append(TensorLink(f"model.layers.{index}.{theirs}", (f"layers.{index}.{ours}",)))
        return links
