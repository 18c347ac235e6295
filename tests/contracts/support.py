"""Toy instances of everything that is registered.

A new component needs no test of its own for its contract. If its default size is large or it has required arguments,
give the class `toy_args`; `hidden_size` of a patch embedder is filled in here, as the command line does.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from components.adapters.gated import GatedBranch
from components.adapters.lora import LoRA
from mmframe import registry
from mmframe.checkpoints import CheckpointFormat
from mmframe.contracts import (
    Adapter,
    AuxiliaryLoss,
    Backbone,
    Evaluator,
    ExpertRouter,
    FreezingPolicy,
    Objective,
    PatchEmbedder,
)
from mmframe.data.source import Source
from mmframe.metrics import TaskMetric
from mmframe.optim import AdamWSchedule
from tests.helpers import (
    HIDDEN,
    roughen,
)

CONTRACTS = {
    "backbone": Backbone,
    "patch_embedder": PatchEmbedder,
    "router": ExpertRouter,
    "freezing": FreezingPolicy,
    "objective": Objective,
    "optim": AdamWSchedule,
    "adapter": Adapter,
    "auxiliary": AuxiliaryLoss,
    "checkpoint": CheckpointFormat,
    "evaluator": Evaluator,
    "metric": TaskMetric,
    "source": Source,
}
NO_GRADIENT = {"MonoPatchEmbedder": {"class_embedding"}}
"""Parameters that have no effect by design, so that their gradient is zero (but never missing)."""
NEEDS_ADAPTER = {"LoRAParameters": LoRA, "GatedBranchParameters": GatedBranch}
"""Freezing policies for a model with an adapter, and the adapter."""
NO_NATIVE = {"Chameleon", "Gemma", "Persimmon"}
"""Backbones whose layers are not those of the Llama family."""
NEEDS_PRE_LAYERS = {"PreLayers"}
"""Freezing policies for a backbone with new layers in front."""


def every(kind: str, sized: bool = True) -> pytest.MarkDecorator:
    """Runs a test for all registered classes of a kind; `sized`: for those that can be small."""
    classes = [cls for cls in registry.classes(kind) if not sized or cls.toy_args is not None]
    assert classes, f"no {kind} is registered"
    return pytest.mark.parametrize("cls", classes, ids=lambda cls: cls.__name__)


every_component = pytest.mark.parametrize(
    "cls", [cls for kind in CONTRACTS for cls in registry.classes(kind)], ids=lambda cls: cls.__name__
)


def make(cls: type, **more: Any) -> Any:
    """A toy instance."""
    known = more | ({"hidden_size": HIDDEN} if issubclass(cls, PatchEmbedder) else {})
    try:
        return cls(**((cls.toy_args or {}) | known))  # type: ignore[attr-defined]
    except TypeError as error:
        pytest.fail(f"{error}; give {cls.__name__} its required arguments at toy size: toy_args = dict(...)")


def make_rough(cls: type) -> Any:
    module = make(cls)
    size = sum(p.numel() for p in module.parameters())
    assert size < 400_000, f"{cls.__name__} has {size:,} parameters at toy size; give it toy_args = dict(...)"
    roughen(module)
    return module


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
