"""Gemma's config.json <-> constructor arguments. What is not honoured is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.backbones.hf_config import llama_config, required, size_arguments
from mmframe.checkpoints import refuse
from mmframe.errors import UserError

if TYPE_CHECKING:
    from components.backbones.gemma import Gemma

MASKS = {"vision": "image_bidirectional", None: "causal"}
"""`use_bidirectional_attention` -> attention of local layers."""


def global_layers(num_layers: int, every: int) -> list[int]:
    """Indices of the global layers: each of number `every`, and the last.

    Raises:
        UserError: `every` is no positive number.
    """
    if every < 1:
        raise UserError(f"backbone: global_every={every} must be at least 1")
    return [index for index in range(num_layers) if (index + 1) % every == 0 or index == num_layers - 1]


def gemma_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a config of model_type gemma4_unified_text; defaults are those of the official class.

    Raises:
        UserError: a key that is missing, or whose value cannot be honoured; names it.
    """
    allowed = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "num_kv_shared_layers": (0,),
        "use_bidirectional_attention": tuple(MASKS),
    }
    refuse(config, allowed)
    sizes = size_arguments({"head_dim": 256} | config)
    every = _global_every(config, sizes["num_layers"])
    heads = _global_heads(config, global_layers(sizes["num_layers"], every))
    ropes = config.get("rope_parameters") or {}
    local = {"rope_theta": 1e4} | ropes.get("sliding_attention", {})
    far = {"rope_theta": 1e6, "partial_rotary_factor": 0.25} | ropes.get("full_attention", {})
    refuse(local, {"rope_type": ("default",)}, "config.json, rope_parameters.sliding_attention")
    refuse(far, {"rope_type": ("proportional",), "factor": (1,)}, "config.json, rope_parameters.full_attention")
    return sizes | dict(
        global_kv_heads=heads["num_key_value_heads"],
        global_head_dim=heads["head_dim"],
        global_every=every,
        window=config.get("sliding_window", 1024),
        values_from_keys=bool(config.get("attention_k_eq_v", False)),
        rope_theta=float(local["rope_theta"]),
        global_rope_theta=float(far["rope_theta"]),
        global_rotary=float(far["partial_rotary_factor"]),
        logit_cap=config.get("final_logit_softcapping"),
        tied_head=bool(config.get("tie_word_embeddings", True)),
        attention=MASKS[config.get("use_bidirectional_attention", "vision")],
    )


def _global_every(config: dict[str, Any], num_layers: int) -> int:
    types = config.get("layer_types")
    if types is None:
        return 6
    there = [index for index, kind in enumerate(types) if kind == "full_attention"]
    every = there[0] + 1 if there else 0
    if not every or there != global_layers(num_layers, every) or set(types) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"config.json: layer_types has full_attention at {there} of {num_layers} layers; only every n-th layer and "
            "the last are supported"
        )
    return every


def _global_heads(config: dict[str, Any], layers: list[int]) -> dict[str, int]:
    """head_dim and num_key_value_heads of global layers: keys of their own in released configs, `per_layer_config` in
    those that transformers writes."""
    kv_heads = required(config, "num_key_value_heads")
    own = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    given = {"head_dim": config.get("global_head_dim", 512), "num_key_value_heads": own or kv_heads}
    by_layer = {int(index): changes for index, changes in (config.get("per_layer_config") or {}).items()}
    if not by_layer:
        return given
    first = by_layer.get(layers[0], {})
    if by_layer != dict.fromkeys(layers, first) or set(first) - set(given):
        raise UserError(f"config.json: per_layer_config={by_layer} is more than the heads of global layers {layers}")
    return {"head_dim": config.get("head_dim", 256), "num_key_value_heads": kv_heads} | first


def gemma_config(gemma: Gemma) -> dict[str, Any]:
    """The config.json of a Gemma, read off its modules.

    Raises:
        UserError: key-value heads of global layers that official code cannot have.
    """
    config = llama_config(gemma, "gemma4_unified_text", "Gemma4UnifiedForCausalLM")
    for key in ("hidden_act", "rope_theta", "rope_scaling", "max_position_embeddings"):
        del config[key]
    layers: list[Any] = list(gemma.layers)
    last = layers[-1]
    if last.v is not None and last.kv_heads != gemma.kv_heads:
        raise UserError(
            f"Gemma: global_kv_heads={last.kv_heads} beside kv_heads={gemma.kv_heads} is official with "
            "values_from_keys alone, so it cannot be exported"
        )
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "global_head_dim": last.head_dim,
        "num_global_key_value_heads": last.kv_heads,
        "attention_k_eq_v": last.v is None,
        "layer_types": ["sliding_attention" if layer.local else "full_attention" for layer in layers],
        "sliding_window": gemma.window,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": gemma.rotary.theta},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": gemma.global_rotary.theta,
                "partial_rotary_factor": 2 * gemma.turning_pairs / last.head_dim,
            },
        },
        "final_logit_softcapping": gemma.logit_cap,
        "use_bidirectional_attention": next(key for key, mask in MASKS.items() if mask == gemma.attention),
    }
