"""What is gathered together: no unit mixes frozen and trained tensors, and every tensor is in one."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from components.adapters.gated import GatedBranch
from components.adapters.lora import LoRA
from components.backbones.qwen import Qwen2
from components.freezing.additions import GatedBranchParameters, LoRAParameters
from components.freezing.delta_tuning import EmbedderOnly, Everything, TrainOnly, VisualAndAttention, VisualParameters
from components.patch_embedders.layer_stack import LayerStack
from components.routers.modality import ModalityRouter
from components.routers.top_k import TopKRouter
from mmframe import sharding
from mmframe.cli.recipe import load_recipe, overlays, shipped
from mmframe.contracts import TrainableGroup
from mmframe.errors import UserError
from mmframe.freezing import freeze
from mmframe.model import MultimodalLM
from tests.helpers import HIDDEN, QKV_FFN, tiny_llama, tiny_net

POLICIES: dict[str, Any] = {
    "embedder": EmbedderOnly(1e-3),
    "visual": VisualParameters(1e-3, 1e-3),
    "attention": VisualAndAttention(1e-3, 1e-3, 1e-3, attention_layers="-1"),
    "everything": Everything(1e-3, 1e-3, 1e-3),
    "head": TrainOnly({"head": TrainableGroup(["backbone.output.weight", "patch_embedder.*"], 1e-3)}),
    "embedding": TrainOnly({"embedding": TrainableGroup(["backbone.embedding.weight"], 1e-3)}),
    "half an expert": TrainOnly({"up": TrainableGroup(["backbone.layers.1.ffn.visual.up.weight"], 1e-3)}),
}


def units_of(net: MultimodalLM, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the tensors of each unit, as `shard` would make them."""
    names = {id(p): name for name, p in net.named_parameters()}
    units: list[list[str]] = []

    def fully_shard(modules: Any, mesh: Any) -> None:
        for module in modules if isinstance(modules, list) else [modules]:
            assert type(module).forward is not nn.Module.forward, "its call is what gathers the unit"
        inside = [p for m in (modules if isinstance(modules, list) else [modules]) for p in m.parameters()]
        units.append([names.pop(id(p)) for p in inside if id(p) in names])

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", fully_shard)
    sharding.shard(net, None)
    assert not names, "every tensor is in one unit"
    return [unit for unit in units if unit]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tied", [False, True])
def test_no_unit_mixes_frozen_and_trained(policy: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tied and policy == "head":
        pytest.skip("a tied head is the embedding")
    net = tiny_net(QKV_FFN, backbone=tiny_llama(tied_head=tied))
    trained = set(freeze(net, POLICIES[policy].groups(net.router.experts)).group_of)
    for unit in units_of(net, monkeypatch):
        assert len({name in trained for name in unit}) == 1, unit
        in_layers = [name for name in unit if name.startswith("backbone.layers.")]
        assert len({".visual." in name for name in in_layers}) <= 1, "experts are units of their own"
    # a tied embedding is used at both ends of the model, so it must be there as long as the model runs
    last = units_of(tiny_net(QKV_FFN, backbone=tiny_llama(tied_head=tied)), monkeypatch)[-1]
    assert not tied or "backbone.embedding.weight" in last


def test_a_layer_of_a_stage_is_two_or_three_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and large: a collective for each of a hundred tensors would be slow."""
    for policy, count in {"embedder": 2, "visual": 2, "everything": 2}.items():
        net = tiny_net(QKV_FFN)
        freeze(net, POLICIES[policy].groups(net.router.experts))
        units = units_of(net, monkeypatch)
        assert sum(any(name.startswith("backbone.layers.0.") for name in unit) for unit in units) == count, policy


@pytest.mark.parametrize("adapter", [LoRA(rank=2), GatedBranch()], ids=["LoRA", "GatedBranch"])
def test_what_an_adapter_adds_is_a_unit_of_its_own(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net(QKV_FFN)
    adapter.install(net)
    policy = (LoRAParameters if isinstance(adapter, LoRA) else GatedBranchParameters)(1e-3)
    trained = set(freeze(net, policy.groups(net.router.experts)).group_of)
    for unit in units_of(net, monkeypatch):
        assert len({name in trained for name in unit}) == 1, unit


@pytest.mark.parametrize(
    "router",
    [TopKRouter(QKV_FFN), ModalityRouter(QKV_FFN, form="low_rank", rank=2)],
    ids=["top_k", "low_rank"],
)
def test_other_routers_can_be_sharded(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in ("visual", "everything"):
        net = tiny_net(router=type(router)(**router.spec["init_args"]))
        trained = set(freeze(net, POLICIES[policy].groups(net.router.experts)).group_of)
        assert all(len({name in trained for name in unit}) == 1 for unit in units_of(net, monkeypatch))


def test_a_vision_encoder_is_sharded_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net(QKV_FFN)
    net.patch_embedder = LayerStack(HIDDEN, **{**LayerStack.toy_args, "num_layers": 4})  # type: ignore[arg-type]
    freeze(net, POLICIES["visual"].groups(net.router.experts))
    units = [unit for unit in units_of(net, monkeypatch) if unit[0].startswith("patch_embedder.")]
    assert len(units) == 5


def test_tensors_that_cannot_be_parted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net(QKV_FFN, backbone=Qwen2(**Qwen2.toy_args))
    bias = TrainOnly({"bias": TrainableGroup(["backbone.layers.*.q.text.bias"], 1e-3)})
    freeze(net, bias.groups(net.router.experts))
    # the frozen rest of the layer is its own unit and takes the weight; the bias lies in the same module
    with pytest.raises(UserError, match="layer 0 holds frozen and trained tensors side by side; use ddp"):
        units_of(net, monkeypatch)


def test_overlays_are_no_recipes_and_lie_over_any() -> None:
    assert set(overlays()) == {
        f"strategies/{name}" for name in ("ddp", "zero1", "fsdp2", "fsdp2_one_file", "deepspeed_zero1")
    }
    assert not set(overlays()) & set(shipped())
    for name in overlays():
        recipe = load_recipe(["evip_pp", name])
        assert recipe.name == f"evip_pp+{name}"
        for stage in recipe.stages:
            plain, config = load_recipe(["evip_pp"]).resolve(stage), recipe.resolve(stage)
            assert config["trainer"].pop("strategy") and plain["trainer"].pop("strategy") == "ddp"
            assert config["model"].pop("recompute", False) == ("fsdp2" in name)
            assert config == plain, "nothing but the strategy changes"
