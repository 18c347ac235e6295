"""Anchors: models of transformers with random weights at tiny size give the same logits as ours with those weights.

Fuyu (Persimmon, raw patches, row ends), InternVL (its port), the text path of Chameleon, and Gemma 4 Unified.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from components.backbones.chameleon import Chameleon
from components.backbones.decoder import Decoder
from components.backbones.gemma import Gemma
from components.backbones.llama import Llama
from components.backbones.persimmon import Persimmon
from components.backbones.qwen import Qwen2
from components.patch_embedders.internvit import InternViT
from components.routers.modality import SharedRouter
from mmframe.batch import Batch, Sample
from mmframe.contracts import PatchEmbedder
from mmframe.generation import generate
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.weights import load_weights
from tests.helpers import all_logits, roughen

VOCAB = 96
IMAGE_ID = 95
"""Stands in the ids of transformers where visual tokens come."""
SIZES: dict[str, Any] = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, vocab_size=VOCAB
)


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def rough(model: Any) -> Any:
    roughen(model, std=0.15)
    return model.eval()


def fill(backbone: Decoder, state: Mapping[str, Tensor]) -> None:
    """Every tensor of the language model, under its official names, strictly."""
    links = backbone.tensor_map()
    assert sorted(link.theirs for link in links) == sorted(state)
    ours: dict[str, Tensor] = {}
    for link in links:
        ours |= link.to_ours(state[link.theirs])
        assert torch.equal(link.to_theirs(*link.to_ours(state[link.theirs]).values()), state[link.theirs])
    assert load_weights(backbone, ours) == []


def net_of(backbone: Decoder, embedder: PatchEmbedder | None = None) -> MultimodalLM:
    return MultimodalLM(backbone, embedder, SharedRouter(), expert_backend="torch").eval()


def text_rows() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample.from_ids(torch.randint(0, VOCAB - 1, (length,), generator=generator)) for length in (40, 9, 14)]


def row_with_image(embedder: PatchEmbedder, tile: Tensor) -> Sample:
    """Four words, the slots of the tile [3, h, w], five words."""
    count = embedder.num_tokens(*tile.shape[1:])
    kinds = [TokenKind.TEXT] * 4 + [TokenKind.IMAGE] * count + [TokenKind.TEXT] * 5
    ids = torch.randint(0, VOCAB - 1, (len(kinds),), generator=torch.Generator().manual_seed(1))
    ids[4 : 4 + count] = IMAGE_ID
    blocks = [-1] * 4 + [0] * count + [-1] * 5
    return Sample.from_ids(ids, kinds=kinds, blocks=blocks, tiles=tile[None])


def close(ours: Tensor, theirs: Tensor) -> None:
    assert float(theirs.std()) > 0.1, "the comparison would be of nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# ---- Fuyu

PERSIMMON: dict[str, dict[str, Any]] = {
    "as released": {"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}},
    "no norms of q and k": {"qk_layernorm": False, "tie_word_embeddings": True, "layer_norm_eps": 1e-2},
    "another share": {
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 3.0,
            "rope_theta": 500.0,
            "partial_rotary_factor": 1 / 3,
        }
    },
}


def released_state(model: Any, tied: bool) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if tied:
        state.pop("lm_head.weight")  # not in a file either
    return state


@pytest.mark.parametrize("case", PERSIMMON)
@torch.no_grad()
def test_persimmon(case: str, transformers: Any) -> None:
    config = transformers.PersimmonConfig(**SIZES, max_position_embeddings=64, **PERSIMMON[case])
    theirs = rough(transformers.PersimmonForCausalLM(config))
    backbone = Persimmon(**Persimmon.from_hf_config(config.to_dict()))
    fill(backbone, released_state(theirs, config.tie_word_embeddings))
    expected = torch.cat([theirs(row.ids[None]).logits[0] for row in text_rows()])
    close(all_logits(net_of(backbone), Batch.collate(text_rows())), expected)


# ---- Chameleon


@pytest.mark.parametrize("changes", [{}, {"swin_norm": True}, {"attention_bias": True, "num_key_value_heads": 4}])
@torch.no_grad()
def test_text_path_of_chameleon(changes: dict[str, Any], transformers: Any) -> None:
    quantiser = dict(embed_dim=8, num_embeddings=4, latent_channels=8, resolution=16, base_channels=32)
    names = {"<image>": IMAGE_ID, "IMGIMGA": IMAGE_ID - 1}
    config = transformers.ChameleonConfig(
        **SIZES | {"num_key_value_heads": 2} | changes,
        max_position_embeddings=64,
        vq_config=quantiser | {"channel_multiplier": [1, 1]},
        vocabulary_map=names,
    )
    theirs = rough(transformers.ChameleonForConditionalGeneration(config))
    backbone = Chameleon(**Chameleon.from_hf_config(config.to_dict()))
    fill(backbone, {name: tensor for name, tensor in theirs.state_dict().items() if "vqmodel" not in name})
    expected = torch.cat([theirs(row.ids[None]).logits[0] for row in text_rows()])
    words = slice(0, IMAGE_ID - 1)  # theirs never speaks the ids of images
    close(all_logits(net_of(backbone), Batch.collate(text_rows()))[:, words], expected[:, words])


# ---- InternVL

VIT = {
    "vision_tower.embeddings.cls_token": "class_embedding",
    "vision_tower.embeddings.position_embeddings": "position",
    "vision_tower.embeddings.patch_embeddings.projection.": "conv.",
    "vision_tower.encoder.layer.": "layers.",
    ".attention.projection_layer.": ".attn.proj.",
    ".attention.": ".attn.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".lambda_": ".ls",
    "multi_modal_projector.layer_norm.": "mlp.0.",
    "multi_modal_projector.linear_1.": "mlp.1.",
    "multi_modal_projector.linear_2.": "mlp.3.",
}


def vit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' InternVL vision tower and projector under our names."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, mine in VIT.items():
            name = name.replace(theirs, mine)
        ours[name] = tensor
    for name in [name for name in ours if ".q_proj." in name]:
        parts = [ours.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        ours[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return ours


@pytest.mark.parametrize("text", ["qwen2", "llama"])
@pytest.mark.parametrize("vision", [{}, {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": True}])
@torch.no_grad()
def test_internvl(text: str, vision: dict[str, Any], transformers: Any) -> None:
    tower = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40) | vision
    config = transformers.InternVLConfig(
        vision_config=tower | {"image_size": [16, 16], "patch_size": [4, 4]},
        text_config=SIZES | {"model_type": text, "num_key_value_heads": 2},
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    theirs = rough(transformers.InternVLForConditionalGeneration(config))
    cls = {"qwen2": Qwen2, "llama": Llama}[text]
    backbone = cls(**cls.from_hf_config(config.text_config.to_dict()))
    prefix = "model.language_model."
    state = theirs.state_dict()
    words = {name.replace(prefix, "model."): tensor for name, tensor in state.items() if name.startswith(prefix)}
    fill(backbone, words | {"lm_head.weight": state["lm_head.weight"]})
    embedder = InternViT(
        hidden_size=48,
        image_size=16,
        patch_size=4,
        channels=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=40,
        norm=config.vision_config.norm_type,
        qkv_bias=config.vision_config.attention_bias,
        qk_norm=config.vision_config.use_qk_norm,
    )
    rest = {n.removeprefix("model."): t for n, t in state.items() if not n.startswith((prefix, "lm_head"))}
    assert load_weights(embedder, vit_state(rest)) == []
    sample = row_with_image(embedder, torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2)))
    expected = theirs(input_ids=sample.ids[None], pixel_values=sample.tiles).logits[0]
    close(all_logits(net_of(backbone, embedder), sample), expected)


# ---- Gemma 4 Unified

GEMMA: dict[str, Any] = SIZES | dict(
    model_type="gemma4_unified_text",
    num_key_value_heads=2,
    num_global_key_value_heads=1,
    head_dim=8,
    global_head_dim=16,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    sliding_window=6,
    attention_k_eq_v=True,
    final_logit_softcapping=5.0,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000.0},
    },
)
GEMMAS: dict[str, dict[str, Any]] = {
    "as released": {
        "num_hidden_layers": 5,
        "layer_types": [*["sliding_attention", "full_attention"] * 2, "full_attention"],
    },
    "own values, no cap": {"attention_k_eq_v": False, "final_logit_softcapping": None, "sliding_window": 100},
}


def gemma_of(theirs: Any, config: dict[str, Any], prefix: str = "model.") -> Gemma:
    backbone = Gemma(**Gemma.from_hf_config(config))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith(prefix)}
    fill(backbone, {"model." + name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return backbone


def rough_gemma(model: Any) -> Any:
    """Its layer scales are buffers."""
    for number, (name, buffer) in enumerate(rough(model).named_buffers()):
        if name.endswith("layer_scalar"):
            buffer.fill_(0.8 + 0.05 * number)
    return model


@pytest.mark.parametrize("case", GEMMAS)
@torch.no_grad()
def test_text_of_gemma(case: str, transformers: Any) -> None:
    config = GEMMA | GEMMAS[case]
    theirs = rough_gemma(transformers.Gemma4UnifiedForCausalLM(transformers.Gemma4UnifiedTextConfig(**config)))
    net = net_of(gemma_of(theirs, config))
    expected = torch.cat([theirs(row.ids[None]).logits[0] for row in text_rows()])
    close(all_logits(net, Batch.collate(text_rows())), expected)
    made = generate(net, text_rows()[1:], max_new_tokens=8).ids
    options = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    for sample, ours in zip(text_rows()[1:], made, strict=True):
        whole = theirs.generate(sample.ids[None], attention_mask=torch.ones(1, len(sample)), **options)
        assert ours == whole[0, len(sample) :].tolist()
