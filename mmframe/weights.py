"""Weights of a model as safetensors: the hand-over between stages. Strict, with messages that help."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmframe.errors import UserError, nearest
from mmframe.freezing import component_of
from mmframe.safetensors_file import SafetensorsFile, write_safetensors
from mmframe.sharding import whole
from mmframe.trainer_checkpoints import is_trainer_checkpoint, read_trainer_checkpoint

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes all parameters to `path`: to a temporary name first, synced, then renamed. Sharded ones are put together
    one by one, for which the other ranks must walk through the same state (mmframe.sharding.whole)."""
    state = model.state_dict()
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}
    info = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    write_safetensors(path, entries, whole(state.items()), info)


def weights_digest(model: nn.Module) -> str:
    """Tells one set of weights from another: names, types, shapes, and of each tensor all bits, added up, and the first
    values. Whole numbers add up to the same on any device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        bits = tensor.contiguous().view(
            {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
        )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(bits.flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_weights(path: str | Path, what: str = "model") -> tuple[SafetensorsFile, dict[str, Any]]:
    """A file written by save_weights, with its metadata; nothing of its tensors is read.

    Args:
        path: The file.
        what: Asked for it; opens the messages.

    Raises:
        UserError: no such file, or no safetensors file of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what}: {path} does not exist; give the weights.safetensors of a finished stage")
    file = SafetensorsFile(path)
    try:
        return file, {key: json.loads(value) for key, value in file.metadata.items() if key != "format"}
    except ValueError as error:
        raise UserError(f"{what}: {path} is no safetensors file of mmframe: {error}") from error


def read_weights(
    path: str | Path, dtype: torch.dtype | None = None, what: str = "init_from"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by save_weights, or of a Trainer's checkpoint (a file or a folder).

    Args:
        path: The file.
        dtype: Of floating-point tensors; None keeps the stored one.
        what: Asked for it; opens the messages.

    Raises:
        UserError: no such file, or no safetensors file of ours.
    """
    if is_trainer_checkpoint(Path(path)):
        state, metadata = read_trainer_checkpoint(Path(path))
        return {name: in_dtype(tensor, dtype) for name, tensor in state.items()}, metadata
    file, metadata = open_weights(path, what)
    return {name: in_dtype(file.read(name), dtype) for name in file.entries}, metadata


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floating-point tensors in `dtype`, where one is given; others as they are."""
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


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
    check_fit(own, state, allow_missing or set(), "weights do not fit the model")
    with torch.no_grad():
        for name, tensor in own.items():
            if name in state:
                tensor.copy_(state[name])
    return sorted(set(own) - set(state))


def check_fit(
    own: Mapping[str, Any],
    state: Mapping[str, Any],
    allow_missing: set[str],
    what: str,
    component: Callable[[str], str] = component_of,
) -> None:
    """Compares names and shapes, before anything is read or changed.

    Args:
        own: Name -> what is expected, with a `shape`.
        state: Name -> what is there, with a `shape`.
        allow_missing: Names that may be missing.
        what: Opens the message.
        component: Name -> the part it belongs to.

    Raises:
        UserError: missing, unexpected or mis-shaped names, listed by component with the nearest name.
    """
    missing = sorted(set(own) - set(state) - allow_missing)
    unexpected = sorted(set(state) - set(own))
    misshaped = [name for name in own if name in state and tuple(own[name].shape) != tuple(state[name].shape)]
    problems = _problems(own, state, missing, unexpected, misshaped, component)
    if problems:
        raise UserError(f"{what}: " + "; ".join(problems))


def _problems(
    own: Mapping[str, Any],
    state: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    component: Callable[[str], str],
) -> list[str]:
    def by_component(names: list[str]) -> str:
        counts = Counter(component(name) for name in names)
        return ", ".join(f"{count} of {part}" for part, count in counts.items())

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
