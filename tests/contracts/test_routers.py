"""What every router promises."""

from __future__ import annotations

import torch

from mmframe.kinds import TokenKind
from tests.contracts.support import every, make
from tests.helpers import (
    batch,
    loss_and_gradients,
    tiny_llama,
    tiny_net,
)


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
