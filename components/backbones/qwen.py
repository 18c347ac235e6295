"""Qwen2, Qwen2.5 and Qwen3: the Llama family with biases at q, k, v, or with norms of q and k."""

from typing import Any

from components.backbones.decoder import Decoder
from components.backbones.hf_config import (
    check_model_type,
    llama_config,
    refuse_sliding_window,
    rope_arguments,
    size_arguments,
)
from components.backbones.rope import Rope
from mmframe.registry import register


@register("backbone")
class Qwen2(Decoder):
    """Qwen2 and Qwen2.5 of any size; the defaults are Qwen2.5-0.5B (494 M parameters).

    Values: config.json of Qwen/Qwen2.5-0.5B. q, k and v have biases, o has none.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        head_dim: Size of a head; null: hidden_size / num_heads.
        rope_theta: Base of the rotary embedding.
        rope_scaling: ``none``, ``linear``, ``dynamic`` (NTK), ``llama3`` or ``yarn`` (Qwen2.5 beyond 32,768 tokens).
        rope_factor: Scaling factor.
        max_positions: Context of the model, tokens; ``dynamic`` sets in beyond it.
        rope_options: Further values of yarn and llama3 by their names in Hugging Face configs, e.g.
            ``{original_max_position_embeddings: 32768}``.
        norm_eps: eps of every RMSNorm.
        tied_head: The head shares the embedding's weights.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image), ``grid`` (time, row, column) or ``native`` (NEO).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
    """

    model_types = ("qwen2",)
    toy_args = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64)

    def __init__(
        self,
        hidden_size: int = 896,
        num_layers: int = 24,
        num_heads: int = 14,
        kv_heads: int = 2,
        intermediate_size: int = 4864,
        vocab_size: int = 151936,
        head_dim: int | None = None,
        rope_theta: float = 1000000.0,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        max_positions: int = 32768,
        rope_options: dict[str, float] | None = None,
        norm_eps: float = 1e-6,
        tied_head: bool = True,
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
            rope=Rope.of(rope_theta, rope_scaling, rope_factor, max_positions, rope_options),
            head_dim=head_dim,
            norm_eps=norm_eps,
            tied_head=tied_head,
            qkv_bias=True,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        refuse_sliding_window(config)
        return size_arguments(config) | rope_arguments(config)

    def hf_config(self) -> dict[str, Any]:
        return llama_config(self, "qwen2", "Qwen2ForCausalLM")


@register("backbone")
class Qwen3(Decoder):
    """Qwen3 (dense) of any size; the defaults are Qwen3-0.6B (596 M parameters).

    Values: config.json of Qwen/Qwen3-0.6B. The head size is given by itself, and q and k have norms over each head,
    which are sites like any other: `experts_at: {q_norm: all, k_norm: all}`.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        head_dim: Size of a head.
        rope_theta: Base of the rotary embedding.
        rope_scaling: ``none``, ``linear``, ``dynamic`` (NTK), ``llama3`` or ``yarn``.
        rope_factor: Scaling factor.
        max_positions: Context of the model, tokens; ``dynamic`` sets in beyond it.
        rope_options: Further values of yarn and llama3 by their names in Hugging Face configs.
        norm_eps: eps of every RMSNorm.
        tied_head: The head shares the embedding's weights.
        attention_bias: q, k, v and o have biases.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image), ``grid`` (time, row, column) or ``native`` (NEO).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
    """

    model_types = ("qwen3",)
    toy_args = dict(
        hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64, head_dim=12
    )

    def __init__(
        self,
        hidden_size: int = 1024,
        num_layers: int = 28,
        num_heads: int = 16,
        kv_heads: int = 8,
        intermediate_size: int = 3072,
        vocab_size: int = 151936,
        head_dim: int | None = 128,
        rope_theta: float = 1000000.0,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        max_positions: int = 40960,
        rope_options: dict[str, float] | None = None,
        norm_eps: float = 1e-6,
        tied_head: bool = True,
        attention_bias: bool = False,
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
            rope=Rope.of(rope_theta, rope_scaling, rope_factor, max_positions, rope_options),
            head_dim=head_dim,
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
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        refuse_sliding_window(config)
        config = {"head_dim": 128} | config  # the default of the official class
        return size_arguments(config) | rope_arguments(config) | {"attention_bias": config.get("attention_bias", False)}

    def hf_config(self) -> dict[str, Any]:
        return super().hf_config() | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
