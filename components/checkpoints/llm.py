"""Language models of official configs: model_type -> backbone, and a backbone -> its config. The text-only formats."""

from pathlib import Path
from typing import Any

from torch import nn

from components.backbones.decoder import Decoder
from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama
from components.backbones.qwen import Qwen2, Qwen3
from components.backbones.rope import OPTIONS
from components.routers.modality import SharedRouter
from mmframe import registry
from mmframe.checkpoints import CheckpointFormat, Config, Parts
from mmframe.contracts import Backbone
from mmframe.errors import UserError, suggest
from mmframe.processing import ChatProcessor
from mmframe.registry import place, register
from mmframe.tokenizer_files import chat_template, tokenizer_spec

ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def backbones() -> dict[str, Any]:
    """model_type -> the backbone that reads its configs, of all that are registered."""
    return {name: cls for cls in registry.classes("backbone") for name in getattr(cls, "model_types", ())}


def backbone_spec(config: Config) -> dict[str, Any]:
    """The backbone of an official config.

    Raises:
        UserError: another model_type than the registered ones, or a key that cannot be honoured.
    """
    known = backbones()
    name = config.get("model_type", "")
    if name not in known:
        raise UserError(f"config.json: no backbone reads model_type={name!r}; {suggest(name, sorted(known))}")
    cls = known[name]
    return spec(cls, **cls.from_hf_config(config))


def backbone_config(backbone: Backbone) -> Config:
    """The official config of a backbone, read off its modules.

    Raises:
        UserError: no decoder of the Llama family, or one that official code would run differently.
    """
    if not isinstance(backbone, Decoder):
        raise UserError(f"{type(backbone).__name__} has no official layout")
    official = {"attention": "causal", "positions": "linear", "pre_layers": 0}
    changed = [
        f"{name}={value}"
        for name, usual in official.items()
        if (value := backbone.spec["init_args"].get(name, usual)) != usual
    ]
    if changed:
        raise UserError(f"official code has no {', '.join(changed)}")
    layer, rope = backbone.layers[0], backbone.rotary
    model_type = (type(backbone).model_types or ("llama",))[0]
    scaling = None
    if rope.scaling != "none":
        options = {key: getattr(rope, key) for key in OPTIONS[rope.scaling] if getattr(rope, key) is not None}
        kind = {"type": rope.scaling} if model_type == "internlm2" else {"rope_type": rope.scaling}
        scaling = {**kind, "factor": rope.factor, **options}
    bias = layer.q["text"].bias is not None  # type: ignore[index, union-attr]
    own: Config = {"bias": bias} if model_type == "internlm2" else {"head_dim": backbone.head_dim}
    if model_type in ("llama", "qwen3"):
        own["attention_bias"] = bias
    return own | {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": backbone.hidden_size,
        "intermediate_size": layer.ffn["text"].gate.out_features,  # type: ignore[index, union-attr]
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "num_key_value_heads": backbone.kv_heads,
        "vocab_size": backbone.vocab_size,
        "max_position_embeddings": rope.max_positions,
        "rms_norm_eps": backbone.norm.eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": backbone.output is None,
    }


def token_ids(processor: ChatProcessor | None) -> Config:
    """bos, eos and pad of a config."""
    if processor is None:
        return {}
    tokenizer = processor.tokenizer
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def spec(cls: type, **init_args: Any) -> dict[str, Any]:
    """A component's spec."""
    return {"class_path": place(cls), "init_args": init_args}


@register("checkpoint")
class TextLLM(CheckpointFormat):
    """A text LLM as Hugging Face has it: InternLM2, Llama, Qwen2, Qwen3, and any backbone with `model_types`."""

    @classmethod
    def toy_models(cls) -> list[Parts]:
        sizes = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64)
        scaled = dict(rope_scaling="dynamic", rope_factor=2.0, max_positions=4)
        llama3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=4)
        made = [
            spec(InternLM2, **sizes, bias=True, **scaled),
            spec(InternLM2, **sizes, rope_scaling="none", rope_theta=100.0),
            spec(Llama, **sizes, tied_head=False, attention_bias=True, rope_scaling="linear", rope_factor=4.0),
            spec(Llama, **sizes, norm_eps=1e-1, head_dim=12, rope_scaling="llama3", rope_options=llama3),
            spec(Qwen2, **sizes, rope_scaling="yarn", rope_factor=2.0, max_positions=4),
            spec(Qwen3, **sizes, head_dim=12, tied_head=False),
        ]
        return [{"backbone": backbone, "patch_embedder": None, "router": spec(SharedRouter)} for backbone in made]

    def recognises(self, config: Config) -> bool:
        return config.get("model_type") in backbones()

    def parts(self, config: Config, folder: Path) -> Parts:
        tokenizer = tokenizer_spec(folder, sentencepiece=config["model_type"] == "internlm2")
        return {
            "backbone": backbone_spec(config),
            "patch_embedder": None,
            "router": spec(SharedRouter),
            "processor": tokenizer and spec(ChatProcessor, tokenizer=tokenizer, template=chat_template(folder)),
        }

    def config(self, net: nn.Module, processor: ChatProcessor | None) -> Config:
        if net.patch_embedder is not None or type(net.router) is not SharedRouter:
            raise UserError("a text LLM has neither patch embedder nor experts")
        return backbone_config(net.backbone) | token_ids(processor)  # type: ignore[arg-type]
