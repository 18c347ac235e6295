"""A finished stage -> a model ready to use, from weights.safetensors alone."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmframe.errors import UserError
from mmframe.model import MultimodalLM
from mmframe.processing import ChatProcessor
from mmframe.weights import read_weights


@dataclass(frozen=True)
class LoadedModel:
    """A model, the processor it was trained with, and what the file says of both and of what trained last."""

    net: MultimodalLM
    processor: ChatProcessor
    metadata: dict[str, Any]


def build(spec: Any) -> Any:
    """Recorded constructor call (Component.spec) -> object; nested specs are built first.

    Raises:
        UserError: the class cannot be imported; names the plug-in to install.
    """
    if isinstance(spec, list):
        return [build(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    if "class_path" not in spec:
        return {key: build(value) for key, value in spec.items()}
    module, _, name = spec["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"component {spec['class_path']} cannot be imported; install the package it came from"
        ) from error
    return cls(**{key: build(value) for key, value in spec.get("init_args", {}).items()})


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Loads the weights.safetensors of a stage, or the folder of the stage.

    Args:
        path: File or run directory of a stage.
        device: Where to.
        dtype: Of the parameters; None keeps the stored one.

    Raises:
        UserError: no such file, a damaged one, or one without a description of its model.
    """
    path = Path(path)
    file = path / "weights.safetensors" if path.is_dir() else path
    state, metadata = read_weights(file)
    if "model" not in metadata:
        raise UserError(f"{file}: no description of the model in the file; it was not written by a stage of mmframe")
    parts = metadata["model"]
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        net = MultimodalLM(build(parts["backbone"]), build(parts["patch_embedder"]), build(parts["router"]))
    net.load_state_dict(state, assign=True)
    net.requires_grad_(False)
    return LoadedModel(net.to(device=device, dtype=dtype).eval(), build(parts["processor"]), metadata)
