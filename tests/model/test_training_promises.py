"""What trains, what does not, and that a step does not depend on how its batch was cut (P14, P15, P17, P21)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.freezing.delta_tuning import EmbedderOnly, Everything, TrainOnly, VisualAndAttention, VisualParameters
from components.objectives.bag_of_words import BagOfWords
from mmframe.batch import COLUMNS, Batch, Sample
from mmframe.contracts import FreezingPolicy, TrainableGroup
from mmframe.errors import UserError
from mmframe.freezing import freeze
from mmframe.layers import layer_of
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken, Weighting
from mmframe.optim import AdamWSchedule, MasterAdamW
from tests.helpers import (
    ALL_SITES,
    QKV_FFN,
    Recording,
    batch,
    differing,
    fit,
    mixed_batch,
    row,
    snapshot,
    tiny_module,
    tiny_net,
)
from tests.model.ranks import RUNS, STEPS, ranked_module, train_two_ranks

# ---- what trains (P14)

ATTENTION = tuple(f".{site}.text." for site in "qkvo")
POLICIES: dict[str, tuple[FreezingPolicy, Any]] = {
    # the policy, and in our own words which names it may train
    "EmbedderOnly": (EmbedderOnly(1e-2), lambda n: n.startswith("patch_embedder.")),
    "VisualParameters": (VisualParameters(1e-2, 1e-2), lambda n: n.startswith("patch_embedder.") or ".visual." in n),
    "VisualAndAttention": (
        VisualAndAttention(1e-2, 1e-2, 1e-2),
        lambda n: n.startswith("patch_embedder.") or ".visual." in n or any(site in n for site in ATTENTION),
    ),
    "Everything": (Everything(1e-2, 1e-2, 1e-2), lambda n: True),
    "TrainOnly": (
        TrainOnly({"up": TrainableGroup(["backbone.layers.1.ffn.visual.up.weight"], 1e-2)}),
        lambda n: n == "backbone.layers.1.ffn.visual.up.weight",
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_frozen_tensors_keep_their_bits_and_trainable_ones_change(name: str) -> None:
    check_frozen(name)


def check_frozen(name: str) -> None:
    """P14: several optimiser steps with weight decay on mixed batches; `]` and slots before words are supervised."""
    policy, may_train = POLICIES[name]
    module = tiny_module(ALL_SITES, freezing=policy)
    before = snapshot(module.net)
    # "iT": the last slot of an image predicts a word, so that even the last layer's visual experts matter
    trainer = fit(module, [mixed_batch(seed=s) for s in range(3)] + [batch("tiTT", "[i]TT", seed=9)] * 2)
    assert trainer.global_step == 5
    changed = differing(before, snapshot(module.net))
    expected = {n for n in before if may_train(n)}
    assert changed - expected == set(), "frozen tensors changed"
    assert expected - changed == set(), "trainable tensors did not change"
    names = {id(p): n for n, p in module.net.named_parameters()}
    with_state = {names[id(p)] for p in trainer.optimizers[0].state}
    assert with_state == expected, "optimiser state exists for exactly what trains"
    assert {n for n, p in module.net.named_parameters() if p.requires_grad} == expected


def test_a_model_without_experts_takes_the_same_policies() -> None:
    for name in ("EmbedderOnly", "VisualParameters", "VisualAndAttention", "Everything"):
        policy, may_train = POLICIES[name]
        module = tiny_module({}, freezing=policy)
        assert set(module.freezing_report.group_of) == {n for n in snapshot(module.net) if may_train(n)}


def test_groups_carry_their_rates_and_vectors_no_decay() -> None:
    module = tiny_module(QKV_FFN, freezing=VisualParameters(embedder_lr=3e-4, experts_lr=4e-4))
    trainer = fit(module, [mixed_batch()])
    seen = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in trainer.optimizers[0].param_groups}
    assert seen == {"embedder": (3e-4, 0.1), "embedder/no_decay": (3e-4, 0.0), "experts": (4e-4, 0.1)}


def test_the_report_counts_every_parameter_once() -> None:
    module = tiny_module(QKV_FFN)
    report, net = module.freezing_report, module.net
    assert report.total == sum(p.numel() for p in net.parameters())
    assert report.trainable == sum(p.numel() for p in net.parameters() if p.requires_grad)
    table = str(report)
    for part in ("token embedding", "attention, text", "attention, visual", "ffn, visual", "norms, text", "final norm"):
        assert part in table
    assert f"{report.trainable:,} trainable" in table


# ---- mistakes in policies (P15)


def test_a_pattern_that_matches_nothing_raises_and_shows_the_nearest_name() -> None:
    groups = {"experts": TrainableGroup(["backbone.layers.*.fnn.visual.*"], 1e-3)}
    with pytest.raises(UserError, match=r"matches no parameter; did you mean 'backbone\.layers\.\*\.ffn\.visual"):
        freeze(tiny_net(), groups)


def test_a_parameter_that_two_groups_claim_raises() -> None:
    groups = {
        "experts": TrainableGroup(["backbone.layers.*.visual.*"], 1e-3),
        "ffn": TrainableGroup(["backbone.layers.*.ffn.*"], 1e-3),
    }
    with pytest.raises(UserError, match=r"0\.ffn\.visual\.gate\.weight is claimed by groups 'experts' and 'ffn'"):
        freeze(tiny_net(), groups)


def test_layers_say_which_layers_a_pattern_may_hit() -> None:
    groups = {
        "first": TrainableGroup(["backbone.layers.*.visual.*", "patch_embedder.*"], 1e-3, layers="0"),
        "rest": TrainableGroup(["backbone.layers.*.ffn.visual.*"], 1e-4, layers="1,-1"),
    }
    net = tiny_net(QKV_FFN)
    group_of = freeze(net, groups).group_of
    assert {layer_of(name) for name, group in group_of.items() if group == "first"} == {0, None}
    assert {layer_of(name) for name, group in group_of.items() if group == "rest"} == {1, 2}
    assert not any(".q.visual." in name for name, group in group_of.items() if group == "rest")


def test_layers_that_hold_nothing_or_are_not_there_or_overlap_raise() -> None:
    net, match = tiny_net({"ffn": "0"}), ["backbone.layers.*.ffn.visual.*"]
    with pytest.raises(UserError, match=r"group 'late' matches no parameter in layers 1-2; "):
        freeze(net, {"late": TrainableGroup(match, 1e-3, layers="1-2")})
    with pytest.raises(UserError, match=r"freezing: group 'far': layers '3' are outside the backbone's 0\.\.2"):
        freeze(net, {"far": TrainableGroup(match, 1e-3, layers="3")})
    with pytest.raises(UserError, match="is claimed by groups 'one' and 'two'"):
        freeze(net, {"one": TrainableGroup(match, 1e-3), "two": TrainableGroup(match, 1e-3, layers="0-1")})


def test_stages_take_layers_too() -> None:
    net = tiny_net(QKV_FFN)
    attention = VisualAndAttention(1e-3, 1e-3, 1e-4, attention_layers="-1").groups(net.router.experts)
    trained = {name for name, group in freeze(net, attention).group_of.items() if group == "attention"}
    assert {layer_of(name) for name in trained} == {2}
    everything = Everything(1e-3, 1e-3, 1e-3, text_layers="0-1").groups(net.router.experts)
    trained = {name for name, group in freeze(net, everything).group_of.items() if group == "text"}
    assert {layer_of(name) for name in trained} == {0, 1, None}


def test_a_pattern_given_as_a_word_raises() -> None:
    with pytest.raises(UserError, match="must be a list of patterns"):
        freeze(tiny_net(), {"all": TrainableGroup("patch_embedder.*", 1e-3)})


# ---- a step does not depend on how its batch was cut (P21)


SAMPLES = ["tTTTTTTTTT", "[i]T", "t[ii]/tTTT/tT", "tT|tt[i]TTT"]
"""9; 1; 3 and 1, as questions that share an image; 1 and 3 supervised tokens, as documents."""
WEIGHTINGS: tuple[Weighting, ...] = ("token", "sample", "sqrt")


def all_samples() -> list[Sample]:
    return [row(pattern, seed=i) for i, pattern in enumerate(SAMPLES)]


def gradients_of(
    batches: list[Batch], accumulate: int, weighting: Weighting = "token", **options: Any
) -> list[dict[str, Tensor]]:
    """Gradients of each step of the real Trainer."""
    everything, objective = Everything(1e-3, 1e-3, 1e-3), NextToken(weighting)
    module = tiny_module(QKV_FFN, freezing=everything, objective=objective, module_class=Recording)
    trainer = fit(module, batches, accumulate_grad_batches=accumulate, **options)
    assert isinstance(module, Recording) and trainer.global_step == len(module.recorded)
    return module.recorded


def split(parts: list[list[int]]) -> list[Batch]:
    rows = all_samples()
    return [Batch.collate([rows[i] for i in part]) for part in parts]


def check_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Equal to 1e-6 of the whole gradient's norm: fp32 sums in another order."""
    assert set(ours) == set(expected)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    for name, gradient in expected.items():
        assert float((ours[name] - gradient).norm()) <= tolerance * norm, name


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 2, 1], [0]]], ids=str)
def test_gradients_do_not_depend_on_the_split_into_micro_batches(parts: list[list[int]], weighting: Weighting) -> None:
    check_split(parts, weighting)


