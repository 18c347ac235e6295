"""The format of Mono-InternVL and InternVL-1.5: one layout, with or without vision encoder and visual experts."""

from pathlib import Path
from typing import Any

from torch import nn

from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama
from components.checkpoints.llm import backbone_config, backbone_spec, spec, token_ids
from components.patch_embedders.internvit import InternViT
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.checkpoints import CheckpointFormat, Config, Parts, refuse
from mmframe.contracts import ExpertRouter, PatchEmbedder
from mmframe.errors import UserError
from mmframe.official import PIXELS, read_json
from mmframe.processing import ChatProcessor
from mmframe.processing.templates import get_template
from mmframe.registry import register
from mmframe.tokenizer_files import tokenizer_spec

VISUAL_EXPERTS = "InternLM2VEForCausalLM"
RELEASED_EXPERTS = {"ffn": "all"}
OFFICIAL_DEFAULTS: Config = {
    "select_layer": -4,
    "downsample_ratio": 0.5,
    "ps_version": "v1",
    "template": None,
    "use_thumbnail": False,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "dynamic_image_size": False,
}
"""What the official config class takes where config.json lacks a key."""
MARKERS = {"image_start": "<img>", "image_end": "</img>"}


@register("checkpoint")
class InternVLChat(CheckpointFormat):
    """InternVL chat models: Mono-InternVL-2B and its S1 checkpoints, InternVL-1.5 (Mini-InternVL-Chat), and relatives.

    Vision: InternVisionPatchModel (MonoPatchEmbedder) or InternVisionModel (InternViT). Language: InternLM2 with visual
    experts (InternLM2VEForCausalLM) or any text LLM. Experts beside those of the released models are written under
    names of ours (components/backbones/official_names.py), and `llm_config.visual_experts_at` says which there are.
    """

    prefix = "language_model."
    defaults = {
        "template": "internlm2-chat",
        "use_thumbnail": True,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
    }

    @classmethod
    def toy_models(cls) -> list[Parts]:
        sizes = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=64)
        tile = dict(hidden_size=32, image_size=8, patch_size=2, channels=8)
        vit = tile | dict(num_layers=2, num_heads=2, intermediate_size=24)
        llm, llama = spec(InternLM2, **sizes), spec(Llama, **sizes)
        mono, plain = spec(MonoPatchEmbedder, **tile), spec(SharedRouter)
        sites = dict.fromkeys(("q", "k", "v", "o", "ffn", "attn_norm", "ffn_norm"), "all")
        rms = dict(norm="rms_norm", qk_norm=True, qkv_bias=False, norm_eps=1e-2)
        made = [
            (llm, mono, spec(ModalityRouter)),
            (llm, spec(MonoPatchEmbedder, **tile, shuffle_version="v1", downsample=0.25), plain),
            (llm, mono, spec(ModalityRouter, experts_at=sites)),
            (llm, mono, spec(ModalityRouter, experts_at={"q": "all", "ffn": "1"})),
            (llama, mono, spec(ModalityRouter, experts_at={"q": "all", "ffn": "all"})),
            (llm, spec(InternViT, **vit, select_layer=-2), plain),
            (llm, spec(InternViT, **vit, **rms, shuffle_version="v1"), plain),
        ]
        return [{"backbone": b, "patch_embedder": p, "router": r} for b, p, r in made]

    def recognises(self, config: Config) -> bool:
        return config.get("model_type") == "internvl_chat"

    def parts(self, config: Config, folder: Path) -> Parts:
        config = OFFICIAL_DEFAULTS | config
        unchanged = {"pad2square": (False,), "use_backbone_lora": (0,), "use_llm_lora": (0,), "min_dynamic_patch": (1,)}
        refuse(config, unchanged)
        for key in ("llm_config", "vision_config"):
            if not isinstance(config.get(key), dict):
                raise UserError(f"config.json: an InternVL chat model needs {key}; take the official file")
        llm = config["llm_config"]
        has_experts = VISUAL_EXPERTS in (llm.get("architectures") or ()) or llm.get("model_type") == "internlm2ve"
        experts_at = llm.get("visual_experts_at") or (RELEASED_EXPERTS if has_experts else None)
        embedder = _embedder(config["vision_config"])
        return {
            "backbone": backbone_spec(llm),
            "patch_embedder": spec(embedder, **embedder.from_hf_config(config)),
            "router": spec(SharedRouter) if experts_at is None else spec(ModalityRouter, experts_at=experts_at),
            "processor": _processor(config, folder),
        }

    def config(self, net: nn.Module, processor: ChatProcessor | None) -> Config:
        if net.patch_embedder is None:
            raise UserError("a text LLM is no InternVL chat model")
        llm = backbone_config(net.backbone) | token_ids(processor)  # type: ignore[arg-type]
        made = _embedder_config(net.patch_embedder)  # type: ignore[arg-type]
        experts_at = _experts_at(net.router)  # type: ignore[arg-type]
        if experts_at and llm["model_type"] == "internlm2":
            llm["architectures"] = [VISUAL_EXPERTS]
        if experts_at and (llm["model_type"] != "internlm2" or experts_at != RELEASED_EXPERTS):
            llm["visual_experts_at"] = experts_at
        return (
            made
            | _conversation(processor)
            | {
                "architectures": ["InternVLChatModel"],
                "model_type": "internvl_chat",
                "llm_config": llm,
                "pad2square": False,
            }
        )


