"""Hugging Face config.json of a Llama-like text model <-> constructor arguments. What is not honoured is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.backbones.rope import OPTIONS
from mmframe.checkpoints import refuse
from mmframe.errors import UserError, suggest

if TYPE_CHECKING:
    from components.backbones.decoder import Decoder

NO_EFFECT: dict[str, Sequence[Any]] = {
    "mlp_bias": (False,),
    "attention_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "quantization_config": (None,),
}
"""Keys that would change the model, with the values that describe the model we have."""


def check_model_type(config: dict[str, Any], backbone: str, model_types: tuple[str, ...]) -> None:
    if config.get("model_type") not in model_types:
        raise UserError(
            f"config.json: model_type={config.get('model_type')!r} is no {backbone}, "
            f"which reads {' or '.join(model_types)}"
        )


def required(config: dict[str, Any], key: str) -> int:
    """A size that no default can stand for."""
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {key}={value!r} is missing or no positive whole number; take the official file")
    return value


def size_arguments(
    config: dict[str, Any], activations: Sequence[str] = ("silu", "swish"), eps: str = "rms_norm_eps"
) -> dict[str, Any]:
    """Sizes, eps and tied head; the defaults are those of the official classes.

    Args:
        config: Official config.
        activations: Values of `hidden_act` that mean the FFN of this backbone.
        eps: Key of the norms' eps.
    """
    refuse(config, NO_EFFECT | {"hidden_act": activations})
    num_heads = required(config, "num_attention_heads")
    return dict(
        hidden_size=required(config, "hidden_size"),
        num_layers=required(config, "num_hidden_layers"),
        num_heads=num_heads,
        kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim"),
        intermediate_size=required(config, "intermediate_size"),
        vocab_size=required(config, "vocab_size"),
        norm_eps=float(config.get(eps, 1e-6)),
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def rope_arguments(config: dict[str, Any], scalings: tuple[str, ...] = tuple(OPTIONS)) -> dict[str, Any]:
    """rope_theta, rope_scaling, rope_factor, max_positions, rope_options.

    Reads the old form (`rope_theta` beside a `rope_scaling` with `type` or `rope_type`) and the new one
    (`rope_parameters`).

    Args:
        config: Official config.
        scalings: Those that this model's official code knows.

    Raises:
        UserError: a scaling or one of its keys that we do not have.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind, old_kind = given.pop("rope_type", None), given.pop("type", None)
    scaling = {"default": "none", None: "none"}.get(kind or old_kind, kind or old_kind)
    if scaling not in scalings:
        raise UserError(f"config.json: rotary scaling {scaling!r} is not supported; {suggest(str(scaling), scalings)}")
    if given.get("partial_rotary_factor") in (1, None):
        given.pop("partial_rotary_factor", None)
    factor = given.pop("factor", None)
    if scaling != "none" and not isinstance(factor, (int, float)):
        raise UserError(f"config.json: rotary scaling {scaling!r} has no factor, but {factor!r}")
    options = {key: value for key, value in given.items() if value is not None}
    unknown = [key for key in options if key not in OPTIONS[scaling]]
    if unknown:
        raise UserError(
            f"config.json: rotary scaling {scaling!r} has {unknown[0]}={options[unknown[0]]!r}, which is not supported"
        )
    max_positions = config.get("max_position_embeddings", 2048)
    return dict(
        rope_theta=float(theta),
        rope_scaling=scaling,
        rope_factor=float(factor or 1.0),
        max_positions=int(max_positions),
        rope_options=options or None,
    )


def llama_config(decoder: Decoder, model_type: str, architecture: str) -> dict[str, Any]:
    """The config.json of a decoder of the Llama family, read off its modules, without biases."""
    layer: Any = decoder.layers[0]
    rope = decoder.rotary
    scaling = None
    if rope.scaling != "none":
        options = {key: getattr(rope, key) for key in OPTIONS[rope.scaling] if getattr(rope, key) is not None}
        scaling = {"rope_type": rope.scaling, "factor": rope.factor, **options}
    ffn = layer.ffn["text"]
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "head_dim": decoder.head_dim,
        "intermediate_size": ffn.up.out_features,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.kv_heads,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": rope.max_positions,
        "rms_norm_eps": decoder.norm.eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": decoder.output is None,
    }


def refuse_sliding_window(config: dict[str, Any]) -> None:
    """Qwen: refuses a window that some layer really uses; the released configs name one and switch it off."""
    layers = config.get("num_hidden_layers", 0)
    used = (
        config.get("use_sliding_window")
        and config.get("sliding_window") is not None
        and config.get("max_window_layers", layers) < layers
    )
    if used or set(config.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(
            f"config.json: sliding_window={config.get('sliding_window')!r} is used from layer "
            f"{config.get('max_window_layers')!r} of {layers}; only full attention is supported"
        )
