"""What every objective promises."""

from __future__ import annotations

import torch

from mmframe import registry
from mmframe.freezing import freeze
from mmframe.model import MultimodalLM
from tests.contracts.support import every, make
from tests.helpers import (
    QKV_FFN,
    batch,
    tiny_net,
)


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
