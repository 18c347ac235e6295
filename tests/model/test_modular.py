"""The modular baseline: InternViT, pixel shuffle and MLP before InternLM2 agree with the released code and with timm.

tests/fixtures/reference/ holds two tiny checkpoints of the official layout and, of two more (c, d), inputs and outputs
without weights. What c and d switch (qk-norm beside LayerNorm, another select_layer) is compared with a plain formula.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.backbones.internlm2 import InternLM2
from components.patch_embedders.common import grid_positions
from components.patch_embedders.internvit import InternViT
from components.patch_embedders.mono import MonoPatchEmbedder
from components.patch_embedders.vision_encoder import VisionEncoder
from components.routers.modality import SharedRouter
from mmframe.batch import IGNORE, Batch, Sample
from mmframe.cli.main import main
from mmframe.cli.recipe import load_recipe
from mmframe.errors import UserError
from mmframe.generation import generate
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.weights import save_weights
from tests.helpers import all_logits, load_official, official_links, roughen
from tests.model.test_reference import FOLDER, SLOT, close, row_of

CHECKPOINTS = ["a_ln_noqk", "b_rms_qk"]
WITHOUT_WEIGHTS = ["c_ln_qk", "d_rms_noqk_sel2"]
checkpoints = pytest.mark.parametrize("name", CHECKPOINTS)


@functools.cache
def io() -> dict[str, Tensor]:
    return load_file(FOLDER / "modular_io.safetensors")


def recorded(name: str, what: str) -> Tensor:
    return io()[f"{name}/{what}"]


@functools.cache
def meta(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "meta.json").read_text())["modular"][name]


def config_of(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"modular_{name}" / "config.json").read_text())


def state_of(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"modular_{name}" / "model.safetensors")


def modular(name: str) -> MultimodalLM:
    """A fixture's checkpoint in our model, every tensor of it, strictly."""
    config = config_of(name)
    backbone = InternLM2(**InternLM2.from_hf_config(config["llm_config"]))
    embedder = InternViT(**InternViT.from_hf_config(config))
    net = MultimodalLM(backbone, embedder, SharedRouter(), expert_backend="torch")
    load_official(net, state_of(name))
    return net.eval()


def row_with_image(name: str) -> Sample:
    sample = row_of(recorded(name, "input_ids")[0], recorded(name, "labels")[0], key=name)
    sample.tiles = recorded(name, "pixel_values")
    return sample


# ---- the released code


@checkpoints
@torch.no_grad()
def test_hidden_states_of_the_encoder(name: str) -> None:
    embedder = modular(name).patch_embedder
    assert isinstance(embedder, InternViT)
    hidden = embedder.encode(recorded(name, "pixel_values"))
    close(hidden, recorded(name, "vit_last_hidden_state"))
    assert float(hidden.abs().max()) == pytest.approx(meta(name)["vit_hidden_absmax"], rel=1e-4)


@checkpoints
@torch.no_grad()
def test_visual_tokens(name: str) -> None:
    close(modular(name).patch_embedder(recorded(name, "pixel_values")), recorded(name, "vit_embeds")[0])


@checkpoints
def test_logits_and_loss(name: str) -> None:
    net, batch = modular(name), Batch.collate([row_with_image(name)])
    close(all_logits(net, batch), recorded(name, "logits")[0])
    total, weight = NextToken()(net, batch)
    close(total / weight, recorded(name, "loss"))
    assert float(recorded(name, "loss")) == pytest.approx(meta(name)["loss"])


@checkpoints
def test_a_blank_image_changes_the_logits_as_it_did_there(name: str) -> None:
    net, sample = modular(name), row_with_image(name)
    with_image = all_logits(net, sample)
    sample.tiles = torch.zeros_like(sample.tiles)
    change = (all_logits(net, sample) - with_image).abs().max()
    assert float(change) == pytest.approx(meta(name)["zero_image_logit_change"], abs=1e-3)


@checkpoints
def test_greedy_generation(name: str) -> None:
    assert generate(modular(name), [row_with_image(name)], max_new_tokens=12).ids == recorded(name, "gen_ids").tolist()


