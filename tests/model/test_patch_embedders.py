"""Patch embedders beyond their contract: what each computes, what stands around the grid, published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.patch_embedders.conv import ConvPatchEmbedder
from components.patch_embedders.conv_conv import ConvConvPatchEmbedder
from components.patch_embedders.eve import EVEPatchEmbedder
from components.patch_embedders.gemma import GemmaPatchEmbedder
from components.patch_embedders.grid import GridEmbedder
from components.patch_embedders.layer_stack import LayerStack
from components.patch_embedders.linear import LinearPatchEmbedder
from components.patch_embedders.rotary import grid_angles, rotate_pairs
from components.patch_embedders.vision_encoder import VisionEncoder
from components.routers.modality import ModalityRouter
from mmframe.batch import Batch, Sample
from mmframe.errors import UserError
from mmframe.generation import run_prompts
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import all_logits, roughen, tiny_embedder, tiny_llama

AROUND: dict[str, Any] = dict(class_token=True, row_end=True, num_queries=3)
STACK: dict[str, Any] = dict(image_size=8, patch_size=2, channels=16, num_layers=2, num_heads=2, intermediate_size=24)


def rough(embedder: GridEmbedder) -> Any:
    roughen(embedder)
    return embedder.eval()


def pixels(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- around the grid


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (4, 8)])
@torch.no_grad()
def test_the_grid_is_as_without_what_stands_around_it(height: int, width: int) -> None:
    sizes: dict[str, Any] = dict(hidden_size=32, image_size=8, patch_size=4)
    plain, rich = LinearPatchEmbedder(**sizes), rough(LinearPatchEmbedder(**sizes, **AROUND))
    plain.linear.load_state_dict(rich.linear.state_dict())
    tiles, kinds = pixels(height, width, count=2), rich.kinds(height, width)
    rows, columns = height // 4, width // 4
    y_nKD = rich(tiles).view(2, -1, 32)
    assert torch.equal(y_nKD[:, kinds == TokenKind.IMAGE].flatten(0, 1), plain(tiles))
    for tile in y_nKD:
        assert torch.equal(tile[:1], rich.class_token) and torch.equal(tile[-3:], rich.queries)
        ends = tile[1:-3].view(rows, columns + 1, 32)[:, -1]
        assert torch.equal(ends, rich.row_end.expand(rows, -1))
    assert rich.num_tokens(height, width) == 1 + rows * (columns + 1) + 3
    row_of_ends = rich.places(height, width)[1:-3].view(rows, columns + 1, 2)[:, -1]
    assert row_of_ends.tolist() == [[row, columns] for row in range(rows)]


def test_a_negative_number_of_queries_is_refused() -> None:
    with pytest.raises(UserError, match="num_queries=-1 must be at least 0"):
        LinearPatchEmbedder(32, num_queries=-1)


def test_the_official_layout_has_no_place_for_what_stands_around() -> None:
    with pytest.raises(UserError, match="row_end=True, num_queries=2 has no place in the official layout"):
        tiny_embedder(row_end=True, num_queries=2).tensor_map()


@torch.no_grad()
def test_every_token_speaks_at_the_volume_asked_for() -> None:
    embedder = rough(ConvConvPatchEmbedder(32, 8, 2, channels=8, num_queries=2, output_rms=0.13))
    rms = embedder(pixels(8, 8)).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 0.13), rtol=1e-3, atol=0)


@pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
@torch.no_grad()
def test_a_model_reads_tokens_of_every_kind(attention: str) -> None:
    """Pictures through the processor: packed as alone, in chunks as at once, queries to the visual expert."""
    embedder = rough(ConvConvPatchEmbedder(32, 8, 2, channels=8, num_queries=3))
    backbone = tiny_llama(attention=attention, vocab_size=300)
    roughen(backbone, seed=1)
    net = MultimodalLM(backbone, embedder, ModalityRouter({"ffn": "all", "q": "all"}), expert_backend="torch").eval()
    made = ChatProcessor(ByteTokenizer(), "plain")
    given = [(torch.rand(n, 3, 8, 8) * 255).byte() for n in (1, 2)]
    talk = [{"from": "human", "value": "a <image> b <image>"}, {"from": "gpt", "value": "yes"}]
    sample = made.encode(talk, given, embedder)
    assert len(sample.ids[sample.blocks >= 0]) == 3 * embedder.num_tokens(8, 8)
    alone = all_logits(net, sample)
    packed = all_logits(net, Sample.packed([made.encode_text("hello"), sample]))
    torch.testing.assert_close(packed[-len(sample) :], alone, atol=2e-5, rtol=1e-5)
    cache = net.backbone.new_cache(1, len(sample))
    torch.testing.assert_close(run_prompts(net, [sample], cache, chunk=7)[0], alone[-1], atol=2e-5, rtol=1e-5)
    plan = net.router.plan(sample.kinds)
    assert plan.sizes[1] == int(((sample.kinds == TokenKind.IMAGE) | (sample.kinds == TokenKind.QUERY)).sum())
    short = Batch.collate([sample])
    short.tiles, short.row_tiles = short.tiles[:2], (2,)
    per_tile = embedder.num_tokens(8, 8)
    with pytest.raises(UserError, match=f"{3 * per_tile} image slots in the text, {2 * per_tile} visual tokens"):
        net(short)


# ---- rotary positions in the grid


def test_angles_are_those_of_row_and_column() -> None:
    angles = grid_angles(2, 3, size=8, theta=100.0, device=torch.device("cpu"))
    for cell in range(6):
        for axis, place in enumerate(divmod(cell, 3)):
            expected = [place * 100.0 ** (-2 * i / 4) for i in range(2)]
            assert angles[cell, axis].tolist() == pytest.approx(expected)


def test_pairs_turn_like_complex_numbers() -> None:
    x, angles = torch.randn(2, 5, 8), torch.randn(5, 4)
    expected = torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones(5, 4), angles)
    )
    torch.testing.assert_close(rotate_pairs(x, angles), expected.flatten(-2))


@torch.no_grad()
def test_conv_conv_turns_by_column_then_row() -> None:
    """NEO: the first half of the channels knows the column, the second the row."""
    options: dict[str, Any] = dict(image_size=8, patch_size=2, channels=8, class_token=False, row_end=False)
    turned = rough(ConvConvPatchEmbedder(32, **options, rotary=True))
    tiles = pixels(4, 8)
    x_8hw = F.gelu(turned.conv(tiles))[0]
    expected = x_8hw.clone()
    for row in range(2):
        for column in range(4):
            for pair in range(4):
                place = column if pair < 2 else row
                angle = torch.tensor(place * 10000.0 ** (-2 * (pair % 2) / 4))
                a, b = x_8hw[2 * pair : 2 * pair + 2, row, column]
                expected[2 * pair, row, column] = a * angle.cos() - b * angle.sin()
                expected[2 * pair + 1, row, column] = a * angle.sin() + b * angle.cos()
    torch.testing.assert_close(turned(tiles), turned.merge(expected[None])[0].flatten(1).T, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(turned(tiles), turned.merge(x_8hw[None])[0].flatten(1).T, atol=1e-2)


# ---- a stack of layers


def last_patch_moves(stack: LayerStack) -> list[bool]:
    """Of each token, whether a change of the last patch moves it; one token a patch."""
    tile = pixels(4, 4)
    changed = tile.clone()
    changed[..., 2:, 2:] += 1
    return ((stack(tile) - stack(changed)).abs().amax(1) > 1e-4).tolist()


@torch.no_grad()
def test_a_causal_stack_looks_back_only() -> None:
    options = STACK | dict(downsample=1.0)
    assert last_patch_moves(rough(LayerStack(32, **options))) == [True] * 4
    causal = rough(LayerStack(32, **options, attention="causal", ffn="swiglu", layer_scale=None, qk_norm=False))
    assert last_patch_moves(causal) == [False, False, False, True]
    assert not any("ls1" in name or "q_norm" in name for name, _ in causal.named_parameters())


@torch.no_grad()
def test_only_positions_tell_a_stack_where_a_patch_stands() -> None:
    tile = pixels(4, 4)
    swapped = torch.cat([tile[..., 2:], tile[..., :2]], dim=3)
    options = STACK | dict(downsample=1.0)
    for positions, same in (("none", True), ("grid", False)):
        stack = rough(LayerStack(32, **options | dict(positions=positions)))
        back = stack(swapped).view(2, 2, 32).flip(1).flatten(0, 1)
        assert torch.allclose(back, stack(tile), atol=1e-4) == same, positions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "casual"}, "attention='casual' is not known.*causal"),
        ({"positions": "rope"}, "positions='rope' is not known"),
        ({"ffn": "relu"}, "ffn='relu' is not known"),
        ({"num_heads": 3}, "channels 16 do not divide into 3 heads"),
        ({"num_heads": 8}, "heads of 2 .* cannot turn"),
    ],
)
def test_a_stack_names_what_it_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LayerStack(32, **STACK | changes)


# ---- EVE's tokenizer


@torch.no_grad()
def test_eve_pools_each_cell_of_its_own_patches_and_the_class_token_of_all() -> None:
    embedder = rough(EVEPatchEmbedder(32, image_size=8, patch_size=2, channels=8, num_heads=2))
    tile = pixels(8, 8)
    changed = tile.clone()
    changed[..., 4:, :4] += 1
    moved = ((embedder(tile) - embedder(changed)).abs().amax(1) > 1e-5).tolist()
    assert moved == [True, False, False, False, True, False, False]  # class; row, end; row, end


@torch.no_grad()
def test_eve_weighs_the_patches_of_a_cell_by_attention() -> None:
    embedder = rough(EVEPatchEmbedder(32, image_size=4, patch_size=2, channels=8, num_heads=1))
    pool, x_4C = embedder.pool_cell, embedder.conv(pixels(4, 4))[0].flatten(1).T
    mean_C = x_4C.mean(0)
    query, (keys, values) = pool.q(pool.q_norm(mean_C)), pool.kv(pool.kv_norm(x_4C)).chunk(2, dim=-1)
    weights = (keys @ query * 8**-0.5).softmax(0)
    cell = mean_C + pool.proj(weights @ values)
    torch.testing.assert_close(embedder(pixels(4, 4))[1], embedder.mlp(cell), atol=1e-5, rtol=1e-5)


# ---- Gemma's


@torch.no_grad()
def test_gemma_computes_what_transformers_computes() -> None:
    from transformers.models.gemma4_unified import configuration_gemma4_unified as configs
    from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedVisionEmbedder

    vision = configs.Gemma4UnifiedVisionConfig(
        patch_size=2, pooling_kernel_size=2, mm_embed_dim=16, mm_posemb_size=6, output_proj_dims=16
    )
    theirs = Gemma4UnifiedVisionEmbedder(vision, configs.Gemma4UnifiedTextConfig(hidden_size=32)).eval()
    roughen(theirs)
    ours = GemmaPatchEmbedder(32, image_size=12, patch_size=4, channels=16, table_size=6)
    pairs = {
        "patch_norm": theirs.patch_ln1,
        "patch_linear": theirs.patch_dense,
        "channel_norm": theirs.patch_ln2,
        "position_norm": theirs.pos_norm,
        "linear": theirs.multimodal_embedder.embedding_projection,
    }
    for name, module in pairs.items():
        getattr(ours, name).load_state_dict(module.state_dict())
    ours.column_position.copy_(theirs.pos_embedding[:, 0])
    ours.row_position.copy_(theirs.pos_embedding[:, 1])
    tile = pixels(8, 12)
    patches = tile[0].permute(1, 2, 0).unfold(0, 4, 4).unfold(1, 4, 4).permute(0, 1, 3, 4, 2).reshape(1, 6, 48)
    xy = torch.tensor([[[column, row] for row in range(2) for column in range(3)]])
    torch.testing.assert_close(ours(tile), theirs(patches, xy).pooler_output[0], atol=1e-5, rtol=1e-5)


def test_gemma_names_a_tile_larger_than_its_table() -> None:
    with pytest.raises(UserError, match="8 x 8 patches is larger than the table of positions, table_size=6"):
        GemmaPatchEmbedder(32, image_size=8, patch_size=1, channels=16, table_size=6)


# ---- the conv and its options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (dict(channels=None, norm="none", positions=False, bias=False), {"conv.weight"}),
        (dict(channels=None, norm="layer_norm", positions=False), {"conv", "norm"}),
        (dict(channels=8), {"conv", "norm.weight", "position", "linear.weight"}),
    ],
)
@torch.no_grad()
def test_a_conv_has_the_parts_that_are_asked_for(options: dict[str, Any], parts: set[str]) -> None:
    embedder = rough(ConvPatchEmbedder(32, image_size=8, patch_size=4, **options))
    names = [name for name, _ in embedder.named_parameters()]
    assert all(any(name.startswith(part) for part in parts) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in parts)
    assert embedder(pixels(4, 8)).shape == (2, 32)
    with pytest.raises(UserError, match="norm='rms' is not known.*rms_norm"):
        ConvPatchEmbedder(32, norm="rms")


# ---- any vision encoder of timm


@torch.no_grad()
def test_a_conv_net_is_a_vision_encoder_too() -> None:
    encoder = VisionEncoder(32, model="test_convnext", image_size=128).eval()
    assert encoder.num_tokens(128, 128) == 4 and encoder(pixels(128, 64)).shape == (2, 32)
    with torch.enable_grad():
        encoder(pixels(128, 128)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match="test_resnet has BatchNorm.*convnext_base"):
        VisionEncoder(32, model="test_resnet", image_size=64)


@pytest.mark.parametrize(
    ("model", "tokens"), [("vit_so400m_patch14_siglip_384", 256), ("swin_tiny_patch4_window7_224", 49)]
)
def test_encoders_of_other_shapes_give_their_tokens(model: str, tokens: int) -> None:
    with torch.device("meta"):
        encoder = VisionEncoder(64, model=model)
        assert encoder(torch.zeros(1, 3, 448, 448)).shape == (tokens, 64)
    assert encoder.num_tokens(448, 448) == tokens


# ---- full sizes: parameters and tokens of a square tile that the models' public code and configs give

FULL_SIZE = {
    "VoRA-7B": (ConvPatchEmbedder, 3584, {}, 7_984_128, 1024),
    "EVE-7B": (EVEPatchEmbedder, 4096, {}, 29_982_720, 1 + 24 * 25),
    "EVEv2-7B": (ConvConvPatchEmbedder, 3584, {}, 15_478_272, 1 + 25 * 26),
    "NEO-2B": (ConvConvPatchEmbedder, 2048, dict(rotary=True, class_token=False, row_end=False), 9_178_112, 625),
    "Gemma-4-12B": (GemmaPatchEmbedder, 3840, {}, 49_922_304, 256),
    "SOLO-7B": (LinearPatchEmbedder, 4096, dict(image_size=1024, bias=False), 12_582_912, 1024),
    "Fuyu-8B": (LinearPatchEmbedder, 4096, dict(image_size=1080, patch_size=30, row_end=True), 11_067_392, 36 * 37),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_defaults_have_the_size_of_the_model_that_they_name(name: str) -> None:
    cls, hidden_size, options, parameters, tokens = FULL_SIZE[name]
    with torch.device("meta"):
        embedder: nn.Module = cls(hidden_size, **options)
    edge: int = embedder.image_size  # type: ignore[assignment]
    assert sum(parameter.numel() for parameter in embedder.parameters()) == parameters
    assert embedder.num_tokens(edge, edge) == tokens  # type: ignore[operator]
