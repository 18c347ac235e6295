"""Operations are counted as they are done, and counting changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from cupy_kernels.flops import rows
from mmframe import registry
from mmframe.callbacks.jsonl import read_metrics
from mmframe.cli.main import main
from mmframe.cli.run_dir import read_json
from mmframe.cupy_backend import CupyBackend
from mmframe.expert_backends import TORCH
from mmframe.flops import FlopCounter, attention, attention_backward
from mmframe.freezing import freeze
from tests.helpers import QKV_FFN, batch, loss_and_gradients, tiny_net


def flops_of(weights_train: bool, inputs_train: bool) -> int:
    layer = nn.Linear(64, 32, bias=False).requires_grad_(weights_train)
    x = torch.randn(10, 64, requires_grad=inputs_train)
    with FlopCounter() as counter:
        out = layer(x).sum()
        if weights_train or inputs_train:
            out.backward()
    return counter.total


def test_a_frozen_weight_costs_no_gradient_of_its_own() -> None:
    product = 2 * 10 * 64 * 32
    assert flops_of(False, False) == product
    assert flops_of(False, True) == 2 * product and flops_of(True, False) == 2 * product
    assert flops_of(True, True) == 3 * product


@pytest.mark.parametrize("heads", [4, 2], ids=["all heads", "grouped"])
def test_attention_of_the_cpu_kernel_counts_with_grouped_keys_too(heads: int) -> None:
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    k, v = (torch.randn(2, heads, 12, 16, requires_grad=True) for _ in range(2))
    with FlopCounter() as counter:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != 4)
        forward = counter.total
        out.sum().backward()
    assert forward == attention(q.shape, k.shape, v.shape) == 2 * (2 * 4 * 8 * 12 * 16) * 2
    assert counter.total - forward == attention_backward(out.shape, q.shape, k.shape, v.shape)


def test_loss_and_gradients_of_a_counted_batch_are_the_same_to_the_bit() -> None:
    net, given = tiny_net(QKV_FFN), batch("ttTTT", "tt[i]tTT", "tiTT")
    loss, gradients = loss_and_gradients(net, given)
    wanted = {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}
    net.zero_grad(set_to_none=True)
    with FlopCounter() as counter:
        counted, again = loss_and_gradients(net, given)
    assert counter.total > 0 and torch.equal(loss, counted)
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in again.items() if gradient is not None)


@pytest.mark.parametrize("policy", ["VisualParameters", "Everything"])
def test_the_fused_kernels_count_as_what_they_replace(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU their operators run the torch reference; the counter sees the operator."""
    counts, fused = [], []
    monkeypatch.setattr("cupy_kernels.flops.rows", lambda *given: fused.append(given) or rows(*given))
    for backend in (TORCH, CupyBackend(always=True)):
        net = tiny_net(QKV_FFN).bfloat16()  # fp32 runs on torch in any case
        rates = {"VisualParameters": (1e-3, 1e-3), "Everything": (1e-3, 1e-3, 1e-3)}[policy]
        freeze(net, registry.get("freezing", policy)(*rates).groups(net.router.experts))
        for _, _, experts in net.backbone.sites():
            experts.backend = backend
        with FlopCounter() as counter:
            loss_and_gradients(net, batch("ttTTT", "tt[i]tTT", "tiTT"))
        counts.append(counter.total)
    assert counts[0] == counts[1] and fused, "the operators were used and counted"


def test_a_run_tells_its_operations_and_counting_them_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "toy/evip", "--stage=s1_1_concept", "--trainer.max_steps=4", "--trainer.log_every_n_steps=1",
             "--trainer.limit_val_batches=1"]  # fmt: skip
    flops = "class_path: mmframe.callbacks.flops.Flops, init_args"
    last = "class_path: mmframe.callbacks.last_validation.LastValidation"
    for name, counted in (
        ("all", f"[{{{flops}: {{first: 100}}}}, {{{last}}}]"),
        ("none", f"[{{{flops}: {{first: 0, every: 99}}}}]"),
    ):  # noqa: E501
        assert main([*words, f"--run-dir={name}", f"--trainer.callbacks={counted}"]) == 0
    runs = [tmp_path / name / "s1_1_concept" for name in ("all", "none")]
    losses = [[row["train/loss"] for row in read_metrics(run) if "train/loss" in row] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    one, other = (load_file(run / "weights.safetensors") for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)
    done = read_json(runs[0] / "done.json")
    totals, row = done["totals"], read_metrics(runs[0])[-1]
    assert totals["flops"] == pytest.approx(totals["flops_per_token"] * totals["tokens"])
    assert row["train/flops"] == pytest.approx(totals["flops"], rel=1e-6) and totals["samples"] == 32
    assert "val/loss" in row and "val/loss" not in read_metrics(runs[1])[-1], (
        "the last step is validated when asked for"
    )
