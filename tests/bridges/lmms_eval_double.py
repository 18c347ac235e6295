"""As much of lmms-eval's API as a model touches, for where it is not installed."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


class lmms:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.rank = 0

    @staticmethod
    def _resolve_system_prompt(value: str) -> str:
        return value

    def clean(self) -> None:
        pass


def parse(text: str) -> dict[str, Any]:
    return dict(pair.split("=", 1) for pair in text.split(","))


def import_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """mmframe.bridges.lmms_eval.model over the double."""
    parts = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.utils": {"simple_parse_args_string": parse},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    ours = "mmframe.bridges.lmms_eval.model"
    monkeypatch.setitem(sys.modules, ours, ModuleType(ours))  # so that what stands there then goes with the double
    del sys.modules[ours]
    return importlib.import_module(ours)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)