@checkpoints
def test_every_tensor_goes_back_to_the_last_bit(name: str) -> None:
    net, state = modular(name), state_of(name)
    for link in official_links(net):
        assert torch.equal(link.to_theirs(*map(net.get_parameter, link.ours)), state[link.theirs]), link.theirs


@pytest.mark.parametrize("name", CHECKPOINTS + WITHOUT_WEIGHTS)
def test_slots_labels_and_first_token_of_all_variants(name: str) -> None:
    """All that c and d allow without their weights."""
    base, changed = config_of("b_rms_qk"), meta(name)["overrides"]
    config = base | changed.get("chat", {}) | {"vision_config": base["vision_config"] | changed["vis"]}
    with torch.device("meta"):
        embedder = InternViT(**InternViT.from_hf_config(config))
    sample, logits = row_with_image(name), recorded(name, "logits")[0]
    per_tile = embedder.num_tokens(embedder.image_size, embedder.image_size)
    assert per_tile == meta(name)["num_image_token"] == recorded(name, "vit_embeds").shape[1]
    if name not in CHECKPOINTS[:1]:  # a has 56 px tiles, b's config 28
        assert sample.tiles.shape == (1, 3, embedder.image_size, embedder.image_size)
    assert int((sample.ids == SLOT).sum()) == per_tile
    asked = sample.labels != IGNORE
    close(F.cross_entropy(logits[asked], sample.labels[asked]), recorded(name, "loss"))
    assert int(logits[-1].argmax()) == int(recorded(name, "gen_ids")[0, 0])


# ---- a plain formula, for every option of the encoder

SMALL: dict[str, Any] = dict(
    hidden_size=32, image_size=56, patch_size=14, channels=48, num_layers=3, num_heads=4, intermediate_size=96
)


def small_vit(**changes: Any) -> InternViT:
    embedder = InternViT(**(SMALL | changes))
    roughen(embedder, std=0.1)
    return embedder.eval()


def plain_norm(norm: nn.Module, x: Tensor, eps: float) -> Tensor:
    if hasattr(norm, "bias"):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight


def plain_encode(vit: Any, tiles: Tensor, layers: int, eps: float) -> Tensor:
    """Matrix by matrix and head by head, in fp64."""
    patches = F.unfold(tiles, vit.patch_size, stride=vit.patch_size).transpose(1, 2)
    x = patches @ vit.conv.weight.flatten(1).T + vit.conv.bias
    x = torch.cat([vit.class_embedding.expand(len(x), -1, -1), x], dim=1) + vit.position
    for layer in vit.layers[:layers]:
        q, k, v = layer.attn.qkv(plain_norm(layer.norm1, x, eps)).chunk(3, dim=-1)
        if layer.attn.q_norm is not None:
            q, k = plain_norm(layer.attn.q_norm, q, eps), plain_norm(layer.attn.k_norm, k, eps)
        size = q.shape[-1] // layer.attn.num_heads
        heads = [
            torch.softmax(qh @ kh.transpose(1, 2) / size**0.5, dim=-1) @ vh
            for qh, kh, vh in zip(q.split(size, -1), k.split(size, -1), v.split(size, -1), strict=True)
        ]
        x = x + layer.ls1 * layer.attn.proj(torch.cat(heads, dim=-1))
        x = x + layer.ls2 * layer.mlp.fc2(F.gelu(layer.mlp.fc1(plain_norm(layer.norm2, x, eps))))
    return x


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
@torch.no_grad()
def test_encoder_is_the_plain_formula(norm: str, qk_norm: bool, qkv_bias: bool) -> None:
    vit = small_vit(norm=norm, qk_norm=qk_norm, qkv_bias=qkv_bias, norm_eps=1e-2)
    tiles = torch.randn(2, 3, 56, 56)
    ours = vit.encode(tiles)
    close(ours, plain_encode(vit.double(), tiles.double(), layers=3, eps=1e-2).float())


LAYER_OF = {-4: 0, -3: 1, -2: 2, -1: 3, 0: 0, 1: 1, 3: 3}


