"""Weights of a model as safetensors: the hand-over between stages. Strict, with messages that help."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmframe.errors import UserError, nearest
from mmframe.freezing import component_of


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes all parameters to `path`: to a temporary name first, synced, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    info = {"format": "pt"} | {key: json.dumps(value) for key, value in (metadata or {}).items()}
    save_file(tensors, str(temporary), metadata=info)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by save_weights.

    Raises:
        UserError: no such file, or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"init_from: {path} does not exist; give the weights.safetensors of a finished stage")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items() if k != "format"}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"init_from: {path} is no safetensors file of mmframe: {error}") from error
    except Exception as error:  # safetensors raises its own type
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"init_from: {path} is damaged or no safetensors file: {error}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], allow_missing: set[str] | None = None) -> list[str]:
    """Copies tensors into the model, strictly.

    Args:
        model: Takes the tensors; its dtype and device stay.
        state: Name -> tensor.
        allow_missing: Names that may be missing (new experts, which start from their text expert).

    Returns:
        The allowed names that were missing.

    Raises:
        UserError: missing, unexpected or mis-shaped names, listed by component with the nearest name.
    """
    own = model.state_dict()
    allowed = allow_missing or set()
    missing = sorted(set(own) - set(state) - allowed)
    unexpected = sorted(set(state) - set(own))
    misshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unexpected or misshaped:
        raise UserError(
            "weights do not fit the model: " + "; ".join(_problems(own, state, missing, unexpected, misshaped))
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in state:
                tensor.copy_(state[name])
    return sorted(set(own) - set(state))


def _problems(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
) -> list[str]:
    def by_component(names: list[str]) -> str:
        counts: dict[str, int] = {}
        for name in names:
            counts[component_of(name)] = counts.get(component_of(name), 0) + 1
        return ", ".join(f"{count} of {component}" for component, count in counts.items())

    problems = []
    if missing:
        hint = nearest(missing[0], unexpected) if unexpected else ""
        problems.append(f"{len(missing)} missing ({by_component(missing)}), first {missing[0]} {hint}".rstrip())
    if unexpected:
        hint = nearest(unexpected[0], list(own))
        problems.append(
            f"{len(unexpected)} unexpected ({by_component(unexpected)}), first {unexpected[0]} {hint}".rstrip()
        )
    if misshaped:
        name = misshaped[0]
        shapes = f"{tuple(state[name].shape)} given, {tuple(own[name].shape)} expected"
        problems.append(f"{len(misshaped)} of another shape ({by_component(misshaped)}), first {name}: {shapes}")
    return problems