def _embedder(vision: Config) -> Any:
    """The patch embedder class of a vision_config.

    Raises:
        UserError: another vision model.
    """
    names = [*(vision.get("architectures") or ()), vision.get("model_type", "")]
    if "InternVisionPatchModel" in names or "intern_vit_patch" in names:
        return MonoPatchEmbedder
    if "InternVisionModel" in names or "intern_vit_6b" in names:
        return InternViT
    raise UserError(
        f"config.json, vision_config: {names[0]!r} is not supported, only InternVisionPatchModel and InternVisionModel"
    )


def _embedder_config(embedder: PatchEmbedder) -> Config:
    args = embedder.spec["init_args"]
    if type(embedder) not in (MonoPatchEmbedder, InternViT):
        raise UserError(f"patch embedder {type(embedder).__name__} has no place in the InternVL layout")
    vision = {
        "architectures": ["InternVisionPatchModel"],
        "model_type": "intern_vit_patch",
        "hidden_size": args["channels"],
        "image_size": args["image_size"],
        "num_channels": 3,
        "patch_size": args["patch_size"],
    }
    if type(embedder) is InternViT:
        vision |= {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "drop_path_rate": args["drop_path"],
            "hidden_act": "gelu",
            "intermediate_size": args["intermediate_size"],
            "layer_norm_eps": args["norm_eps"],
            "norm_type": args["norm"],
            "num_attention_heads": args["num_heads"],
            "num_hidden_layers": args["num_layers"],
            "qk_normalization": args["qk_norm"],
            "qkv_bias": args["qkv_bias"],
        }
    return {
        "downsample_ratio": args["downsample"],
        "force_image_size": args["image_size"],
        "ps_version": args["shuffle_version"],
        "select_layer": args.get("select_layer", -1),
        "vision_config": vision,
    }


def _experts_at(router: ExpertRouter) -> dict[str, str] | None:
    if type(router) is SharedRouter:
        return None
    if type(router) is not ModalityRouter:
        raise UserError(f"router {type(router).__name__}: its experts have no official names and cannot be exported")
    if not router.expert_of_kind.equal(ModalityRouter().expert_of_kind):
        raise UserError(f"router {type(router).__name__}: official code sends image tokens alone to visual experts")
    if router.form != "full":
        raise UserError(f"router: form {router.form} has no official names; experts of form full can be exported")
    return router.experts_at


def _conversation(processor: ChatProcessor | None) -> Config:
    """Template and tiling of a config.

    Raises:
        UserError: pixels or markers that official code would make differently.
    """
    if processor is None:
        return {}
    said = processor.spec["init_args"]
    for key, value in {"subtract_median": False, **MARKERS}.items():
        if said[key] != value:
            raise UserError(f"processor: {key}={said[key]!r} has no place in the InternVL layout, only {value!r}")
    return {"template": said["template"], "use_thumbnail": said["thumbnail"]}


def _processor(config: Config, folder: Path) -> dict[str, Any] | None:
    get_template(config["template"])  # refuses an unknown one by name
    tokenizer = tokenizer_spec(folder, sentencepiece=config["llm_config"].get("model_type", "").startswith("internlm2"))
    if tokenizer is None:
        return None
    pixels = read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}
    stated = {ours: pixels[key] for ours, key in (("mean", "image_mean"), ("std", "image_std")) if key in pixels}
    thumbnail = bool(config["use_thumbnail"])
    return spec(
        ChatProcessor, tokenizer=tokenizer, template=config["template"], thumbnail=thumbnail, **MARKERS, **stated
    )