@pytest.mark.parametrize("select", LAYER_OF)
@torch.no_grad()
def test_select_layer_counts_the_embeddings_as_zero(select: int) -> None:
    vit, tiles = small_vit(select_layer=select), torch.randn(1, 3, 56, 56)
    ours = vit.encode(tiles)
    close(ours, plain_encode(vit.double(), tiles.double(), layers=LAYER_OF[select], eps=1e-6).float())


@pytest.mark.parametrize("select", [-5, 4])
def test_select_layer_outside_of_the_encoder_is_an_error(select: int) -> None:
    with pytest.raises(UserError, match=f"select_layer={select} is outside of -4..3 of 3 layers"):
        small_vit(select_layer=select)


def gradients(embedder: nn.Module, tiles: Tensor) -> dict[str, Tensor | None]:
    embedder.zero_grad()
    weights = torch.linspace(-1, 1, 32)
    (embedder(tiles) * weights).sum().backward()
    return {name: p.grad for name, p in embedder.named_parameters()}


def test_layers_behind_the_selected_one_have_zero_and_not_missing_gradients() -> None:
    """Ranks wait for one another: no parameter may go without a gradient."""
    found = gradients(small_vit(select_layer=-2), torch.randn(2, 3, 56, 56))
    for name, gradient in found.items():
        assert gradient is not None, name
        assert bool(gradient.any()) != name.startswith("layers.2."), name


def test_gradient_checkpointing_changes_nothing_but_the_work() -> None:
    tiles, calls = torch.randn(2, 3, 56, 56), [0]
    plain = gradients(small_vit(), tiles)
    vit = small_vit(gradient_checkpointing=True)
    vit.layers[0].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for name, gradient in gradients(vit, tiles).items():
        torch.testing.assert_close(gradient, plain[name])
    assert calls == [2]
    with torch.no_grad():
        vit(tiles)
    assert calls == [3]


def test_drop_path_grows_over_the_layers_and_rests_in_evaluation() -> None:
    vit, tiles = small_vit(drop_path=0.8), torch.randn(8, 3, 56, 56)
    assert [layer.drop_path.drop_prob for layer in vit.layers] == pytest.approx([0, 0.4, 0.8])  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(vit(tiles), small_vit()(tiles))
        assert not torch.allclose(vit.train()(tiles), small_vit()(tiles))


@torch.no_grad()
def test_other_tile_sizes_take_interpolated_positions() -> None:
    small, tiles = small_vit(), torch.randn(1, 3, 84, 84)
    large = small_vit(image_size=84)
    resized = grid_positions(small.position[:, 1:], 6, 6).flatten(2).transpose(1, 2)
    large.load_state_dict(small.state_dict() | {"position": torch.cat([small.position[:, :1], resized], dim=1)})
    assert small.num_tokens(84, 84) == 9
    close(small(tiles), large(tiles))
    assert small(torch.randn(1, 3, 28, 56)).shape == (2, 32)  # tiles need not be square


# ---- timm


def timm_intern_vit(**changes: Any) -> VisionEncoder:
    """timm's own InternViT, small."""
    sizes = dict(embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0)
    encoder = VisionEncoder(32, model="vit_intern300m_patch14_448", image_size=56, model_args=sizes | changes)
    roughen(encoder, std=0.1)
    return encoder.eval()


@torch.no_grad()
def test_timms_intern_vit_and_ours_agree_on_the_same_weights(tmp_path: Path) -> None:
    theirs, tiles = timm_intern_vit(), torch.randn(2, 3, 56, 56)
    save_file(theirs.encoder.state_dict(), tmp_path / "model.safetensors")
    ours = InternViT(**SMALL, weights=str(tmp_path)).eval()
    close(ours.encode(tiles), theirs.encoder.forward_features(tiles))
    ours.mlp.load_state_dict(theirs.mlp.state_dict())
    close(ours(tiles), theirs(tiles))


TIMM_MODELS = {
    "vit_base_patch16_224": 64,
    "vit_base_patch16_siglip_224": 64,
    "vit_betwixt_patch16_reg4_gap_256": 64,
    "eva02_tiny_patch14_224": 56,
}
"""Name -> edge of a tile: with a class token, with none, with registers, with rotary positions."""


