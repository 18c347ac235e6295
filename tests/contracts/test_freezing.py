"""What every freezing policy promises."""

from __future__ import annotations

import pytest

from mmframe.freezing import freeze
from tests.contracts.support import NEEDS_ADAPTER, NEEDS_PRE_LAYERS, every, make
from tests.helpers import (
    ALL_SITES,
    QKV_FFN,
    tiny_llama,
    tiny_net,
)


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
