"""Language models of official configs: model_type -> backbone, and a backbone -> its config. The text-only formats."""

from pathlib import Path
from typing import Any

from torch import nn

from components.backbones.decoder import Decoder
from components.backbones.gemma import Gemma
from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama
from components.backbones.persimmon import Persimmon
from components.backbones.qwen import Qwen2, Qwen3
from components.routers.modality import SharedRouter
from mmframe import registry
from mmframe.checkpoints import CheckpointFormat, Config, Parts
from mmframe.contracts import Backbone
from mmframe.errors import UserError, suggest
from mmframe.processing import ChatProcessor
from mmframe.registry import place, register
from mmframe.tokenizer_files import chat_template, tokenizer_spec


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
        UserError: no decoder with an official text model, or one that official code would run differently.
    """
    if not isinstance(backbone, Decoder):
        raise UserError(f"{type(backbone).__name__} has no official layout")
    attention = type(backbone).official_attention
    official = {"attention": attention, "positions": ("linear",), "pre_layers": (0,)}
    given = backbone.spec["init_args"]
    changed = [f"{name}={given[name]}" for name, usual in official.items() if given.get(name, usual[0]) not in usual]
    if changed:
        raise UserError(f"official code has no {', '.join(changed)}")
    return backbone.hf_config()


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
    """A text LLM as Hugging Face has it: InternLM2, Llama, Qwen2, Qwen3, Persimmon, any with `model_types`."""

    @classmethod
    def toy_models(cls) -> list[Parts]:
        sizes = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64)
        scaled = dict(rope_scaling="dynamic", rope_factor=2.0, max_positions=4)
        llama3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=4)
        gemma = sizes | dict(num_layers=3, head_dim=8, global_head_dim=16, global_every=2, window=4)
        heads = {key: size for key, size in sizes.items() if key != "kv_heads"}
        made = [
            spec(InternLM2, **sizes, bias=True, **scaled),
            spec(InternLM2, **sizes, rope_scaling="none", rope_theta=100.0),
            spec(Llama, **sizes, tied_head=False, attention_bias=True, rope_scaling="linear", rope_factor=4.0),
            spec(Llama, **sizes, norm_eps=1e-1, head_dim=12, rope_scaling="llama3", rope_options=llama3),
            spec(Qwen2, **sizes, rope_scaling="yarn", rope_factor=2.0, max_positions=4),
            spec(Qwen3, **sizes, head_dim=12, tied_head=False),
            spec(Persimmon, **heads, rope_scaling="linear", rope_factor=4.0, partial_rotary=0.25),
            spec(Gemma, **gemma, global_kv_heads=1, logit_cap=5.0, rope_theta=77.0, attention="causal"),
            spec(Gemma, **gemma, global_kv_heads=2, values_from_keys=False, tied_head=False, global_rotary=0.5),
            spec(Persimmon, **heads, qk_norm=False, tied_head=True, norm_eps=1e-2, rope_theta=77.0),
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
