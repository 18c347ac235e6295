"""The model of one stage on the meta device: as it will train, without a single weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmframe.cli.data_job import component
from mmframe.freezing import FreezingReport, freeze
from mmframe.loading import empty_model
from mmframe.model import MultimodalLM


def meta_model(parts: dict[str, Any]) -> tuple[MultimodalLM, FreezingReport]:
    """The model, with the additions of an adapter, frozen as the stage freezes it.

    Args:
        parts: `backbone`, `patch_embedder`, `router`, `freezing` and, if there is one, `adapter` of a resolved stage.

    Raises:
        UserError: what the components say is wrong.
    """
    net = empty_model(_sized(parts))
    if parts.get("adapter"):
        component(parts["adapter"]).install(net)
    return net, freeze(net, component(parts["freezing"]).groups(net.router.experts))


def _sized(parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of a model whose patch embedder is as wide as the backbone and reads no weights."""
    with torch.device("meta"):
        hidden_size = component(parts["backbone"]).hidden_size
    spec: dict[str, Any] = parts["patch_embedder"]
    arguments = {key: value for key, value in (spec.get("init_args") or {}).items() if key != "weights"}
    embedder = {"class_path": spec["class_path"], "init_args": {"hidden_size": hidden_size} | arguments}
    return {"backbone": parts["backbone"], "router": parts["router"], "patch_embedder": embedder}


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
