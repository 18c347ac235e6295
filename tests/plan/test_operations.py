"""Operations of a plan: torch's own counter on a real step, and a formula that counts nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmframe.objectives import NextToken
from mmframe.planning.operations import by_component, by_kind
from mmframe.planning.trace import _Products, trace_step
from tests.plan.models import MEDIUM, POLICIES, SMALL, meta_net, module, rows


@pytest.mark.parametrize("stage", POLICIES)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_a_step_without_numbers_counts_what_torch_counts_on_a_real_one(stage: str, checkpointed: bool) -> None:
    net, _ = meta_net(SMALL, POLICIES[stage], torch.float32)
    trace = trace_step(net, NextToken(), rows(3), "cpu", checkpointed)
    real = module(SMALL, POLICIES[stage]).net
    with FlopCounterMode(display=False) as counter:
        total, weight = NextToken()(real, rows(3))
        forward = counter.get_total_flops()
        (total / weight).backward()
    backward = counter.get_total_flops() - forward
    assert trace.forward == pytest.approx(forward, rel=0.02)
    if checkpointed:  # the layers once more, as far as something in them is kept
        layers = forward - sum(by_component(trace_of(stage))[part]["forward"] for part in ("head", "patch embedder"))
        assert trace.backward == pytest.approx(backward + layers, rel=0.05) and trace.backward < backward + forward
    else:
        assert trace.backward == pytest.approx(backward, rel=0.02)


def trace_of(stage: str):
    return trace_step(meta_net(SMALL, POLICIES[stage], torch.float32)[0], NextToken(), rows(3), "cpu")


@pytest.mark.parametrize("stage", POLICIES)
def test_a_formula_of_the_papers_gives_the_same_operations(stage: str) -> None:
    """2 FLOP for each weight and token, as much again for the gradient of its input, and again where it trains;
    attention 4 L^2 D forward, and five products in place of two backward (flash computes the scores again)."""
    net, report = meta_net(MEDIUM, POLICIES[stage], torch.bfloat16)
    batch = rows(3)
    trace = trace_step(net, NextToken(), batch, "cuda")
    image, learnt = batch.image_slots.numel(), batch.supervised.numel()
    tokens, D = batch.num_tokens, MEDIUM["hidden_size"]
    forward = backward = 0
    for name, p in net.named_parameters():
        if p.ndim < 2 or "position" in name or "class_embedding" in name:
            continue
        # o has one expert, for all tokens; the head is the embedding's
        applied = tokens if ".o." in name else image if ".visual." in name else tokens - image
        applied = (
            learnt if "embedding" in name else image if "mlp" in name else 4 * image if "conv" in name else applied
        )
        inputs = "conv" not in name
        forward += 2 * p.numel() * applied
        backward += 2 * p.numel() * applied * (inputs + (name in report.group_of))
    pairs = sum(length**2 for length in batch.row_lengths)
    scores = MEDIUM["num_layers"] * 4 * pairs * D
    assert trace.forward == pytest.approx(forward + scores, rel=0.02)
    assert trace.backward == pytest.approx(backward + 2.5 * scores, rel=0.02)
    rest = by_component(trace)["attention scores and rest"]
    assert rest["forward"] == pytest.approx(scores, rel=0.02)


def test_frozen_text_costs_less_and_an_image_token_of_a_trained_expert_more() -> None:
    traces = {stage: trace_of(stage) for stage in POLICIES}
    assert traces["S1.1"].forward == traces["S1.3"].forward == traces["S2"].forward
    assert traces["S1.1"].backward < traces["S1.3"].backward < traces["S2"].backward
    kinds = {stage: by_kind(trace) for stage, trace in traces.items()}
    assert kinds["S1.1"]["image"] == pytest.approx(kinds["S2"]["image"], rel=0.1)
    weights = 2 * (4 * 64 * 64 * 0.75 + 3 * 64 * 128) * 2  # two layers: q and o whole, k and v half; the FFN
    assert kinds["S1.1"]["text"] == pytest.approx(2 * weights) and kinds["S2"]["text"] == pytest.approx(3 * weights)


def test_products_are_known_however_the_weight_is_handed_over() -> None:
    layer = torch.nn.Linear(8, 4, device="meta")
    with (products := _Products(layer, "cuda")):
        torch.nn.functional.linear(torch.empty(3, 8, device="meta"), weight=layer.weight)
        torch.nn.functional.linear(torch.empty(3, 8, device="meta"), torch.empty(4, 8, device="meta"))
    assert {name: (p.rows, p.forward, p.backward) for name, p in products.found.items()} == {"weight": (3, 192, 192)}