@pytest.mark.parametrize(("model", "edge"), TIMM_MODELS.items(), ids=TIMM_MODELS.keys())
@torch.no_grad()
def test_any_vision_transformer_of_timm_is_an_encoder(model: str, edge: int) -> None:
    sizes = dict(embed_dim=48, depth=2, num_heads=4)
    encoder = VisionEncoder(32, model=model, image_size=edge, model_args=sizes).eval()
    assert encoder(torch.randn(2, 3, edge, edge)).shape == (2 * encoder.num_tokens(edge, edge), 32) == (8, 32)


def test_names_of_timm_may_have_a_tag_and_mistakes_are_named() -> None:
    made = VisionEncoder(32, model="test_vit.r160_in1k", image_size=64)
    assert made.spec["init_args"]["model"] == "test_vit.r160_in1k"
    with pytest.raises(UserError, match="no model .*300_patch.*did you mean .*300m_patch"):
        VisionEncoder(32, model="vit_intern300_patch14_448")


# ---- files of weights


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
@torch.no_grad()
def test_weights_of_an_official_encoder_start_ours(prefix: str, tmp_path: Path) -> None:
    """InternVL's file has a prefix and the projector, that of a bare InternViT neither."""
    source, tiles = small_vit(), torch.randn(1, 3, 56, 56)
    names = {link.ours[0]: link.theirs for link in source.tensor_map()}
    state = {names[name].removeprefix("" if prefix else "vision_model."): t for name, t in source.state_dict().items()}
    if not prefix:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("mlp1.")}
    save_file(state, tmp_path / "vit.safetensors")
    made = InternViT(**SMALL, weights=str(tmp_path / "vit.safetensors")).eval()
    assert torch.equal(made.encode(tiles), source.encode(tiles))
    assert torch.equal(made(tiles), source(tiles)) == bool(prefix)


@torch.no_grad()
def test_a_whole_chat_model_is_a_source_of_its_encoder_and_projector() -> None:
    """Its language model is left alone."""
    name, folder = "a_ln_noqk", FOLDER / "modular_a_ln_noqk"
    made = InternViT(**InternViT.from_hf_config(config_of(name)), weights=str(folder)).eval()
    close(made(recorded(name, "pixel_values")), recorded(name, "vit_embeds")[0])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    with pytest.raises(UserError, match="vit.safetensors is no safetensors file"):
        InternViT(**SMALL, weights=str(file))
    names = {link.ours[0]: link.theirs for link in small_vit().tensor_map()}
    state = {names[name]: tensor for name, tensor in small_vit().state_dict().items()}
    save_file({name: tensor for name, tensor in state.items() if "layers.1.ls1" not in name}, file)
    with pytest.raises(UserError, match="1 missing.*layers.1.ls1"):
        InternViT(**SMALL, weights=str(file))
    save_file(state | {"vision_model.embeddings.position_embedding": torch.zeros(1, 5, 48)}, file)
    with pytest.raises(UserError, match=r"position.*\(1, 5, 48\)"):
        InternViT(**SMALL, weights=str(file))


# ---- the config is honoured, or refused by name

REFUSED = {
    "hidden_act": ({"vision_config": {"hidden_act": "gelu_new"}}, "hidden_act='gelu_new'"),
    "norm_type": ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type='batch_norm'"),
    "dropout": ({"vision_config": {"attention_dropout": 0.1}}, "attention_dropout=0.1"),
    "tile": ({"force_image_size": 224}, "force_image_size=224.*image_size=28"),
    "shuffle": ({"ps_version": "v3"}, "shuffle_version='v3'"),
    "downsample": ({"downsample_ratio": 0.3}, "downsample=0.3"),
}


def changed_config(change: dict[str, Any]) -> dict[str, Any]:
    config = config_of("b_rms_qk")
    return config | change | {"vision_config": config["vision_config"] | change.get("vision_config", {})}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_config_says_and_we_cannot_do_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InternViT(**InternViT.from_hf_config(changed_config(change)))


