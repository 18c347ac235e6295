"""What every component promises: it says what it is, and its recorded call makes it again."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
import torch
from torch import nn

from mmframe import registry
from mmframe.catalog import of_kind
from mmframe.contracts import (
    Component,
    FreezingPolicy,
    PatchEmbedder,
)
from mmframe.loading import build
from mmframe.metrics import TaskMetric
from tests.contracts.support import CONTRACTS, every_component, make, shapes


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_static_catalogue_and_the_registry_know_the_same_names(kind: str) -> None:
    assert set(of_kind(kind)) == set(registry.names(kind))


@pytest.mark.parametrize("cls", registry.classes(), ids=lambda cls: cls.__name__)
def test_it_says_what_it_is_and_what_each_argument_does(cls: type) -> None:
    entry = of_kind(cls.component_kind)[cls.__name__]  # type: ignore[attr-defined]
    assert entry.summary.endswith((".", ":")), "the first line of the docstring is a sentence"
    silent = [name for name, argument in entry.signature.arguments.items() if not argument.doc]
    assert silent == [], "arguments without a line under Args:"


SOURCED = ("backbone", "patch_embedder", "router", "freezing", "objective", "adapter", "auxiliary")
"""Kinds that implement somebody's idea: what an ablation is about."""


@pytest.mark.parametrize(
    "cls", [cls for kind in SOURCED for cls in registry.classes(kind)], ids=lambda cls: cls.__name__
)
def test_its_docstring_names_its_source(cls: type) -> None:
    text = inspect.getdoc(cls) or ""
    assert re.search(r"arXiv \d{4}\.\d{4,5}|(Source|Values): \w", text), "a paper's number, or Source: who had the idea"


@every_component
def test_it_fulfils_the_contract_of_its_kind(cls: type) -> None:
    assert issubclass(cls, CONTRACTS[cls.component_kind]) and issubclass(cls, Component)  # type: ignore[attr-defined]


@every_component
def test_its_recorded_call_is_plain_data_and_makes_it_again(cls: type) -> None:
    with torch.device("meta") if cls.toy_args is None else torch.device("cpu"):  # type: ignore[attr-defined]
        first = cls() if cls.toy_args is None else make(cls)  # type: ignore[attr-defined]
        second = build(json.loads(json.dumps(first.spec)))
    assert type(second) is cls and second.spec == first.spec
    if isinstance(first, nn.Module) and not isinstance(first, TaskMetric):  # whose state is a list
        assert shapes(first) == shapes(second)
    if isinstance(first, FreezingPolicy):
        assert first.groups(("text", "visual")) == second.groups(("text", "visual"))


def default_instance(cls: type) -> Any:
    return cls(**{"hidden_size": 64}) if issubclass(cls, PatchEmbedder) else cls()


@pytest.mark.parametrize(
    "cls", registry.classes("backbone") + registry.classes("patch_embedder"), ids=lambda cls: cls.__name__
)
def test_its_default_size_builds_on_the_meta_device(cls: type) -> None:
    with torch.device("meta"):
        module = default_instance(cls)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
