"""Adapters: what every one of them promises (over the registry), and what each does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components.adapters.gated import GatedBranch, GatedLinear
from components.adapters.linear import adapted
from components.adapters.lora import LoRA, LoRALinear
from components.freezing.additions import GatedBranchParameters, LoRAParameters
from components.freezing.delta_tuning import Everything, VisualParameters
from components.routers.modality import ModalityRouter
from mmframe import registry
from mmframe.contracts import Adapter, FreezingPolicy
from mmframe.errors import UserError
from mmframe.layers import layer_of
from mmframe.loading import build, load
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import (
    ALL_SITES,
    QKV_FFN,
    all_logits,
    batch,
    differing,
    fit,
    loss_and_gradients,
    mixed_batch,
    roughen,
    snapshot,
    tiny_embedder,
    tiny_internlm2,
    tiny_llama,
    tiny_net,
)

adapters = pytest.mark.parametrize("cls", registry.classes("adapter"), ids=lambda cls: cls.__name__)


def added_by(adapter: Adapter, net: nn.Module) -> set[str]:
    """Installs it; names of the new parameters."""
    before = set(snapshot(net))
    adapter.install(net)
    return set(snapshot(net)) - before


@torch.no_grad()
def disturb(net: nn.Module, names: set[str], seed: int = 5) -> None:
    """Gives the additions something to say."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(names):
        parameter = net.get_parameter(name)
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


# ---- every adapter


@adapters
def test_it_is_one_and_its_recorded_call_makes_it_again(cls: type) -> None:
    assert issubclass(cls, Adapter)
    made = cls(**(cls.toy_args or {}))
    again = build(json.loads(json.dumps(made.spec)))
    assert type(again) is cls and again.spec == made.spec
    assert added_by(made, tiny_net()) == added_by(again, tiny_net()) != set()


@adapters
def test_a_fresh_adapter_changes_no_bit_and_no_name(cls: type) -> None:
    net, given = tiny_net(QKV_FFN, distinct=True), mixed_batch()
    logits, before = all_logits(net, given), snapshot(net)
    added_by(cls(), net)
    after = snapshot(net)
    assert torch.equal(all_logits(net, given), logits)
    assert set(before) < set(after)
    assert all(torch.equal(after[name], before[name]) for name in before)


@adapters
def test_every_added_parameter_has_a_say(cls: type) -> None:
    for backbone in (tiny_llama(), tiny_internlm2()):
        net = tiny_net(ALL_SITES, backbone=backbone, distinct=True)
        added = added_by(cls(), net)
        disturb(net, added)
        _, gradients = loss_and_gradients(net, batch("ttTTT", "tt[i]tTT"))
        for name in added:
            gradient = gradients[name]
            assert gradient is not None and gradient.any(), name


@adapters
def test_merging_leaves_the_plain_model_with_the_same_logits(cls: type) -> None:
    adapter, net, given = cls(), tiny_net(QKV_FFN, distinct=True), mixed_batch()
    names, plain = set(snapshot(net)), all_logits(net, given)
    disturb(net, added_by(adapter, net))
    held = dict(net.named_parameters())
    values, wanted = snapshot(net), all_logits(net, given)
    assert (wanted - plain).abs().max() > 1e-2, "the additions say something"
    adapter.merge(net)
    assert set(snapshot(net)) == names
    torch.testing.assert_close(all_logits(net, given), wanted, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(held[name], values[name]) for name in held), "what was there keeps its values"


@adapters
def test_text_and_image_rows_of_any_mix_train_it(cls: type) -> None:
    net = tiny_net(QKV_FFN)
    added = added_by(cls(), net)
    for given in (batch("tTT"), batch("[i]TT")):
        _, gradients = loss_and_gradients(net, given)
        assert all(gradients[name] is not None for name in added)


# ---- LoRA


def lora_module(
    adapter: Adapter | None = None, freezing: FreezingPolicy | None = None, init_from: str | None = None
) -> MultimodalModule:
    backbone, embedder = tiny_llama(), tiny_embedder()
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    return MultimodalModule(
        backbone=backbone,
        patch_embedder=embedder,
        router=ModalityRouter({"ffn": "all"}),
        freezing=freezing or LoRAParameters(lr=1e-2),
        processor=ChatProcessor(ByteTokenizer()),
        optim=AdamWSchedule(warmup_steps=1, schedule="constant"),
        init_from=init_from,
        adapter=adapter or LoRA(rank=4),
        expert_backend="torch",
    )


def test_it_is_the_low_rank_product_that_the_paper_writes() -> None:
    layer = LoRALinear(nn.Linear(6, 5), rank=2, scale=3.0, dropout=0.0)
    nn.init.normal_(layer.added.lora_b)
    x = torch.randn(4, 6)
    expected = x @ (layer.weight + 3.0 * layer.added.lora_b @ layer.added.lora_a).T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)
    assert LoRA(rank=8, alpha=32).scale == 4.0


def test_merging_is_computed_in_fp32_also_for_bf16_weights() -> None:
    layer = LoRALinear(nn.Linear(64, 64, bias=False).bfloat16(), rank=8, scale=2.0, dropout=0.0)
    nn.init.normal_(layer.added.lora_b, std=0.1)
    exact = layer.weight.double() + 2.0 * layer.added.lora_b.double() @ layer.added.lora_a.double()
    assert torch.equal(layer.merged().weight, exact.float().bfloat16())


