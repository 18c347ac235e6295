"""Chameleon's decoder: Llama with LayerNorms of each head of q and k; the larger one has its norms behind, as Swin."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.decoder import Decoder, DecoderLayer
from components.backbones.hf_config import check_model_type, rope_arguments, size_arguments
from components.backbones.official_names import llama_links
from components.backbones.rope import Rope
from mmframe.cache import KVCache
from mmframe.checkpoints import TensorLink, refuse
from mmframe.errors import UserError
from mmframe.layout import Layout
from mmframe.plan import Plan
from mmframe.registry import register


class HeadNorm(nn.Module):
    """LayerNorm over each head [T, heads, head_dim], every head with a weight and a bias of its own."""

    eps = 1e-5

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.ones(heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim))

    def forward(self, x_THd: Tensor) -> Tensor:
        weight, bias = (p.view(self.heads, -1) for p in (self.weight, self.bias))
        return F.layer_norm(x_THd, x_THd.shape[-1:], eps=self.eps) * weight + bias


class ChameleonLayer(DecoderLayer):
    """The layer of Llama with a HeadNorm of q and of k (the 7B model)."""

    def head_norm(self, heads: int, head_dim: int, eps: float) -> nn.Module:
        return HeadNorm(heads, head_dim)


class ChameleonSwinLayer(ChameleonLayer):
    """x += attn_norm(attention(x)); x += ffn_norm(ffn(x)): each norm is behind what it norms (the 34B model)."""

    def forward(self, x_TD: Tensor, plan: Plan, layout: Layout, cache: KVCache | None, index: int) -> Tensor:
        x_TD = x_TD + self.attn_norm(self.attention(x_TD, plan, layout, cache, index), plan)
        return x_TD + self.ffn_norm(self.ffn(x_TD, plan), plan)


@register("backbone")
class Chameleon(Decoder):
    """The decoder of Chameleon, without its image tokeniser: text, or visual tokens of our patch embedders.

    Source: Chameleon (arXiv 2405.09818) and the code of transformers; the defaults are the sizes of the 7B model.
    Official checkpoints hold a VQ-VAE beside it, so `mmframe import` does not read them.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        rope_theta: Base of the rotary embedding.
        rope_scaling: ``none``, ``linear`` or ``dynamic`` (NTK).
        rope_factor: Scaling factor.
        max_positions: Context of the model, tokens; ``dynamic`` sets in beyond it.
        norm_eps: eps of the RMSNorms.
        swin_norm: Norms stand behind attention and FFN instead of before them.
        attention_bias: q, k, v and o have biases.
        tied_head: The head shares the embedding's weights.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image) or ``grid`` (time, row, column).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
    """

    toy_args = dict(
        hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64, swin_norm=True
    )

    def __init__(
        self,
        hidden_size: int = 4096,
        num_layers: int = 32,
        num_heads: int = 32,
        kv_heads: int = 32,
        intermediate_size: int = 11008,
        vocab_size: int = 65536,
        rope_theta: float = 10000.0,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        max_positions: int = 4096,
        norm_eps: float = 1e-5,
        swin_norm: bool = False,
        attention_bias: bool = False,
        tied_head: bool = False,
        attention: str = "causal",
        positions: str = "linear",
        grid_sections: list[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
    ) -> None:
        super().__init__(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            kv_heads=kv_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            rope=Rope(rope_theta, rope_scaling, rope_factor, max_positions),
            norm_eps=norm_eps,
            tied_head=tied_head,
            qkv_bias=attention_bias,
            o_bias=attention_bias,
            qk_norm=True,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
            layer_class=ChameleonSwinLayer if swin_norm else ChameleonLayer,
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, ("chameleon",))
        refuse(config, {"model_parallel_size": (1,)})
        rope = rope_arguments(config, scalings=("none", "linear", "dynamic"))
        sizes = size_arguments({"rms_norm_eps": 1e-5} | config)
        del rope["rope_options"], sizes["head_dim"]
        switches = {key: bool(config.get(key)) for key in ("swin_norm", "attention_bias")}
        return sizes | rope | switches

    def hf_config(self) -> dict[str, Any]:
        raise UserError("Chameleon cannot be exported: official checkpoints have an image tokeniser beside the decoder")

    def tensor_map(self) -> list[TensorLink]:
        """The names of Llama; officially each head's norm is a row of a matrix."""
        links = []
        for link in llama_links(self):
            for site, heads in (("q_norm", self.num_heads), ("k_norm", self.kv_heads)):
                if f".{site}." in link.ours[0]:
                    link = replace(link, split=_flat, join=partial(torch.unflatten, dim=0, sizes=(heads, -1)))
            links.append(link)
        return links


def _flat(rows: Tensor) -> list[Tensor]:
    return [rows.flatten()]
