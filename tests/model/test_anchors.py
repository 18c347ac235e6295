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
from components.patch_embedders.gemma import GemmaPatchEmbedder
from components.patch_embedders.internvit import InternViT
from components.patch_embedders.linear import LinearPatchEmbedder
from components.routers.modality import SharedRouter
from mmframe.batch import Batch, Sample
from mmframe.contracts import PatchEmbedder
from mmframe.generation import generate
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.weights import load_weights
from tests.helpers import all_logits, roughen, row

VOCAB = 96
IMAGE_ID = 95
"""Stands in the ids of transformers where visual tokens come."""
NEWLINE_ID = 94
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
    """Four words, what the embedder writes of the tile [3, h, w], five words."""
    written = embedder.kinds(*tile.shape[1:]).tolist()
    kinds = [*[TokenKind.TEXT] * 4, *written, *[TokenKind.TEXT] * 5]
    ids = torch.randint(0, NEWLINE_ID, (len(kinds),), generator=torch.Generator().manual_seed(1))
    for place, kind in enumerate(written, start=4):
        ids[place] = IMAGE_ID if kind == TokenKind.IMAGE else NEWLINE_ID
    blocks = [*[-1] * 4, *[0] * len(written), *[-1] * 5]
    return Sample.from_ids(ids, kinds=kinds, blocks=blocks, tiles=tile[None])


def random_tile(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(2))


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


def words_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the language model inside of a multimodal one, under the names that it has alone."""
    prefix = "model.language_model."
    words = {name.replace(prefix, "model."): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return words | {"lm_head.weight": state["lm_head.weight"]}


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


@torch.no_grad()
def test_fuyu(transformers: Any) -> None:
    """Its newline is a word of the vocabulary, ours a token of the embedder; its patches have their colours last."""
    text = SIZES | PERSIMMON["as released"] | {"model_type": "persimmon"}
    config = transformers.FuyuConfig(text_config=text, patch_size=4, image_token_id=IMAGE_ID)
    theirs = rough(transformers.FuyuForCausalLM(config))
    state = theirs.state_dict()
    backbone = Persimmon(**Persimmon.from_hf_config(config.text_config.to_dict()))
    fill(backbone, words_of(state))
    embedder = LinearPatchEmbedder(hidden_size=48, image_size=8, patch_size=4, row_end=True)
    weight = state["model.vision_embed_tokens.weight"].unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2).flatten(1)
    ours = {"linear.weight": weight, "linear.bias": state["model.vision_embed_tokens.bias"]}
    newline = state["model.language_model.embed_tokens.weight"][NEWLINE_ID]
    assert load_weights(embedder, ours | {"row_end": newline[None]}) == []
    sample = row_with_image(embedder, random_tile(8, 12))
    assert sample.ids[4:12].tolist() == [IMAGE_ID, IMAGE_ID, IMAGE_ID, NEWLINE_ID] * 2
    side = {"height": 4, "width": 4}
    patches = transformers.FuyuImageProcessor(patch_size=side).patchify_image(sample.tiles)
    expected = theirs(input_ids=sample.ids[None], pixel_values=patches).logits[0]
    close(all_logits(net_of(backbone, embedder), sample), expected)


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
    state = theirs.state_dict()
    fill(backbone, words_of(state))
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
    rest = {n.removeprefix("model."): t for n, t in state.items() if "language_model" not in n and "lm_head" not in n}
    assert load_weights(embedder, vit_state(rest)) == []
    sample = row_with_image(embedder, random_tile(16, 16))
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
    backbone = Gemma(**Gemma.from_hf_config(config))
    fill(backbone, released_state(theirs, tied=True))
    net = net_of(backbone)
    expected = torch.cat([theirs(row.ids[None]).logits[0] for row in text_rows()])
    close(all_logits(net, Batch.collate(text_rows())), expected)
    made = generate(net, text_rows()[1:], max_new_tokens=8).ids
    options = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    for sample, ours in zip(text_rows()[1:], made, strict=True):
        whole = theirs.generate(sample.ids[None], attention_mask=torch.ones(1, len(sample)), **options)
        assert ours == whole[0, len(sample) :].tolist()


GEMMA_EMBEDDER = {
    "patch_ln1.": "patch_norm.",
    "patch_dense.": "patch_linear.",
    "patch_ln2.": "channel_norm.",
    "pos_norm.": "position_norm.",
    "multimodal_embedder.embedding_projection.": "linear.",
}


@torch.no_grad()
def test_gemma_with_a_picture(transformers: Any) -> None:
    """Masks as its generate makes them: local layers see the whole picture within their window, global ones do not."""
    from transformers.models.gemma4_unified import image_processing_gemma4_unified as processing

    vision = dict(patch_size=2, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=8, output_proj_dims=32)
    config = transformers.Gemma4UnifiedConfig(
        text_config=GEMMA, vision_config=vision, audio_config=None, image_token_id=IMAGE_ID
    )
    theirs = rough_gemma(transformers.Gemma4UnifiedForConditionalGeneration(config))
    state = theirs.state_dict()
    backbone = Gemma(**Gemma.from_hf_config(GEMMA))
    words = words_of(state)
    del words["lm_head.weight"]
    fill(backbone, words)
    embedder = GemmaPatchEmbedder(hidden_size=48, image_size=8, patch_size=4, channels=32, table_size=8)
    column, row = state["model.embed_vision.pos_embedding"].unbind(1)
    ours = {"column_position": column, "row_position": row}
    for name, tensor in state.items():
        for part, mine in GEMMA_EMBEDDER.items():
            if name.startswith(f"model.embed_vision.{part}"):
                ours[name.replace(f"model.embed_vision.{part}", mine)] = tensor
    assert load_weights(embedder, ours) == []
    sample = row_with_image(embedder, random_tile(8, 12))

    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    small = processing.convert_image_to_patches(sample.tiles[0], 2)
    patches, places = processing.patches_merge(small[None], torch.stack([x, y], -1).reshape(1, -1, 2), 6)
    is_image = (sample.ids == IMAGE_ID)[None]
    masks = theirs.create_masks_for_generate(
        config,
        inputs_embeds=torch.zeros(1, len(sample), 48),
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        mm_token_type_ids=is_image.long(),
    )
    options = dict(pixel_values=patches, image_position_ids=places, mm_token_type_ids=is_image.long())
    expected = theirs(input_ids=sample.ids[None], attention_mask=masks, **options).logits[0]
    close(all_logits(net_of(backbone, embedder), sample), expected)
    causal = Gemma(**Gemma.from_hf_config(GEMMA) | {"attention": "causal"})
    causal.load_state_dict(backbone.state_dict())
    assert (all_logits(net_of(causal, embedder), sample) - expected).abs().max() > 1e-2


def test_documents_of_a_row_do_not_see_one_another_through_a_window() -> None:
    backbone = Gemma(**Gemma.toy_args)  # type: ignore[arg-type]
    roughen(backbone)
    net = net_of(backbone)
    packed, length = row("tttttt|ttttttttt"), 6
    first, second = (Sample.from_ids(ids) for ids in packed.ids.split([length, len(packed) - length]))
    alone = torch.cat([all_logits(net, first), all_logits(net, second)])
    torch.testing.assert_close(all_logits(net, packed), alone, atol=1e-5, rtol=1e-5)