def test_dropout_is_on_in_training_and_on_the_addition_alone() -> None:
    layer = LoRALinear(nn.Linear(64, 64), rank=4, scale=1.0, dropout=0.5)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    nn.init.normal_(layer.added.lora_b)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_by_default_text_attention_and_ffn_have_it_and_patterns_choose_others() -> None:
    net = tiny_net(QKV_FFN)
    LoRA().install(net)
    parts = {name.partition("layers.0.")[2] for name, _ in adapted(net) if ".layers.0." in name}
    ffn = {f"ffn.text.{part}" for part in ("gate", "up", "down")}
    assert parts == {"q.text", "k.text", "v.text", "o.text"} | ffn
    net = tiny_net(QKV_FFN)
    LoRA(match=["backbone.layers.*.ffn.visual.*", "patch_embedder.mlp.*"]).install(net)
    assert all(".visual." in name or name.startswith("patch_embedder.mlp.") for name, _ in adapted(net))
    assert len(list(adapted(net))) == 3 * 3 + 2


@pytest.mark.parametrize(
    "match, message",
    [
        (["backbone.layers.*.fnn.text.*"], r"matches no linear layer .*did you mean 'backbone\.layers\.\*\.ffn\.text"),
        (["backbone.output"], "matches no linear layer"),  # used by its weight: an addition would be ignored
        ([], "must be a list of patterns"),
    ],
)
def test_a_pattern_that_can_do_nothing_is_an_error(match: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRA(match=match).install(tiny_net())


def test_only_the_additions_train_and_nothing_else_changes_a_bit() -> None:
    module = lora_module()
    before = snapshot(module.net)
    trainer = fit(module, [mixed_batch(seed=s) for s in range(3)])
    changed = differing(before, snapshot(module.net))
    assert changed == {name for name in before if name.endswith((".lora_a", ".lora_b"))}
    assert {group["name"] for group in trainer.optimizers[0].param_groups} == {"lora"}
    assert "lora" in str(module.freezing_report)


def test_the_patch_embedder_can_train_beside_it() -> None:
    module = lora_module(freezing=LoRAParameters(lr=1e-3, embedder_lr=1e-4))
    trainable = {name for name, p in module.net.named_parameters() if p.requires_grad}
    assert {name.split(".")[-1] for name in trainable if name.startswith("backbone")} == {"lora_a", "lora_b"}
    assert any(name.startswith("patch_embedder.") for name in trainable)


def test_a_policy_that_forgets_the_adapter_is_an_error() -> None:
    with pytest.raises(UserError, match="VisualParameters trains none of the 42 tensors that LoRA adds"):
        lora_module(freezing=VisualParameters(1e-3, 1e-3))
    assert lora_module(freezing=Everything(1e-3, 1e-3, 1e-3)).freezing_report.trainable > 0


def test_saved_weights_are_merged_and_plain_and_training_may_go_on(tmp_path: Path) -> None:
    module = lora_module()
    fit(module, [mixed_batch(seed=s) for s in range(3)])
    trained, given = snapshot(module.net), mixed_batch(seed=9)
    module.net.eval()
    wanted = all_logits(module.net, given)
    module.save_weights(tmp_path / "weights.safetensors")
    assert differing(trained, snapshot(module.net)) == set()
    assert len(list(adapted(module.net))) == 3 * 7
    loaded = load(tmp_path)
    assert set(loaded.net.state_dict()) == {name for name in trained if "lora" not in name}
    assert loaded.metadata["adapter"]["init_args"]["rank"] == 4
    torch.testing.assert_close(all_logits(loaded.net, given), wanted, atol=1e-5, rtol=1e-5)


def test_the_next_stage_starts_from_the_merged_weights(tmp_path: Path) -> None:
    module = lora_module()
    fit(module, [mixed_batch()])
    module.save_weights(tmp_path / "weights.safetensors")
    module.net.eval()
    following: Any = lora_module(init_from=str(tmp_path / "weights.safetensors"))
    following.net.eval()
    given = mixed_batch(seed=9)
    torch.testing.assert_close(all_logits(following.net, given), all_logits(module.net, given), atol=1e-5, rtol=1e-5)


# ---- layers, gated branches


@adapters
def test_layers_say_where_the_patterns_may_hit(cls: type) -> None:
    net = tiny_net()
    cls(layers="0,-1").install(net)
    assert {layer_of(name) for name, _ in adapted(net)} == {0, 2}
    with pytest.raises(UserError, match=r"matches no linear layer of the backbone's layers 1-2 or"):
        cls(layers="1-2", match=["backbone.layers.0.ffn.text.up"]).install(tiny_net())


def test_a_branch_is_behind_the_tanh_of_its_gate() -> None:
    layer = GatedLinear(nn.Linear(6, 5), std=0.5)
    x = torch.randn(4, 6)
    layer(x).square().sum().backward()
    assert layer.added.branch_gate.grad is not None and layer.added.branch_gate.grad.any(), "the gate can open"
    nn.init.constant_(layer.added.branch_gate, 0.7)
    expected = x @ (layer.weight + math.tanh(0.7) * layer.added.branch_weight).T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)


def test_gated_branches_train_alone_and_are_handed_on_merged(tmp_path: Path) -> None:
    module = lora_module(GatedBranch(), GatedBranchParameters(lr=1e-2))
    before = snapshot(module.net)
    fit(module, [mixed_batch(seed=s) for s in range(2)])
    changed = differing(before, snapshot(module.net))
    assert changed == {name for name in before if ".branch_" in name}
    assert {name.partition("layers.0.")[2] for name in changed if ".layers.0." in name} == {
        f"ffn.text.{part}.added.branch_{kind}" for part in ("up", "down") for kind in ("weight", "gate")
    }
    module.net.eval()
    module.save_weights(tmp_path / "weights.safetensors")
    loaded, given = load(tmp_path), mixed_batch(seed=9)
    torch.testing.assert_close(all_logits(loaded.net, given), all_logits(module.net, given), atol=1e-5, rtol=1e-5)
