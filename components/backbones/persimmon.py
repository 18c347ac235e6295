"""Persimmon: the backbone of Fuyu. LayerNorms, a squared-ReLU MLP, half of each head rotated, biases everywhere."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.decoder import Decoder, DecoderLayer
from components.backbones.hf_config import check_model_type, llama_config, rope_arguments, size_arguments
from components.backbones.official_names import PERSIMMON_FFN, PERSIMMON_SITES, fuse_qkv, site_links, top_links
from components.backbones.rope import Rope
from mmframe.checkpoints import TensorLink
from mmframe.registry import register


class SquaredReLU(nn.Module):
    """down(relu(up x)^2), with biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_TD)).square())


class PersimmonLayer(DecoderLayer):
    """The layer of Llama with LayerNorms, also over each head of q and k, and a squared-ReLU MLP."""

    norm_class = nn.LayerNorm
    ffn_class = SquaredReLU


@register("backbone")
class Persimmon(Decoder):
    """Persimmon of any size; the defaults are the 8B model of Fuyu-8B (9.4 B parameters with both vocabulary matrices).

    Source: Fuyu-8B and Persimmon-8B (Adept, 2023); config.json of adept/fuyu-8b and the code of transformers. Every
    query head has a key head of its own.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Heads.
        intermediate_size: F of the MLP.
        vocab_size: V.
        rope_theta: Base of the rotary embedding.
        rope_scaling: ``none``, ``linear`` or ``dynamic`` (NTK).
        rope_factor: Scaling factor.
        max_positions: Context of the model, tokens; ``dynamic`` sets in beyond it.
        partial_rotary: Share of each head's dimensions, the first ones, that are rotated.
        norm_eps: eps of every LayerNorm.
        qk_norm: LayerNorm over each head of q and k, before the rotation.
        tied_head: The head shares the embedding's weights.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image) or ``grid`` (time, row, column).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
    """

    model_types = ("persimmon",)
    toy_args = dict(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, vocab_size=64)

    def __init__(
        self,
        hidden_size: int = 4096,
        num_layers: int = 36,
        num_heads: int = 64,
        intermediate_size: int = 16384,
        vocab_size: int = 262144,
        rope_theta: float = 25000.0,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        max_positions: int = 16384,
        partial_rotary: float = 0.5,
        norm_eps: float = 1e-5,
        qk_norm: bool = True,
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
            kv_heads=num_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            rope=Rope(rope_theta, rope_scaling, rope_factor, max_positions),
            norm_eps=norm_eps,
            tied_head=tied_head,
            qkv_bias=True,
            o_bias=True,
            qk_norm=qk_norm,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
            rotary_dim=int(hidden_size // num_heads * partial_rotary),
            layer_class=PersimmonLayer,
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        partial = given.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 0.5
        plain = {key: value for key, value in config.items() if key != "partial_rotary_factor"}
        rope = rope_arguments(plain | {"rope_parameters": given}, scalings=("none", "linear", "dynamic"))
        del rope["rope_options"]
        sizes = size_arguments({"layer_norm_eps": 1e-5} | plain, activations=("relu2",), eps="layer_norm_eps")
        del sizes["kv_heads"], sizes["head_dim"]
        return sizes | rope | {"partial_rotary": float(partial), "qk_norm": bool(config.get("qk_layernorm", True))}

    def hf_config(self) -> dict[str, Any]:
        config = llama_config(self, "persimmon", "PersimmonForCausalLM")
        del config["head_dim"], config["num_key_value_heads"]
        return config | {
            "hidden_act": "relu2",
            "layer_norm_eps": config.pop("rms_norm_eps"),
            "partial_rotary_factor": self.rotary_dim / self.head_dim,
            "qk_layernorm": self.layers[0].q_norm is not None,
        }

    def tensor_map(self) -> list[TensorLink]:
        """As the other backbones; q, k and v of one expert are one official tensor, where the expert has all three."""
        top = top_links(self, "model.embed_tokens.weight", "model.final_layernorm", "lm_head.weight")
        links = [*top, *site_links(self, PERSIMMON_SITES, PERSIMMON_FFN)]
        return fuse_qkv(self, links, PERSIMMON_SITES, "self_attn.query_key_value", self.split_qkv, self.join_qkv)

    def split_qkv(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query_key_value rows, weight or bias -> those of q, k and v: they stand head by head."""
        heads = fused.unflatten(0, (self.num_heads, 3, self.head_dim))
        q, k, v = (heads[:, i].reshape(-1, *fused.shape[1:]) for i in range(3))
        return q, k, v

    def join_qkv(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The inverse of split_qkv."""
        heads = [part.unflatten(0, (self.num_heads, 1, self.head_dim)) for part in (q, k, v)]
        return torch.cat(heads, dim=1).flatten(0, 2)
