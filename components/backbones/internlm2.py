"""InternLM2: the backbone of Mono-InternVL. Its checkpoints group wqkv by key-value head."""

from typing import Any

import torch
from torch import Tensor

from components.backbones.decoder import Decoder
from components.backbones.hf_config import check_model_type, llama_config, rope_arguments, size_arguments
from components.backbones.official_names import INTERNLM2_SITES, fuse_qkv, internlm2_links
from components.backbones.rope import Rope
from mmframe.checkpoints import TensorLink
from mmframe.registry import register


@register("backbone")
class InternLM2(Decoder):
    """InternLM2 of any size; the defaults are InternLM2-chat-1.8B with the nine tokens that InternVL adds.

    Values: config.json of internlm/internlm2-chat-1_8b-sft. Source: InternLM2 (arXiv 2403.17297). Builds on the meta
    device.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V; 92,544 of the base model and 9 added tokens.
        rope_theta: Base of the rotary embedding.
        rope_scaling: ``none``, ``linear`` or ``dynamic`` (NTK).
        rope_factor: Scaling factor.
        max_positions: Context before dynamic NTK sets in, tokens.
        norm_eps: eps of every RMSNorm.
        bias: q, k, v and o have biases.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image), ``grid`` (time, row, column) or ``native`` (NEO).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
        head_dim: Size of a head; null: hidden_size / num_heads.
        tied_head: The head shares the embedding's weights.
    """

    model_types = ("internlm2", "internlm2ve")
    toy_args = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64)

    def __init__(
        self,
        hidden_size: int = 2048,
        num_layers: int = 24,
        num_heads: int = 16,
        kv_heads: int = 8,
        intermediate_size: int = 8192,
        vocab_size: int = 92553,
        rope_theta: float = 1000000.0,
        rope_scaling: str = "dynamic",
        rope_factor: float = 2.0,
        max_positions: int = 32768,
        norm_eps: float = 1e-5,
        bias: bool = False,
        attention: str = "causal",
        positions: str = "linear",
        grid_sections: list[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
        head_dim: int | None = None,
        tied_head: bool = False,
    ) -> None:
        super().__init__(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            kv_heads=kv_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            rope=Rope(rope_theta, rope_scaling, rope_factor, max_positions),
            head_dim=head_dim,
            norm_eps=norm_eps,
            tied_head=tied_head,
            qkv_bias=bias,
            o_bias=bias,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        rope = rope_arguments(config, scalings=("none", "linear", "dynamic"))
        del rope["rope_options"]  # those of the Llama family
        return size_arguments(config) | rope | {"bias": config.get("bias", True)}  # True: default of the official class

    def hf_config(self) -> dict[str, Any]:
        config = llama_config(self, "internlm2", "InternLM2ForCausalLM")
        del config["head_dim"]
        if config["rope_scaling"]:
            config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
        return config | {"bias": self.layers[0].q["text"].bias is not None}  # type: ignore[index, union-attr]

    def tensor_map(self) -> list[TensorLink]:
        """As the other backbones; q, k and v of one expert are one official tensor, where the expert has all three."""
        links = internlm2_links(self)
        return fuse_qkv(self, links, INTERNLM2_SITES, "attention.wqkv", self.split_wqkv, self.join_wqkv)

    def split_wqkv(self, wqkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """wqkv rows, weight or bias -> those of q, k and v.

        They stand grouped per key-value head: g query heads, the key, the value, each head_dim rows
        (REF modeling_internlm2_ve.py; the layout is easy to take for blocks Q|K|V, which loads without an error).
        """
        rows = wqkv.unflatten(0, (self.kv_heads, -1, self.head_dim))
        q, k, v = (part.reshape(-1, *wqkv.shape[1:]) for part in (rows[:, :-2], rows[:, -2], rows[:, -1]))
        return q, k, v

    def join_wqkv(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The inverse of split_wqkv."""
        rest = q.shape[1:]
        q = q.reshape(self.kv_heads, -1, self.head_dim, *rest)
        k, v = (t.reshape(self.kv_heads, 1, self.head_dim, *rest) for t in (k, v))
        return torch.cat([q, k, v], dim=1).reshape(-1, *rest)
