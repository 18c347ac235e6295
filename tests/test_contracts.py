"""Registering a component is getting it tested: what every component of a kind promises, over the registry.

A new component needs no test of its own for this. If its default size is large or it has required arguments, give the
class `toy_args`; `hidden_size` of a patch embedder is filled in here, as the command line does.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components.adapters.gated import GatedBranch
from components.adapters.lora import LoRA
from components.backbones.internlm2 import InternLM2
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from components.routers.top_k import TopKRouter
from mmframe import registry
from mmframe.auxiliary import listening
from mmframe.batch import Batch
from mmframe.catalog import of_kind
from mmframe.checkpoints import CheckpointFormat, formats
from mmframe.contracts import (
    SITES,
    Adapter,
    AuxiliaryLoss,
    Backbone,
    Component,
    Evaluator,
    ExpertRouter,
    FreezingPolicy,
    Objective,
    PatchEmbedder,
)
from mmframe.convert import export_checkpoint
from mmframe.data.source import Source
from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.freezing import freeze
from mmframe.generation import Step
from mmframe.geometry import ATTENTION, POSITIONS
from mmframe.kinds import TokenKind
from mmframe.loading import build, from_pretrained
from mmframe.metrics import TaskMetric
from mmframe.model import MultimodalLM
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.weights import save_weights
from tests.helpers import (
    ALL_SITES,
    HIDDEN,
    QKV_FFN,
    all_logits,
    batch,
    loss_and_gradients,
    roughen,
    row,
    tiny_embedder,
    tiny_llama,
    tiny_net,
)
from tests.model.test_attention import cut

CONTRACTS = {
    "backbone": Backbone,
    "patch_embedder": PatchEmbedder,
    "router": ExpertRouter,
    "freezing": FreezingPolicy,
    "objective": Objective,
    "optim": AdamWSchedule,
    "adapter": Adapter,
    "auxiliary": AuxiliaryLoss,
    "checkpoint": CheckpointFormat,
    "evaluator": Evaluator,
    "metric": TaskMetric,
    "source": Source,
}
NO_GRADIENT = {"MonoPatchEmbedder": {"class_embedding"}}
"""Parameters that have no effect by design, so that their gradient is zero (but never missing)."""
NEEDS_ADAPTER = {"LoRAParameters": LoRA, "GatedBranchParameters": GatedBranch}
"""Freezing policies for a model with an adapter, and the adapter."""
NO_NATIVE = {"Chameleon", "Gemma", "Persimmon"}
"""Backbones whose layers are not those of the Llama family."""
NEEDS_PRE_LAYERS = {"PreLayers"}
"""Freezing policies for a backbone with new layers in front."""


def every(kind: str, sized: bool = True) -> pytest.MarkDecorator:
    """Runs a test for all registered classes of a kind; `sized`: for those that can be small."""
    classes = [cls for cls in registry.classes(kind) if not sized or cls.toy_args is not None]
    assert classes, f"no {kind} is registered"
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


every_component = pytest.mark.parametrize(
    "cls", [cls for kind in CONTRACTS for cls in registry.classes(kind)], ids=lambda cls: cls.__name__
)


def make(cls: type, **more: Any) -> Any:
    """A toy instance."""
    known = more | ({"hidden_size": HIDDEN} if issubclass(cls, PatchEmbedder) else {})
    try:
        return cls(**((cls.toy_args or {}) | known))  # type: ignore[attr-defined]
    except TypeError as error:
        pytest.fail(f"{error}; give {cls.__name__} its required arguments at toy size: toy_args = dict(...)")


def make_rough(cls: type) -> Any:
    module = make(cls)
    size = sum(p.numel() for p in module.parameters())
    assert size < 400_000, f"{cls.__name__} has {size:,} parameters at toy size; give it toy_args = dict(...)"
    roughen(module)
    return module


# ---- every component


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_static_catalogue_and_the_registry_know_the_same_names(kind: str) -> None:
    assert set(of_kind(kind)) == set(registry.names(kind))


@pytest.mark.parametrize("cls", registry.classes(), ids=lambda cls: cls.__name__)
def test_it_says_what_it_is_and_what_each_argument_does(cls: type) -> None:
    entry = of_kind(cls.component_kind)[cls.__name__]  # type: ignore[attr-defined]
    assert entry.summary.endswith((".", ":")), "the first line of the docstring is a sentence"
    silent = [name for name, argument in entry.signature.arguments.items() if not argument.doc]
    assert silent == [], "arguments without a line under Args:"


@every_component
def test_it_fulfils_the_contract_of_its_kind(cls: type) -> None:
    assert issubclass(cls, CONTRACTS[cls.component_kind]) and issubclass(cls, Component)  # type: ignore[attr-defined]


@every_component
def test_its_recorded_call_is_plain_data_and_makes_it_again(cls: type) -> None:
    with torch.device("meta") if cls.toy_args is None else torch.device("cpu"):  # type: ignore[attr-defined]
        first = cls() if cls.toy_args is None else make(cls)  # type: ignore[attr-defined]
        second = build(json.loads(json.dumps(first.spec)))
    assert type(second) is cls and second.spec == first.spec
    if isinstance(first, nn.Module) and not isinstance(first, TaskMetric):  # whose state is a list
        assert shapes(first) == shapes(second)
    if isinstance(first, FreezingPolicy):
        assert first.groups(("text", "visual")) == second.groups(("text", "visual"))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def default_instance(cls: type) -> Any:
    return cls(**{"hidden_size": 64}) if issubclass(cls, PatchEmbedder) else cls()


@pytest.mark.parametrize(
    "cls", registry.classes("backbone") + registry.classes("patch_embedder"), ids=lambda cls: cls.__name__
)
def test_its_default_size_builds_on_the_meta_device(cls: type) -> None:
    with torch.device("meta"):
        module = default_instance(cls)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}


# ---- backbones


def model_of(cls: type, router: ExpertRouter | None = None, **options: Any) -> MultimodalLM:
    backbone = make(cls, **options)
    embedder = tiny_embedder(hidden_size=backbone.hidden_size)
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    return MultimodalLM(backbone, embedder, router or SharedRouter(), expert_backend="torch").eval()


@every("backbone")
def test_backbone_runs_and_all_of_it_trains(cls: type) -> None:
    net = model_of(cls, ModalityRouter({site: "all" for _, site, _ in make(cls).sites()}))
    loss, gradients = loss_and_gradients(net, batch("ttTTT", "tt[i]tTT", "tiTT"))  # "iT": a slot that predicts a word
    assert loss.isfinite()
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.isfinite().all() and (gradient.any() or name == "patch_embedder.class_embedding"), name


@every("backbone")
def test_backbone_says_its_sizes(cls: type) -> None:
    net = model_of(cls)
    backbone = net.backbone
    ids = torch.tensor([0, backbone.vocab_size - 1])
    assert backbone.embed(ids).shape == (2, backbone.hidden_size)
    assert backbone.head(torch.zeros(3, backbone.hidden_size)).shape == (3, backbone.vocab_size)
    cos, sin = backbone.rope(torch.arange(5), torch.tensor(5))
    assert cos.shape == sin.shape and cos.shape[0] == 5 and cos.dtype == torch.float32
    sites = list(backbone.sites())
    assert {layer for layer, _, _ in sites} == set(range(backbone.num_layers))
    assert {site for _, site, _ in sites} <= set(SITES)
    assert all(isinstance(experts, Experts) and list(experts) == ["text"] for _, _, experts in sites)


@every("backbone")
@pytest.mark.parametrize(
    ("attention", "positions"),
    [*((mask, "linear") for mask in ATTENTION), *(("causal", turn) for turn in POSITIONS if turn != "linear")],
)  # any two together: tests/model/test_geometry.py
def test_backbone_continues_over_a_cache(cls: type, attention: str, positions: str) -> None:
    """A turn with a picture, another one, and then token by token: the same as the whole row at once."""
    if positions == "native" and cls.__name__ in NO_NATIVE:
        with pytest.raises(UserError, match="has no positions=native"):
            make(cls, positions=positions)
        return
    net = model_of(cls, ModalityRouter(QKV_FFN), attention=attention, positions=positions, pre_layers=1)
    whole = row("tt[ii]tTTt[i]ttt")
    pieces = [cut(whole, first, end) for first, end in [(0, 14), (14, 21)]]
    cache = net.backbone.new_cache(1, len(whole))
    made = [all_logits(net, piece, cache=cache) for piece in pieces]
    step = Step(net, cache)
    made += [step([int(token)]) for token in whole.ids[21:]]
    torch.testing.assert_close(torch.cat(made), all_logits(net, whole), atol=2e-5, rtol=1e-5)


@every("backbone")
def test_text_turns_the_same_under_all_positions(cls: type) -> None:
    options = [{}, {"positions": "shared"}, {"positions": "grid"}, {"attention": "image_bidirectional"}]
    first, *others = (all_logits(model_of(cls, **more), batch("ttt", "tttttt")) for more in options)  # type: ignore
    assert all(torch.equal(logits, first) for logits in others)


@every("backbone")
def test_new_layers_in_front_change_nothing_at_first(cls: type) -> None:
    plain, given = model_of(cls), batch("tt[i]tTT", "tTT")
    text = plain.backbone.state_dict()
    for init in ("identity", "random"):
        net = MultimodalLM(make(cls, pre_layers=2, pre_layers_init=init), plain.patch_embedder, SharedRouter(), "torch")
        new = set(net.backbone.state_dict()) - set(text)
        assert new and all(name.startswith("pre_layers.") for name in new)
        assert set(net.backbone.load_state_dict(text, strict=False).missing_keys) == new
        assert torch.equal(all_logits(net, given), all_logits(plain, given)) == (init == "identity")
        assert {layer for layer, _, _ in net.backbone.sites()} == set(range(net.backbone.num_layers))


@every("backbone")
def test_backbone_computes_in_bf16_and_refuses_fp16(cls: type) -> None:
    given = batch("tt[i]tT")
    wide = all_logits(model_of(cls), given)
    narrow = all_logits(model_of(cls).bfloat16(), given).float()
    assert float((narrow - wide).norm() / wide.norm()) < 0.1
    with pytest.raises(UserError, match="fp16"):
        all_logits(model_of(cls).half(), given)


# ---- patch embedders

TILE_SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (4, 4)]
"""Edges in units of the smallest square that makes whole tokens."""


def smallest_square(embedder: PatchEmbedder) -> int:
    def fits(edge: int) -> bool:
        try:
            return embedder.num_tokens(edge, edge) > 0
        except UserError:
            return False

    return next(edge for edge in range(1, embedder.image_size + 1) if fits(edge))


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_knows_its_number_of_tokens_without_running(cls: type) -> None:
    embedder = make_rough(cls)
    unit = smallest_square(embedder)
    sizes = [(embedder.image_size, embedder.image_size), *((unit * a, unit * b) for a, b in TILE_SIZES)]
    for height, width in sizes:
        tokens = embedder(torch.randn(2, 3, height, width))
        assert tokens.shape == (2 * embedder.num_tokens(height, width), embedder.hidden_size), (height, width)
        assert tokens.isfinite().all()


@every("patch_embedder")
def test_patch_embedder_says_what_its_tokens_are(cls: type) -> None:
    embedder = make(cls)
    unit = smallest_square(embedder)
    for height, width in ((unit * a, unit * b) for a, b in TILE_SIZES):
        count, kinds, places = (f(height, width) for f in (embedder.num_tokens, embedder.kinds, embedder.places))
        assert (kinds.dtype, kinds.shape) == (torch.int8, (count,))
        assert (places.dtype, places.shape) == (torch.int32, (count, 2))
        assert {int(kind) for kind in kinds} <= {TokenKind.IMAGE, TokenKind.BOUNDARY, TokenKind.QUERY}
        cells, ends = places[kinds == TokenKind.IMAGE], places[kinds == TokenKind.BOUNDARY]
        rows, columns = (int(size) + 1 for size in cells.amax(0))
        assert rows * width == columns * height, "the grid has the shape of the tile"
        assert cells.tolist() == [[row, column] for row in range(rows) for column in range(columns)], "row by row"
        assert {tuple(end) for end in ends.tolist()} <= {(-1, -1), *((row, columns) for row in range(rows))}
        assert (places[kinds == TokenKind.QUERY] == -1).all()
        described = embedder.tile_tokens(height, width)
        assert described is embedder.tile_tokens(height, width) and described.tolist() == [
            kinds.tolist(),
            *places.T.tolist(),
        ]
    with torch.device("meta"):
        assert make(cls).tile_tokens(unit, unit).shape[0] == 3, "known on the host wherever the weights are"


@every("patch_embedder")
def test_patch_embedder_names_sizes_that_cannot_be_cut(cls: type) -> None:
    embedder = make(cls)
    unit = smallest_square(embedder)
    for height, width in ((unit + 1, unit), (unit, 2 * unit - 1), (0, unit)):
        with pytest.raises(UserError, match=f"{height} x {width} px.*multiples of {unit} px"):
            embedder.num_tokens(height, width)
    with pytest.raises(UserError, match="multiples of"):
        embedder(torch.zeros(1, 3, unit + 1, unit))


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_takes_tile_by_tile(cls: type) -> None:
    embedder = make_rough(cls)
    tiles = torch.randn(3, 3, embedder.image_size, embedder.image_size)
    alone = torch.cat([embedder(tile[None]) for tile in tiles])
    torch.testing.assert_close(embedder(tiles), alone, atol=1e-5, rtol=1e-5)
    assert (embedder(tiles) - embedder(tiles.flip(0))).abs().max() > 1e-3


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_writes_row_major(cls: type) -> None:
    """The bottom right corner of a tile reaches its last token and not its first."""
    embedder = make_rough(cls)
    unit = smallest_square(embedder)
    tile = torch.randn(1, 3, 2 * unit, 2 * unit)
    changed = tile.clone()
    changed[..., unit:, unit:] += 1.0
    cells = embedder.kinds(2 * unit, 2 * unit) == TokenKind.IMAGE
    change = (embedder(tile) - embedder(changed)).abs().amax(dim=1)[cells]
    top_right = tile.clone()
    top_right[..., :unit, unit:] += 1.0
    right = (embedder(tile) - embedder(top_right)).abs().amax(dim=1)[cells]
    if len(change) == 4:  # one token a square; an encoder whose tokens see one another need not be this local
        assert change[3] == change.max() and change[3] > 0
        assert right[1] == right.max() and right[1] > 0


@every("patch_embedder")
def test_patch_embedder_trains_all_of_it(cls: type) -> None:
    embedder = make_rough(cls)
    tokens = embedder(torch.randn(2, 3, embedder.image_size, embedder.image_size))
    (tokens * torch.randn_like(tokens)).sum().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.any() != (name in NO_GRADIENT.get(cls.__name__, ())), name


@every("patch_embedder")
def test_patch_embedder_without_tiles_has_zero_and_not_missing_gradients(cls: type) -> None:
    embedder = make_rough(cls)
    tokens = embedder(torch.zeros(0, 3, 1, 1))
    assert tokens.shape == (0, embedder.hidden_size)
    tokens.sum().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_follows_its_weights_to_bf16(cls: type) -> None:
    embedder = make_rough(cls)
    tiles = torch.randn(1, 3, embedder.image_size, embedder.image_size)
    wide, narrow = embedder(tiles), embedder.bfloat16()(tiles)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - wide).norm() / wide.norm()) < 0.1


# ---- routers


@every("router")
def test_router_sends_every_kind_to_one_of_its_experts(cls: type) -> None:
    router = make(cls)
    for kinds in (list(TokenKind), *[[kind] for kind in TokenKind]):
        plan = router.plan(torch.tensor(kinds * 3, dtype=torch.int8))
        assert len(plan.sizes) == len(router.experts) and plan.num_tokens == 3 * len(kinds)
        x = torch.arange(plan.num_tokens)
        assert torch.equal(plan.unsort(plan.sort(x)), x)
    text = router.plan(torch.full((4,), TokenKind.TEXT, dtype=torch.int8))
    assert text.sizes == (4, *[0] * (len(router.experts) - 1)), "text goes to the first expert, the pretrained one"


@every("router")
def test_router_installs_experts_in_its_own_order(cls: type) -> None:
    backbone, router = tiny_llama(), make(cls)
    router.install(backbone)
    for layer, site, experts in backbone.sites():
        assert list(experts) in (["text"], list(router.experts)), f"layer {layer}, {site}"


@every("router")
def test_router_works_in_a_model_from_the_first_step(cls: type) -> None:
    net = tiny_net(router=make(cls))
    loss, gradients = loss_and_gradients(net, batch("tTT", "t[i]TT"))
    assert loss.isfinite() and all(gradient is not None for gradient in gradients.values())


@every("router")
def test_text_only_batches_reach_every_expert_with_a_gradient(cls: type) -> None:
    _, gradients = loss_and_gradients(tiny_net(router=make(cls)), batch("tTT"))
    assert [name for name, gradient in gradients.items() if gradient is None] == []


# ---- freezing policies


@every("freezing")
@pytest.mark.parametrize("sites", [{}, {"ffn": "all"}, QKV_FFN, ALL_SITES], ids=["dense", "ffn", "qkv_ffn", "all"])
def test_policy_fits_models_with_and_without_experts(cls: type, sites: dict[str, str]) -> None:
    net = tiny_net(sites, backbone=tiny_llama(pre_layers=int(cls.__name__ in NEEDS_PRE_LAYERS)))
    if cls.__name__ in NEEDS_ADAPTER:
        NEEDS_ADAPTER[cls.__name__]().install(net)
    groups = make(cls).groups(net.router.experts)
    report = freeze(net, groups)
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == set(report.group_of) and trainable
    assert set(report.group_of.values()) == set(groups), "every group has parameters"
    assert all(group.lr > 0 for group in groups.values())


# ---- objectives


def net_with_frozen_text() -> MultimodalLM:
    """As in a first stage; an objective may refuse to train text weights."""
    net = tiny_net(QKV_FFN)
    freeze(net, registry.get("freezing", "VisualParameters")(1e-3, 1e-3).groups(net.router.experts))
    return net


@every("objective")
def test_objective_gives_sums_so_that_a_batch_can_be_split(cls: type) -> None:
    net, objective = net_with_frozen_text(), make(cls)
    total, weight = objective(net, batch("t[i]TT", "[ii]tTTT", "tt[i]T"))
    parts = [objective(net, batch("t[i]TT", "[ii]tTTT")), objective(net, batch("tt[i]T", seed=2))]
    assert total.dtype == weight.dtype == torch.float32 and total.shape == weight.shape == ()
    torch.testing.assert_close(total, parts[0][0] + parts[1][0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(weight, parts[0][1] + parts[1][1])


@every("objective")
def test_objective_says_what_each_supervised_token_weighs(cls: type) -> None:
    net, objective, given = net_with_frozen_text(), make(cls), batch("t[i]TT", "[ii]tTTT", "tt[i]/tT/tTT")
    weights_S = objective.weights(given)
    assert weights_S.shape == given.supervised.shape and weights_S.dtype == torch.float32
    torch.testing.assert_close(objective(net, given)[1], weights_S.sum())


@every("objective")
def test_objective_trains_the_patch_embedder(cls: type) -> None:
    net, objective = net_with_frozen_text(), make(cls)
    total, weight = objective(net, batch("t[i]TT", "[ii]tTTT"))
    total.backward()
    gradient = net.get_parameter("patch_embedder.conv.weight").grad
    assert total.isfinite() and weight == 5 and gradient is not None and gradient.any()


@every("objective")
def test_objective_of_a_batch_without_tokens_is_zero_and_so_are_gradients(cls: type) -> None:
    net, objective = net_with_frozen_text(), make(cls)
    total, weight = objective(net, batch("", ""))
    total.backward()
    assert total == weight == 0
    assert net.get_parameter("patch_embedder.conv.weight").grad is not None
    assert not any(p.grad.any() for p in net.parameters() if p.grad is not None)


# ---- auxiliary losses


def net_with_a_gate() -> MultimodalLM:
    """Has all that an auxiliary loss may ask for."""
    return tiny_net(router=TopKRouter({"ffn": "0-1"}, num_experts=3))


def auxiliary_of(cls: type, net: MultimodalLM, given: Batch) -> tuple[AuxiliaryLoss, torch.Tensor, torch.Tensor]:
    loss = make(cls)
    loss.install(net, ChatProcessor(ByteTokenizer()))
    with listening(net, {"it": loss}) as features:
        net(given)
    return loss, *loss(net, batch=given, features=features)


@every("auxiliary")
def test_auxiliary_loss_is_of_each_document_alone(cls: type) -> None:
    net, patterns = net_with_a_gate(), ("t[i]TT", "tTT", "[ii]tTT|tT|i[i]T")
    loss, sum_R, count_R = auxiliary_of(cls, net, batch(*patterns))
    assert sum_R.dtype == torch.float32 and count_R.device.type == "cpu"
    assert sum_R.shape == count_R.shape == (5,) and sum_R.isfinite().all()
    assert count_R.tolist() == [4, 0, 8, 0, 8] and sum_R.ne(0).tolist() == count_R.ne(0).tolist()
    parts = [auxiliary_of(cls, net, batch(pattern, seed=seed)) for seed, pattern in enumerate(patterns)]
    torch.testing.assert_close(sum_R, torch.cat([part[1] for part in parts]), atol=1e-5, rtol=1e-5)
    assert torch.equal(count_R, torch.cat([part[2] for part in parts]))
    assert all(value.ndim == 0 for value in loss.facts.values())


@every("auxiliary")
def test_auxiliary_loss_trains_the_model_and_all_of_its_own(cls: type) -> None:
    net = net_with_a_gate()
    loss, sum_R, _ = auxiliary_of(cls, net, batch("t[i]TT"))
    sum_R.sum().backward()
    gradient = net.get_parameter("patch_embedder.conv.weight").grad
    assert gradient is not None and gradient.any()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())
    assert (loss.lr is not None) == bool(list(loss.parameters())), "a rate where something trains"


@every("auxiliary")
@pytest.mark.parametrize("patterns", [("tTT", "tT"), ("", "")], ids=["text", "nothing"])
def test_auxiliary_loss_without_images_has_zero_and_not_missing_gradients(cls: type, patterns: tuple[str, ...]) -> None:
    loss, sum_R, count_R = auxiliary_of(cls, net_with_a_gate(), batch(*patterns))
    assert not sum_R.any() and not count_R.any()
    sum_R.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@every("auxiliary")
def test_auxiliary_loss_leaves_the_model_as_it_was(cls: type) -> None:
    net, given = net_with_a_gate(), batch("t[i]TT")
    before, names = all_logits(net, given), shapes(net)
    drawn = torch.random.get_rng_state()
    auxiliary_of(cls, net, given)
    assert torch.equal(torch.random.get_rng_state(), drawn), "the model beside it would start differently"
    assert torch.equal(all_logits(net, given), before) and shapes(net) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# ---- the optimisation component


@every("optim")
def test_optimisation_takes_the_trainable_parameters_and_no_others(cls: type) -> None:
    net = tiny_net()
    groups = registry.get("freezing", "VisualParameters")(1e-3, 2e-3).groups(net.router.experts)
    report = freeze(net, groups)
    made = make(cls).configure(dict(net.named_parameters()), report.group_of, groups, 10)
    given = [p for group in made["optimizer"].param_groups for p in group["params"]]
    assert len({id(p) for p in given}) == len(given) == len(report.group_of)
    assert all(p.requires_grad for p in given)


# ---- official checkpoint formats


def toys_in(cls: type, folder: Path) -> Iterator[tuple[MultimodalLM, Path]]:
    """Each toy model of a format with rough weights, and its weights file."""
    for number, parts in enumerate(cls.toy_models()):  # type: ignore[attr-defined]
        embedder = None if parts["patch_embedder"] is None else build(parts["patch_embedder"])
        net = MultimodalLM(build(parts["backbone"]), embedder, build(parts["router"]), expert_backend="torch").eval()
        roughen(net, seed=number)
        file = folder / str(number) / "weights.safetensors"
        save_weights(net, file, {"model": parts | {"processor": None}})
        yield net, file


@every("checkpoint")
def test_checkpoint_format_takes_its_toy_models_out_and_back(cls: type, tmp_path: Path) -> None:
    toys = list(toys_in(cls, tmp_path))
    assert toys, "toy_models() shows what the format can hold"
    for net, file in toys:
        out = file.parent / "official"
        assert type(export_checkpoint(file, out)) is cls
        back = from_pretrained(out).net
        assert shapes(back) == shapes(net)
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in back.state_dict().items())
        embedder = net.patch_embedder
        per_tile = 0 if embedder is None else embedder.num_tokens(embedder.image_size, embedder.image_size)
        sample = row("tttttttt" if embedder is None else "tt[i]tttt", per_tile=per_tile)
        assert torch.equal(all_logits(back, sample), all_logits(net, sample)), "an option did not come back"


@every("checkpoint")
def test_checkpoint_format_places_every_tensor_once(cls: type, tmp_path: Path) -> None:
    for net, _ in toys_in(cls, tmp_path):
        own, links = net.state_dict(), cls().links(net)  # type: ignore[attr-defined]
        ours = [name for link in links for name in link.ours]
        assert sorted(ours) == sorted(own) and len({link.theirs for link in links}) == len(links)
        for link in links:
            back = link.to_ours(link.to_theirs(*(own[name] for name in link.ours)))
            assert all(torch.equal(back[name], own[name]) for name in link.ours), link.theirs
        config = cls().config(net, None)  # type: ignore[attr-defined]
        assert [type(form) for form in formats() if form.recognises(config)] == [cls], "one format and no other"


# ---- metrics


def measured(*metrics: TaskMetric) -> str:
    """The figures as text: NaN equals NaN, and every digit counts."""
    (text,) = {repr(metric.compute()) for metric in metrics}
    return text


def fed(cls: type, order: list[int], batch_size: int = 1) -> TaskMetric:
    """A metric that has seen its own samples in this order; each has its index for an id."""
    metric, samples = make(cls), cls.samples  # type: ignore[attr-defined]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        metric.update([samples[n][0] for n in chosen], [samples[n][1] for n in chosen], chosen)
    return metric


@every("metric")
def test_metric_says_what_a_record_of_a_result_cites(cls: type) -> None:
    metric = make(cls)
    assert all(isinstance(text, str) and text for text in (metric.name, metric.version, metric.headline))
    assert len(metric.samples) > 1 and all(set(metric.needs) <= set(right) for _, right in metric.samples)
    figures = fed(cls, [0, 1]).compute()
    assert metric.headline in figures and figures["n"] == 2
    assert ("unmatched" in figures) == metric.extracts
    assert all(type(value) is float for value in figures.values())
    assert metric.higher_is_better in (True, False)


@every("metric")
def test_metric_of_nothing_is_not_a_number(cls: type, recwarn: pytest.WarningsRecorder) -> None:
    figures = make(cls).compute()
    assert math.isnan(figures[cls.headline]) and figures["n"] == 0  # type: ignore[attr-defined]
    assert not list(recwarn)


@every("metric")
def test_metric_does_not_depend_on_order_batches_or_repeats(cls: type) -> None:
    order = list(range(len(cls.samples)))  # type: ignore[attr-defined]
    metrics = [fed(cls, order), fed(cls, order[::-1]), fed(cls, order, 2), fed(cls, [*order, order[0]], 3)]
    assert "nan" not in measured(*metrics).split("'n'")[0] or cls.__name__ == "Perplexity"
    first = metrics[0]
    again = make(cls)
    for number in order:  # torchmetrics' forward, which a LightningModule calls, gives the batch's figures
        alone = again([first.samples[number][0]], [first.samples[number][1]], [number])
        assert alone["n"] == 1
    measured(first, again)


@every("metric")
def test_metric_merges_and_comes_back_from_its_state(cls: type) -> None:
    order = list(range(len(cls.samples)))  # type: ignore[attr-defined]
    whole, one, other = fed(cls, order), fed(cls, order[:1]), fed(cls, order[1:])
    one.merge_state(other)
    loaded = make(cls)
    loaded.load_state_dict(fed(cls, order, 2).state_dict())
    emptied = fed(cls, order)
    emptied.reset()
    emptied.merge_state(whole)
    measured(whole, one, loaded, emptied, pickle.loads(pickle.dumps(whole)), whole.half())


@every("metric")
def test_metric_says_which_key_a_reference_lacks(cls: type) -> None:
    metric = make(cls)
    said, right = metric.samples[0]
    for key in metric.needs:
        with pytest.raises(UserError, match=f"{metric.name}: the reference of sample 'q1' has no {key!r}"):
            metric.update([said], [{name: value for name, value in right.items() if name != key}], ["q1"])
    assert metric.compute()["n"] == 0


# ---- the sizes of the papers


@functools.cache
def parameters_at_full_size(*sites: str) -> int:
    with torch.device("meta"):
        backbone = InternLM2()
        embedder = MonoPatchEmbedder(hidden_size=backbone.hidden_size)
        router = ModalityRouter(dict.fromkeys(sites, "all")) if sites else SharedRouter()
        net = MultimodalLM(backbone, embedder, router, expert_backend="torch")
    return sum(p.numel() for p in net.parameters())


def test_full_size_parameter_counts_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        backbone = InternLM2()
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e9, 3) == 1.889
    assert parameters_at_full_size("ffn") == 3_111_355_392  # Mono-InternVL: 3.11B as released
    assert parameters_at_full_size("ffn") - parameters_at_full_size() == 1_207_959_552  # "1.2B" of visual experts
    qkv = parameters_at_full_size("ffn", "q", "k", "v")
    assert qkv - parameters_at_full_size("ffn") == 24 * 8_388_608
    assert round(qkv / 1e9, 3) == 3.313  # Mono-InternVL-1.5
    assert round(parameters_at_full_size("ffn", "q", "k", "v", "o") / 1e9, 3) == 3.413