def check_split(parts: list[list[int]], weighting: Weighting = "token") -> None:
    (whole,) = gradients_of(split([[0, 1, 2, 3]]), 1, weighting)
    (cut,) = gradients_of(split(parts), len(parts), weighting)
    check_same_gradients(cut, whole)


def test_weightings_differ_and_none_of_them_is_a_mean_of_means() -> None:
    wholes = [gradients_of(split([[0, 1, 2, 3]]), 1, weighting)[0] for weighting in WEIGHTINGS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        with pytest.raises(AssertionError):
            check_same_gradients(wholes[one], wholes[other], 1e-2)


def test_the_last_incomplete_accumulation_is_weighted_right() -> None:
    """Three micro-batches, two a step: the second step has one, and is not half as large."""
    _, last = gradients_of(split([[0], [1], [2]]), accumulate=2)
    _, alone = gradients_of(split([[0, 1], [2]]), accumulate=1)
    check_same_gradients(last, alone, 1e-4)


NOTHING = {
    "no label": lambda: batch("ii", "ttt"),
    "no tokens": lambda: Batch.collate([Sample.packed([])]),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("first", [True, False])
def test_a_micro_batch_with_nothing_to_learn_changes_nothing(nothing: str, first: bool, weighting: Weighting) -> None:
    (whole,) = gradients_of(split([[0, 1, 2, 3]]), 1, weighting)
    given = [*split([[0, 1], [2, 3]]), NOTHING[nothing]()]
    (step,) = gradients_of(given[::-1] if first else given, 3, weighting)
    check_same_gradients(step, whole)


@pytest.mark.parametrize("nothing", NOTHING)
def test_a_step_with_nothing_to_learn_has_gradients_of_zero_and_no_loss(nothing: str) -> None:
    module = tiny_module(QKV_FFN, module_class=Recording)
    trainer = fit(module, [NOTHING[nothing]()])
    assert isinstance(module, Recording)
    assert not any(gradient.any() for gradient in module.recorded[0].values())
    assert "train/loss" not in trainer.callback_metrics, "a mean of nothing is no loss of 0"
    (loss, logged) = (fit(tiny_module(), given).callback_metrics["train/loss"] for given in with_and_without(nothing))
    assert loss == logged > 0


def with_and_without(nothing: str) -> tuple[list[Batch], list[Batch]]:
    return [batch("tTT")], [batch("tTT"), NOTHING[nothing]()]


# ---- weights of tokens


@torch.no_grad()
def test_a_token_weighs_what_its_sample_says() -> None:
    """By hand: a mean over samples of the means over their tokens, and the like."""
    net, given = tiny_net(), Batch.collate(all_samples())
    ce = torch.nn.functional.cross_entropy(net(given).logits, given.labels[given.supervised], reduction="none")
    counts = [9, 1, 3, 1, 1, 3]
    assert given.supervised_counts.tolist() == [count for count in counts for _ in range(count)]
    samples = ce.split(counts)
    expected: dict[Weighting, Tensor] = {
        "token": ce.mean(),
        "sample": torch.stack([sample.mean() for sample in samples]).mean(),
        "sqrt": sum(s.sum() / len(s) ** 0.5 for s in samples) / sum(count**0.5 for count in counts),  # type: ignore
    }
    for weighting, loss in expected.items():
        total, weight = NextToken(weighting)(net, given)
        torch.testing.assert_close(total / weight, loss, atol=0, rtol=1e-6)


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(UserError, match="weighting='samples' is not known; did you mean 'sample'"):
        NextToken("samples")  # type: ignore[arg-type]


class Watched(NextToken):
    """Keeps the sums of weights, and how the batches arrive."""

    def __init__(self, weighting: Weighting) -> None:
        super().__init__(weighting)
        self.seen: list[tuple[Tensor, Batch]] = []

    def __call__(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total, weight = super().__call__(net, batch)
        self.seen.append((weight, batch))
        return total, weight


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_token_weights_are_exact_when_the_trainer_casts_the_batch_to_bf16(weighting: Weighting) -> None:
    """P21: 301 has no bf16 (it is 300 or 302): the loss would be divided by another number of tokens."""
    objective = Watched(weighting)
    fit(tiny_module(objective=objective), [batch("t" + "T" * 301, "[i]tTTT")], precision="bf16-true")
    ((weight, arrived),) = objective.seen
    assert arrived.tiles.dtype == torch.bfloat16, "the trainer did cast"
    expected = {"token": 304.0, "sample": 2.0, "sqrt": math.sqrt(301) + math.sqrt(3)}[weighting]
    assert weight.dtype == torch.float32 and weight.item() == pytest.approx(expected, rel=1e-6)
    assert weighting != "token" or weight.item() == 304


# ---- two ranks (P17)


@pytest.mark.timeout(250)
def test_two_ranks_with_any_mix_of_batches_train_alike(tmp_path: Path) -> None:
    """P17 and P21 over ranks: no hang, the same weights on both, the gradients of one process that sees all rows."""
    ranks = train_two_ranks(tmp_path)
    for (weighting, accumulate, with_teacher), first, second in zip(RUNS, *ranks, strict=True):
        assert differing(first["weights"], second["weights"]) == set()
        module = ranked_module(weighting, with_teacher)
        fit(module, [joined(STEPS[i : i + accumulate]) for i in range(0, len(STEPS), accumulate)])
        assert len(first["gradients"]) == len(STEPS) // accumulate
        for step, (ours, expected) in enumerate(zip(first["gradients"], module.recorded, strict=True)):
            # after a step of AdamW the weights differ by what it makes of rounding in gradients next to zero
            check_same_gradients(ours, expected, 1e-6 if step == 0 else 1e-3)


def joined(micro_batches: list[tuple[Batch, Batch]]) -> Batch:
    """One batch of all rows."""
    return Batch.collate([row for pair in micro_batches for part in pair for row in rows_of(part)])


def rows_of(part: Batch) -> list[Sample]:
    cut = {name: getattr(part, name).split(part.row_lengths) for name in COLUMNS}
    tiles = part.tiles.split(part.row_tiles)
    return [
        Sample(key=key, **{name: cut[name][i] for name in COLUMNS}, tiles=tiles[i]) for i, key in enumerate(part.keys)
    ]


# ---- the objectives


def test_bag_of_words_trains_the_embedder_alone() -> None:
    module = tiny_module(freezing=EmbedderOnly(1e-2), objective=BagOfWords())
    before = snapshot(module.net)
    fit(module, [batch("[i]TT", "t[ii]tTT", seed=s) for s in range(3)])
    changed = differing(before, snapshot(module.net))
    assert changed == {n for n in before if n.startswith("patch_embedder.")}


def frozen_text_net() -> MultimodalLM:
    net = tiny_net()
    freeze(net, EmbedderOnly(1e-2).groups(net.router.experts))
    return net


def test_bag_of_words_looks_at_each_document_of_a_row() -> None:
    rows = [row("[i]TT", seed=1), row("t[ii]tTT", seed=2), row("tt[i]T", seed=3)]
    net, objective = frozen_text_net(), BagOfWords()
    packed, apart = (objective(net, Batch.collate(given)) for given in ([Sample.packed(rows)], rows))
    assert torch.equal(packed[0], apart[0]) and packed[1] == apart[1] == 5


def test_bag_of_words_of_nothing_has_gradients_of_zero() -> None:
    net = frozen_text_net()
    total, weight = BagOfWords()(net, Batch.collate([Sample.packed([])]))
    total.backward()
    assert total == weight == 0
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters() if p.requires_grad)


def test_bag_of_words_refuses_a_batch_without_images() -> None:
    with pytest.raises(UserError, match="'tTT' has no image"):
        BagOfWords()(tiny_net(), batch("tTT"))


def test_bag_of_words_refuses_a_trainable_embedding_also_in_the_validation_that_comes_first() -> None:
    with pytest.raises(UserError, match="the token embedding trains; freeze it"), torch.no_grad():
        BagOfWords()(tiny_net(), batch("[i]TT"))


# ---- the optimiser


def two_copies(dtype: torch.dtype) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    tensors = [torch.randn(5, 7), torch.randn(9)]
    return tuple([nn.Parameter(t.to(dtype)) for t in tensors] for _ in range(2))  # type: ignore[return-value]


def run_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def test_master_adamw_is_adamw_on_fp32_parameters() -> None:
    ours, theirs = two_copies(torch.float32)
    options: dict[str, Any] = dict(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    run_steps(MasterAdamW(ours, **options), ours, 10)
    run_steps(torch.optim.AdamW(theirs, fused=True, **options), theirs, 10)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


def test_small_updates_of_bf16_parameters_are_not_lost() -> None:
    """At 1.0 bf16 moves in steps of 2^-8: plain AdamW never leaves the spot."""
    ours, theirs = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    mine, plain = MasterAdamW([ours], lr=1e-4, weight_decay=0.0), torch.optim.AdamW([theirs], lr=1e-4, weight_decay=0.0)
    for optimizer, parameter in ((mine, ours), (plain, theirs)):
        for _ in range(200):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    torch.testing.assert_close(ours.detach().float(), torch.full((4,), 0.98), atol=4e-3, rtol=0)
    assert torch.equal(theirs, torch.ones_like(theirs))


def test_bf16_parameters_follow_their_fp32_masters() -> None:
    bf16, fp32 = two_copies(torch.bfloat16)
    fp32 = [nn.Parameter(p.detach().float()) for p in fp32]
    generator = torch.Generator().manual_seed(0)
    ours, reference = MasterAdamW(bf16, lr=1e-2), torch.optim.AdamW(fp32, lr=1e-2, fused=True)
    for _ in range(10):
        for p, q in zip(bf16, fp32, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            q.grad = p.grad.float()
        ours.step()
        reference.step()
    for p, q in zip(bf16, fp32, strict=True):
        assert torch.equal(p, q.bfloat16())
        assert torch.equal(ours.state[p]["master"], q)


def test_optimiser_state_keeps_its_bits_through_a_checkpoint(tmp_path: Path) -> None:
    check_masters_survive(tmp_path)


def check_masters_survive(folder: Path) -> None:
    """A resumed run goes on from the fp32 masters, not from the rounded bf16 weights."""
    first, second = two_copies(torch.bfloat16)
    whole = MasterAdamW(first, lr=1e-2, weight_decay=0.1)
    run_steps(whole, first, 5)
    torch.save(whole.state_dict(), folder / "optimizer.pt")
    resumed = MasterAdamW(second, lr=1e-2, weight_decay=0.1)
    with torch.no_grad():
        for p, q in zip(second, first, strict=True):
            p.copy_(q)
    resumed.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    for p, q in zip(first, second, strict=True):
        for key, value in whole.state[p].items():
            assert resumed.state[q][key].dtype == torch.float32
            assert torch.equal(resumed.state[q][key], value), key
    run_steps(whole, first, 5, seed=1)
    run_steps(resumed, second, 5, seed=1)
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]), ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.55, 0.1])],
)
def test_learning_rate_by_step(schedule: str, expected: list[float]) -> None:
    optim = AdamWSchedule(warmup_steps=4, schedule=schedule, min_lr_ratio=0.1)  # type: ignore[arg-type]
    assert [optim.scale(step, max_steps=8) for step in (0, 1, 2, 3, 4, 6, 8)] == pytest.approx(expected)


def test_cosine_without_a_number_of_steps_is_refused() -> None:
    with pytest.raises(UserError, match="set it, or use schedule constant"):
        fit(tiny_module(optim=AdamWSchedule()), [mixed_batch()])
