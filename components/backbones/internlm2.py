"""InternLM2: the backbone of Mono-InternVL. Its checkpoints group wqkv by key-value head."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from components.backbones.decoder import Decoder, Rope
from mmframe.registry import register


@register("backbone")
class InternLM2(Decoder):
    """InternLM2 of any size; the defaults are InternLM2-chat-1.8B with the nine tokens that InternVL adds.

    Values: paper-facts table of the 1.8B model (released config). Builds on the meta device.

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
        attention: ``causal`` or ``image_bidirectional``.
    """

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
    ) -> None:
        super().__init__(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            kv_heads=kv_heads,
            intermediate_size=intermediate_size,
            vocab_size=vocab_size,
            rope=Rope(theta=rope_theta, scaling=rope_scaling, factor=rope_factor, max_positions=max_positions),
            norm_eps=norm_eps,
            bias=bias,
            attention=attention,
        )

    def from_official(self, state: Mapping[str, Tensor], prefix: str = "language_model.") -> dict[str, Tensor]:
        """Official tensors -> our names; ``feed_forward_ve`` becomes the visual expert.

        wqkv rows stand grouped per key-value head: g query heads, the key, the value, each head_dim rows
        (REF modeling_internlm2_ve.py; the layout is easy to take for blocks Q|K|V, which loads without an error).
        """
        group = self.hidden_size // self.head_dim // self.kv_heads
        ours: dict[str, Tensor] = {}
        for full_name, tensor in state.items():
            if not full_name.startswith(prefix) or "rotary_emb" in full_name:
                continue
            name = full_name.removeprefix(prefix)
            if match := re.fullmatch(r"model\.layers\.(\d+)\.attention\.wqkv\.(weight|bias)", name):
                layer, kind = match.groups()
                rows = tensor.unflatten(0, (self.kv_heads, group + 2, self.head_dim))
                parts = {"q": rows[:, :group], "k": rows[:, group], "v": rows[:, group + 1]}
                for site, part in parts.items():
                    ours[f"layers.{layer}.{site}.text.{kind}"] = part.reshape(-1, *tensor.shape[1:])
            else:
                ours[_rename(name)] = tensor
        return ours

    def to_wqkv(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v rows -> the grouped wqkv of the official layout (the inverse of the import)."""
        rest = q.shape[1:]
        q = q.reshape(self.kv_heads, -1, self.head_dim, *rest)
        k, v = (t.reshape(self.kv_heads, 1, self.head_dim, *rest) for t in (k, v))
        return torch.cat([q, k, v], dim=1).reshape(-1, *rest)


_RENAMES = [
    (r"model\.tok_embeddings\.weight", r"embedding.weight"),
    (r"model\.norm\.weight", r"norm.weight"),
    (r"output\.weight", r"output.weight"),
    (r"model\.layers\.(\d+)\.attention\.wo\.(\w+)", r"layers.\1.o.text.\2"),
    (r"model\.layers\.(\d+)\.attention_norm\.weight", r"layers.\1.attn_norm.text.weight"),
    (r"model\.layers\.(\d+)\.ffn_norm\.weight", r"layers.\1.ffn_norm.text.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w1\.weight", r"layers.\1.ffn.text.gate.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w3\.weight", r"layers.\1.ffn.text.up.weight"),
    (r"model\.layers\.(\d+)\.feed_forward\.w2\.weight", r"layers.\1.ffn.text.down.weight"),
    (r"model\.layers\.(\d+)\.feed_forward_ve\.w1\.weight", r"layers.\1.ffn.visual.gate.weight"),
    (r"model\.layers\.(\d+)\.feed_forward_ve\.w3\.weight", r"layers.\1.ffn.visual.up.weight"),
    (r"model\.layers\.(\d+)\.feed_forward_ve\.w2\.weight", r"layers.\1.ffn.visual.down.weight"),
]


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name  # left as it is, so that a strict load reports it