def test_a_config_is_honoured() -> None:
    vision = {"drop_path_rate": 0.1, "layer_norm_eps": 1e-5, "qk_normalization": False}
    arguments = InternViT.from_hf_config(
        changed_config({"select_layer": -2, "ps_version": "v1", "downsample_ratio": 0.25, "vision_config": vision})
    )
    vit = InternViT(**arguments)
    assert vit.depth == 1 and vit.block == 4 and vit.shuffle_version == "v1"
    assert vit.layers[0].norm1.eps == 1e-5 and vit.layers[1].drop_path.drop_prob == 0.1  # type: ignore[union-attr]
    assert vit.layers[0].attn.q_norm is None  # type: ignore[union-attr]


def test_options_without_a_place_in_the_official_layout_are_named() -> None:
    for options in (dict(class_slot=False), dict(output_rms=0.1)):
        with pytest.raises(UserError, match="no place in the official layout"):
            MonoPatchEmbedder(32, image_size=8, patch_size=2, channels=8, **options).tensor_map()


# ---- full size, and the recipe


def test_full_size_is_the_released_one() -> None:
    with torch.device("meta"):
        backbone = InternLM2()
        embedder = InternViT(hidden_size=backbone.hidden_size)
        net = MultimodalLM(backbone, embedder, SharedRouter(), expert_backend="torch")
    projector = sum(p.numel() for p in embedder.mlp.parameters())
    assert embedder.num_tokens(448, 448) == 256
    assert sum(p.numel() for p in embedder.parameters()) - projector == 304_012_288
    assert sum(p.numel() for p in net.parameters()) == 2_205_754_368


def test_one_line_makes_another_recipe_modular(tmp_path: Path) -> None:
    line = "model: {patch_embedder: {class_path: InternViT}, router: {class_path: SharedRouter}}"
    header = (Path(__file__).parents[2] / "recipes" / "internvl_1_5.yaml").read_text()
    assert line in header
    (tmp_path / "mine.yaml").write_text(f"base: evip_pp.yaml\n{line}\n")
    recipe = load_recipe([str(tmp_path / "mine.yaml")])
    for stage in recipe.stages:
        model = recipe.resolve(stage)["model"]
        assert model["patch_embedder"] == {"class_path": "InternViT"} and model["router"] == {
            "class_path": "SharedRouter"
        }


def test_stage_one_starts_from_a_text_llm_and_an_encoder_and_trains_the_encoder_alone(tmp_path: Path) -> None:
    """What the recipe's header says under Start, with the fixture's parts."""
    name = "a_ln_noqk"
    net = modular(name)
    llm = MultimodalLM(net.backbone, None, SharedRouter(), expert_backend="torch")
    parts = {"backbone": net.backbone.spec, "patch_embedder": None, "router": net.router.spec, "processor": None}
    save_weights(llm, tmp_path / "llm" / "weights.safetensors", {"model": parts})
    sizes = {key: value for key, value in InternViT.from_hf_config(config_of(name)).items() if key != "hidden_size"}
    embedder = {"class_path": "InternViT", "init_args": sizes | {"weights": str(FOLDER / f"modular_{name}")}}
    options = [
        f"--start_from={tmp_path / 'llm'}",
        f"--model.patch_embedder={json.dumps(embedder)}",
        "--model.processor.tokenizer=ByteTokenizer",
        "--model.processor.template=plain",
        "--data={class_path: ToyData, init_args: {size: 8, batch_size: 2, val_size: 2}}",
        *(f"--trainer.{key}=1" for key in ("devices", "num_nodes", "max_steps", "limit_val_batches")),
        *("--trainer.accelerator=cpu", "--trainer.strategy=auto", "--trainer.precision=32-true"),
    ]
    command = ["fit", "--config", "internvl_1_5", "--stage", "s1_pretraining", "--run-dir", str(tmp_path / "run")]
    assert main([*command, "--in-process", *options]) == 0
    (file,) = (tmp_path / "run").rglob("weights.safetensors")
    trained, start = load_file(file), net.state_dict()
    assert set(trained) == set(start)
    moved = {key for key in start if not torch.equal(trained[key], start[key])}
    assert moved and all(key.startswith("patch_embedder.") for key in moved)
    assert any(key.startswith("patch_embedder.layers.") for key in moved) and "patch_embedder.mlp.1.weight" in moved
    for key in moved:
        torch.testing.assert_close(trained[key], start[key], atol=1e-3, rtol=0)  # one step of a small rate away
