"""A model ready to use: from a finished stage, an import, an official folder, a GGUF file or the hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmframe import registry
from mmframe.errors import UserError
from mmframe.model import MultimodalLM
from mmframe.processing import ChatProcessor
from mmframe.safetensors_file import Entry
from mmframe.trainer_checkpoints import is_trainer_checkpoint
from mmframe.weights import check_fit, open_weights, read_weights


@dataclass(frozen=True)
class LoadedModel:
    """A model, the processor it was trained with, and what the file says of both and of what trained last.

    Attributes:
        maybe_processor: None where the checkpoint came without a tokenizer.
    """

    net: MultimodalLM
    maybe_processor: ChatProcessor | None
    metadata: dict[str, Any]

    @property
    def processor(self) -> ChatProcessor:
        """The processor.

        Raises:
            UserError: the checkpoint came without a tokenizer.
        """
        if self.maybe_processor is None:
            raise UserError(
                "model: the checkpoint came without a tokenizer, so it cannot read text; put its tokenizer.model or "
                "tokenizer.json into the official folder and import it again"
            )
        return self.maybe_processor

    @property
    def max_tiles(self) -> int | None:
        """Image budget that an official config gives; None where there is none."""
        config = (self.metadata.get("source") or {}).get("config", {})
        return config.get("max_dynamic_patch") if config.get("dynamic_image_size", True) else 1

    @property
    def trained_tiles(self) -> int | None:
        """Image budget that the last stage trained with, as its configuration says; None where there is none."""
        text = (self.metadata.get("run") or {}).get("config")
        data = (yaml.safe_load(text) or {}).get("data") if text else None
        return ((data or {}).get("init_args") or {}).get("max_tiles")


@dataclass(frozen=True)
class StoredModel:
    """A weights file of ours, understood but not read: the net is on the meta device.

    Attributes:
        read: name -> one tensor of the file.
        entries: name -> dtype and shape.
    """

    net: MultimodalLM
    processor: ChatProcessor | None
    metadata: dict[str, Any]
    entries: dict[str, Entry]
    read: Callable[[str], Tensor]


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


class _Unfilled(TorchFunctionMode):
    """Random numbers are not drawn: on the meta device torch would load its whole compiler to draw nothing."""

    fillers = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.fillers:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def empty_model(parts: dict[str, Any], expert_backend: str = "torch") -> MultimodalLM:
    """The model of component specs on the meta device: nothing is initialised only to be overwritten."""
    with torch.device("meta"), _Unfilled():
        router = parts.get("router") or {"class_path": registry.place(registry.get("router", "SharedRouter"))}
        embedder = parts.get("patch_embedder")
        embedder = None if embedder is None else build(embedder)
        return MultimodalLM(build(parts["backbone"]), embedder, build(router), expert_backend)


def resolve_paths(spec: Any, folder: Path) -> Any:
    """A spec where relative `path` arguments that lie in `folder` are absolute (a tokenizer beside its weights)."""
    if isinstance(spec, list):
        return [resolve_paths(item, folder) for item in spec]
    if not isinstance(spec, dict):
        return spec
    resolved = {key: resolve_paths(value, folder) for key, value in spec.items()}
    path = resolved.get("path")
    if isinstance(path, str) and not Path(path).is_absolute() and (folder / path).exists():
        resolved["path"] = str((folder / path).resolve())
    return resolved


def weights_file(path: str | Path) -> Path:
    """weights.safetensors of a run directory or an import; or the file, or the Trainer's checkpoint, itself."""
    path = Path(path).expanduser()
    return path / "weights.safetensors" if path.is_dir() and not is_trainer_checkpoint(path) else path


def open_model(path: str | Path) -> StoredModel:
    """Opens a weights file of ours without reading its tensors.

    Raises:
        UserError: no such file, a damaged one, one without a description of its model, or one that does not fit it.
    """
    path = weights_file(path)
    file, metadata = open_weights(path)
    net = empty_model(_parts(path, metadata))
    check_fit(net.state_dict(), file.entries, set(), f"{path}: weights do not fit the model they describe")
    return StoredModel(net, _processor(path, metadata), metadata, file.entries, file.read)


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_backend: str = "auto",
) -> LoadedModel:
    """Loads the weights.safetensors of a stage or an import, or the folder of either, or a Trainer's checkpoint.

    Args:
        path: File, run directory of a stage, or folder of an import.
        device: Where to.
        dtype: Of the parameters; None keeps the stored one.
        expert_backend: ``torch``, ``cupy``, or ``auto``: cupy where it was measured to be faster.

    Raises:
        UserError: no such file, a damaged one, or one without a description of its model.
    """
    file = weights_file(path)
    state, metadata = read_weights(file, dtype, what="model")
    net = empty_model(_parts(file, metadata), expert_backend)
    return LoadedModel(_filled(net, state, device, str(file)), _processor(file, metadata), metadata)


def from_pretrained(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    expert_backend: str = "auto",
) -> LoadedModel:
    """Loads a model from wherever it is; the host holds it once.

    Args:
        source: Run directory, weights file, folder of an import, a Trainer's checkpoint; official folder (config.json
            and safetensors), .gguf file of a Llama, or hub id ORG/NAME[@REVISION].
        device: Where to.
        dtype: Of the parameters; None keeps the stored one.
        expert_backend: ``torch``, ``cupy``, or ``auto``: cupy where it was measured to be faster.

    Raises:
        UserError: nothing of these, or a checkpoint that is damaged or cannot be honoured.
    """
    path = Path(source).expanduser()
    if path.suffix != ".gguf" and (is_trainer_checkpoint(path) or weights_file(path).is_file()):
        return load(path, device, dtype, expert_backend)
    from mmframe.convert import Import  # here: convert imports this module
    from mmframe.official import open_official

    made = Import(open_official(source), dtype)
    net = _filled(empty_model(made.parts, expert_backend), dict(made.tensors()), device, str(source))
    processor = None if made.parts["processor"] is None else build(made.parts["processor"])
    return LoadedModel(net, processor, made.metadata)


def _filled(net: MultimodalLM, state: dict[str, Tensor], device: torch.device | str, what: str) -> MultimodalLM:
    check_fit(net.state_dict(), state, set(), f"{what}: weights do not fit the model they describe")
    types = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()})
    if len(types) > 1:
        raise UserError(f"{what}: is stored in {' and '.join(types)}; say which to compute in: dtype, or --dtype bf16")
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).to(device=device).eval()


def _parts(file: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    if "model" not in metadata:
        raise UserError(f"{file}: no description of the model in the file; it was not written by a stage of mmframe")
    return metadata["model"]


def _processor(file: Path, metadata: dict[str, Any]) -> ChatProcessor | None:
    spec = metadata["model"].get("processor")
    return None if spec is None else build(resolve_paths(spec, file.absolute().parent))
