"""What every auxiliary loss promises."""

from __future__ import annotations

import pytest
import torch

from components.routers.top_k import TopKRouter
from mmframe.auxiliary import listening
from mmframe.batch import Batch
from mmframe.contracts import (
    AuxiliaryLoss,
)
from mmframe.model import MultimodalLM
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.contracts.support import every, make, shapes
from tests.helpers import (
    all_logits,
    batch,
    tiny_net,
)


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
