"""Losses beside the objective: they join it exactly, are continued exactly, and leave nothing in what is handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.auxiliary.load_balance import LoadBalance
from components.auxiliary.teacher_features import TeacherFeatures
from components.freezing.delta_tuning import VisualParameters
from components.objectives.bag_of_words import BagOfWords
from components.routers.top_k import TopKRouter
from mmframe.auxiliary import listening
from mmframe.batch import Batch, Sample
from mmframe.contracts import AuxiliaryLoss
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.loading import load
from mmframe.objectives import NextToken, Weighting
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.data.test_resume import SaveAt
from tests.helpers import (
    Recording,
    batch,
    differing,
    fit,
    mixed_batch,
    roughen,
    row,
    snapshot,
    tiny_embedder,
    tiny_module,
    tiny_net,
)


def losses(**weights: float) -> dict[str, AuxiliaryLoss]:
    weights = {"teacher": 0.5, "balance": 0.1} | weights
    embedder = tiny_embedder(hidden_size=6)
    roughen(embedder)
    teacher = TeacherFeatures(embedder=embedder, layers="0,-1", lr=1e-2, weight=weights["teacher"])
    return {"teacher": teacher, "balance": LoadBalance(weights["balance"])}


def module_with(auxiliary: dict[str, AuxiliaryLoss] | None, weighting: Weighting = "token", seed: int = 0) -> Any:
    torch.manual_seed(seed)  # of the gates
    return tiny_module(
        router=TopKRouter({"ffn": "all"}, num_experts=3),
        freezing=VisualParameters(1e-2, 1e-2),
        objective=NextToken(weighting),
        auxiliary=auxiliary,
        module_class=Recording,
    )


ROWS = [row(pattern, seed=i) for i, pattern in enumerate(("tTTTTTTTTT", "[i]T", "t[ii]/tTTT/tT", "tT|tt[i]TTT"))]


def gradients(parts: list[list[Sample]], accumulate: int, weighting: Weighting = "token") -> dict[str, Tensor]:
    module = module_with(losses(), weighting)
    fit(module, [Batch.collate(part) for part in parts], accumulate_grad_batches=accumulate)
    (step,) = module.recorded
    return step


@pytest.mark.parametrize("weighting", ["token", "sqrt"])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(weighting: Weighting) -> None:
    whole = gradients([ROWS], 1, weighting)
    cut = gradients([[ROWS[3]], [ROWS[0], ROWS[2]], [ROWS[1]]], 3, weighting)
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    assert set(whole) == set(cut) and any(name.startswith("auxiliary.teacher.heads.1.") for name in whole)
    assert all(float((cut[name] - g).norm()) <= 1e-6 * norm for name, g in whole.items())


def test_a_document_counts_as_its_supervised_tokens_do() -> None:
    """Written out: objective + weight * sum over documents of (supervised tokens x mean over image tokens) / all."""
    given, module = Batch.collate(ROWS), module_with(losses(balance=0.0))
    teacher, net = module.auxiliary["teacher"], module.net
    with listening(net, module.auxiliary) as features:
        total, weight = module.objective(net, given)
    sum_R, count_R = teacher(net, given, features)
    supervised_R = torch.tensor([9.0, 1, 4, 1, 3])
    mean_R = torch.where(count_R > 0, sum_R / count_R.clamp(min=1), 0.0)
    wanted = (total + 0.5 * (supervised_R * mean_R).sum()) / weight
    wanted.backward()
    expected = {n.removeprefix("net."): p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    fresh = module_with(losses(balance=0.0))
    trainer = fit(fresh, [given])
    (step,) = fresh.recorded
    for name, gradient in expected.items():
        torch.testing.assert_close(step[name], gradient, atol=1e-6, rtol=1e-4)
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/loss"], (total / weight).detach())  # the objective's own
    with_images = supervised_R * (count_R > 0)
    torch.testing.assert_close(
        logged["train/aux/teacher"], ((supervised_R * mean_R).sum() / with_images.sum()).detach()
    )
    loads = [logged[f"train/aux/balance/expert_{n}"] for n in range(3)]
    assert float(sum(loads)) == pytest.approx(1.0) and logged["train/aux/balance"] > 0


def test_a_weight_of_zero_is_no_loss() -> None:
    given = [mixed_batch(seed=s) for s in range(2)]
    with_zero, without = module_with(losses(teacher=0.0, balance=0.0)), module_with(None)
    fit(with_zero, given)
    fit(without, given)
    assert differing(snapshot(with_zero.net), snapshot(without.net)) == set()


def test_it_learns() -> None:
    module = module_with({"teacher": losses(teacher=5.0)["teacher"]})
    first = fit(module, [mixed_batch()]).callback_metrics["train/aux/teacher"]
    last = fit(module, [mixed_batch()] * 12).callback_metrics["train/aux/teacher"]
    assert last < 0.8 * first


def test_a_run_that_was_cut_off_is_continued_exactly(tmp_path: Path) -> None:
    given = [mixed_batch(seed=s) for s in range(5)]
    whole = module_with(losses())
    fit(whole, given, callbacks=[SaveAt(3, tmp_path / "x.ckpt")])
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]
    own = {name for name in saved if name.startswith("auxiliary.")}
    assert own == {f"auxiliary.teacher.{name}" for name, _ in whole.auxiliary["teacher"].named_parameters()} != set()
    second = module_with(losses(), seed=99)  # another process draws other numbers
    trainer = fit(second, given, ckpt_path=tmp_path / "x.ckpt")
    assert trainer.global_step == 5
    assert differing(snapshot(second), snapshot(whole)) == set()
    assert differing(snapshot(second), {name: saved[name] for name in snapshot(second)}) != set()


def test_heads_are_not_handed_on(tmp_path: Path) -> None:
    module = module_with(losses())
    trainer = fit(module, [mixed_batch()])
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    assert rates["auxiliary/teacher"] == rates["auxiliary/teacher/no_decay"] == 1e-2
    module.save_weights(tmp_path / "weights.safetensors")
    loaded = load(tmp_path)
    assert set(loaded.net.state_dict()) == set(module.net.state_dict())
    assert loaded.metadata["auxiliary"]["teacher"]["init_args"]["layers"] == "0,-1"


# ---- load balance


@pytest.mark.parametrize("top_k", [1, 2])
def test_it_is_the_sum_that_the_paper_writes_and_one_when_probabilities_are_even(top_k: int) -> None:
    net = tiny_net(router=TopKRouter({"ffn": "0,2"}, num_experts=4, top_k=top_k))
    loss, given = LoadBalance(), batch("t[iiii]T")
    for scale in (0.0, 40.0):
        with torch.no_grad():
            for name in loss.listens_to(net):
                net.get_parameter(f"{name}.weight").mul_(scale).add_(0.0 if scale else 1e-3)
        with listening(net, {"balance": loss}) as features, torch.no_grad():
            net(given)
        sum_R, count_R = loss(net, given, features)
        value = float(sum_R / count_R)
        expected = 0.0
        for logits_NE in features.outputs.values():
            chosen = logits_NE.topk(top_k).indices.flatten()
            share_E = torch.stack([(chosen == expert).float().mean() for expert in range(4)])
            expected += 4 * float((share_E * logits_NE.softmax(-1).mean(0)).sum()) / 2
        assert value == pytest.approx(expected, rel=1e-5)
        if scale:
            assert 1.0 < value <= 4.0
        else:
            assert value == pytest.approx(1.0)
            for name in loss.listens_to(net):
                torch.nn.init.normal_(net.get_parameter(f"{name}.weight"), std=0.02)


def test_it_evens_the_load_out() -> None:
    net, loss, given = tiny_net(router=TopKRouter({"ffn": "0"}, num_experts=3)), LoadBalance(), mixed_batch()
    gate = net.get_parameter("backbone.layers.0.ffn.visual.gate.weight")
    with torch.no_grad():
        gate.mul_(50)
    optimiser = torch.optim.Adam([gate], lr=0.05)
    largest = []
    for _ in range(25):
        with listening(net, {"balance": loss}) as features:
            net(given)
        optimiser.zero_grad()
        loss(net, given, features)[0].sum().backward()
        optimiser.step()
        largest.append(max(float(load) for load in loss.facts.values()))
    assert largest[-1] < 0.5 * (largest[0] + 1 / 3)


# ---- teacher


def test_each_token_meets_what_the_teacher_sees_at_its_place() -> None:
    net = tiny_net()
    options: dict[str, Any] = dict(teacher="test_vit", pretrained=False, teacher_args={"img_size": 64})
    loss = TeacherFeatures(teacher_layers="2,5", layers="0,1", **options)
    loss.install(net, ChatProcessor(ByteTokenizer()))
    given = batch("[i]T", "[i]T")
    embedder: Any = net.patch_embedder
    targets = loss._targets(embedder, given, 8)
    assert [tuple(target.shape) for target in targets] == [(8, 64)] * 2
    assert not torch.allclose(*targets)
    teacher = loss.teacher
    assert teacher is not None
    grids = teacher.grids(given.tiles)
    assert [tuple(grid.shape) for grid in grids] == [(2, 64, 4, 4)] * 2
    quarters = grids[1].unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))  # [2, 64, 2, 2]
    near = torch.cdist(targets[1], quarters.permute(0, 2, 3, 1).reshape(8, 64)).argmin(1)
    assert near.tolist() == list(range(8)), "row by row, tile by tile"


def test_the_teachers_own_normalisation_is_used() -> None:
    net, processor = tiny_net(), ChatProcessor(ByteTokenizer())
    options: dict[str, Any] = dict(teacher="test_vit", pretrained=False, teacher_args={"img_size": 16})
    loss = TeacherFeatures(**options)
    loss.install(net, processor)
    teacher: Any = loss.teacher
    seen: list[Tensor] = []
    teacher.model.register_forward_pre_hook(lambda *_: None)
    original = teacher.model.forward_intermediates
    teacher.model.forward_intermediates = lambda x, **more: (seen.append(x), original(x, **more))[1]
    pixels = torch.rand(1, 3, 16, 16)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.mean, processor.std))
    teacher.grids((pixels - mean) / std)
    torch.testing.assert_close(seen[0], (pixels - 0.5) / 0.5)  # test_vit's


def test_queries_stand_for_a_square_grid() -> None:
    class Embedder(type(tiny_embedder())):  # type: ignore[misc]
        def kinds(self, height: int, width: int) -> Tensor:
            return torch.full((4,), int(TokenKind.QUERY), dtype=torch.int8)

    loss = TeacherFeatures(embedder=tiny_embedder(hidden_size=6), kind="query")
    loss.install(tiny_net(), ChatProcessor(ByteTokenizer()))
    assert loss._places(Embedder(hidden_size=32, image_size=8, patch_size=2, channels=8), 8, 8).tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TeacherFeatures(), "give either teacher, a model of timm, or embedder"),
        (lambda: TeacherFeatures("test_vit", kind="text"), "kind='text' is image or query"),  # type: ignore[arg-type]
        (lambda: LoadBalance(-1), "LoadBalance: weight=-1 must not be negative"),
        (lambda: module_with({"t": TeacherFeatures("test_vti")}), "timm has no model 'test_vti'; did you mean"),
        (lambda: module_with({"t": TeacherFeatures("test_vit", layers="0-9", pretrained=False)}), "outside"),
        (
            lambda: module_with({"t": TeacherFeatures("test_vit", teacher_layers="0,1", pretrained=False)}),
            "2 blocks of the teacher for 1 layers",
        ),
        (lambda: tiny_module(auxiliary={"b": LoadBalance()}), "no experts with a learned gate"),
        (lambda: tiny_module(auxiliary={"b.c": LoadBalance()}), "auxiliary: 'b.c' is no name"),
    ],
)  # fmt: skip
def test_mistakes_are_named(wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong()


def test_an_objective_that_runs_no_layer_is_refused() -> None:
    module = tiny_module(objective=BagOfWords(), auxiliary={"teacher": losses()["teacher"]})
    with pytest.raises(UserError, match=r"model\.auxiliary\.teacher: BagOfWords runs no layer"):
        fit(module, [batch("[i]TT")])
