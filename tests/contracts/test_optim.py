"""What every optimisation component promises."""

from __future__ import annotations

from mmframe import registry
from mmframe.freezing import freeze
from tests.contracts.support import every, make
from tests.helpers import (
    tiny_net,
)


@every("optim")
def test_optimisation_takes_the_trainable_parameters_and_no_others(cls: type) -> None:
    net = tiny_net()
    groups = registry.get("freezing", "VisualParameters")(1e-3, 2e-3).groups(net.router.experts)
    report = freeze(net, groups)
    made = make(cls).configure(dict(net.named_parameters()), report.group_of, groups, 10)
    given = [p for group in made["optimizer"].param_groups for p in group["params"]]
    assert len({id(p) for p in given}) == len(given) == len(report.group_of)
    assert all(p.requires_grad for p in given)
