"""Weights out of a Trainer's checkpoint: one file, or the folder that fsdp2 writes with a part of each rank.

weights.safetensors is what a finished stage hands on. This is for a run that was cut off, or one that is still going:
its last.ckpt as `model.init_from`, in `mmframe.from_pretrained`, as --model. Only plain data is read (weights_only).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmframe.errors import UserError

SHARDED_FACTS = "meta.pt"
"""What Lightning writes beside the shards: all of a checkpoint that is no tensor of model or optimiser."""


def is_sharded_checkpoint(path: Path) -> bool:
    """A folder in torch's distributed format, with Lightning's file beside it."""
    return (path / ".metadata").is_file() and (path / SHARDED_FACTS).is_file()


def is_trainer_checkpoint(path: Path) -> bool:
    """A folder of shards, or a file of torch.save."""
    return is_sharded_checkpoint(path) or (path.suffix == ".ckpt" and path.is_file() and zipfile.is_zipfile(path))


def read_trainer_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata as mmframe.weights.read_weights gives them; what an adapter adds is merged.

    Raises:
        UserError: not a checkpoint of ours, or a damaged one.
    """
    try:
        facts, tensors = _sharded(path) if path.is_dir() else _file(path)
    except Exception as error:  # torch's readers raise many kinds
        raise UserError(f"{path} is damaged or no checkpoint of a trainer: {str(error).splitlines()[0]}") from error
    model = facts.get("hyper_parameters") or {}
    if "backbone" not in model or not tensors:
        raise UserError(f"{path}: no description of a model in the checkpoint; it was not written by mmframe")
    state = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
    if facts.get("adapter") is not None:
        state = _merged(state, model, facts["adapter"])
    metadata = {"model": dict(model), "run": facts.get("mmframe") or {}, "source": facts.get("source")}
    return state, {key: value for key, value in metadata.items() if value is not None}


def trained_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors as they were trained: an adapter's beside the model's. Of a folder of shards, those of `net` alone."""
    return (_sharded(path) if path.is_dir() else _file(path))[1]


def _file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return content, content["state_dict"]


def _sharded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    facts = torch.load(path / SHARDED_FACTS, map_location="cpu", weights_only=True)
    reader = FileSystemReader(path)
    prefix = "state_dict."
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(f"{prefix}net.") and isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return facts, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _merged(state: dict[str, Tensor], model: dict[str, Any], adapter: Any) -> dict[str, Tensor]:
    from mmframe.loading import build, empty_model  # here: loading imports this module

    net, added = empty_model(model), build(adapter)
    with torch.device("meta"):
        added.install(net)
    net.load_state_dict(state, assign=True)
    added.merge(net)
    return dict(net.state_dict())
