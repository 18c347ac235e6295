"""`start_from: CHECKPOINT`: a recipe takes model and weights from a checkpoint of ours. Reads its header; no torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mmframe.cli.merge import merge_keys
from mmframe.errors import UserError
from mmframe.paths import data_path

PARTS = ("backbone", "patch_embedder", "router", "processor")
_FINGERPRINT_BLOCKS, _BLOCK = 64, 1 << 16


def lay_under(model: dict[str, Any], path: str) -> dict[str, Any]:
    """The `model:` section of a recipe over what a checkpoint says of its model.

    Args:
        model: Section of the recipe; what it says of the parts wins, by the rules of merging.
        path: `start_from`: a folder with weights.safetensors, or the file.

    Raises:
        UserError: nothing there, or no description in it.
    """
    file = weights_file(path)
    return {**merge_keys(described(file), model), "init_from": str(file)}


def check_complete(model: dict[str, Any], path: str) -> None:
    """Raises UserError for a part that neither the checkpoint nor the recipe describes."""
    for part in PARTS:
        if part not in model:
            why = "was imported without a tokenizer" if part == "processor" else "is a text LLM"
            raise UserError(f"start_from: {path} {why}, so it has no {part}; name one: --model.{part}=CLASS")


def weights_file(path: str) -> Path:
    """The weights file of a checkpoint given by its folder or by the file itself.

    Raises:
        UserError: there is none.
    """
    given = data_path(path)
    file = given / "weights.safetensors" if given.is_dir() else given
    is_gguf = file.suffix == ".gguf"
    if file.is_file() and not is_gguf:
        return file
    if is_gguf or (given / "config.json").is_file():
        raise UserError(f"start_from: {given} is an official checkpoint; run `mmframe import {given} DST` and give DST")
    raise UserError(
        f"start_from: {file} does not exist; give a folder that `mmframe import` wrote, or the run directory of a "
        "finished stage"
    )


def described(file: Path) -> dict[str, Any]:
    """Component specs that the header of a weights file holds; a part that the model lacks is left out.

    Raises:
        UserError: no safetensors file, or one without a description.
    """
    parts = _metadata(file).get("model")
    if not isinstance(parts, dict):
        raise UserError(f"start_from: {file} does not describe its model; run `mmframe import SRC DST` and give DST")
    parts = {part: parts[part] for part in PARTS if parts.get(part) is not None}
    if "patch_embedder" in parts:  # the command line links it to the backbone's
        embedder = parts["patch_embedder"]
        arguments = {key: value for key, value in embedder.get("init_args", {}).items() if key != "hidden_size"}
        parts["patch_embedder"] = {**embedder, "init_args": arguments}
    if "processor" in parts:
        parts["processor"] = _beside(parts["processor"], file.parent)
    return parts


def _metadata(file: Path) -> dict[str, Any]:
    """What a safetensors file says of itself: 8 bytes of length, a JSON header, in it texts that are JSON in ours."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("no header")
            texts = json.loads(stream.read(length)).get("__metadata__") or {}
        return {key: json.loads(text) for key, text in texts.items() if key == "model"}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"start_from: {file} is damaged or no safetensors file ({error})") from error


def _beside(spec: Any, folder: Path) -> Any:
    """A spec whose relative `path` arguments, where they exist in `folder`, name the files there."""
    if isinstance(spec, list):
        return [_beside(item, folder) for item in spec]
    if not isinstance(spec, dict):
        return spec
    out = {key: _beside(value, folder) for key, value in spec.items()}
    path = out.get("path")
    if isinstance(path, str) and not Path(path).is_absolute() and (folder / path).exists():
        out["path"] = os.path.normpath(folder / path)
    return out


def fingerprint(file: Path) -> str | None:
    """Identity of a weights file, from its size and samples of its bytes; None when it does not exist."""
    if not file.is_file():
        return None
    size = file.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with open(file, "rb") as stream:
        for block in range(_FINGERPRINT_BLOCKS):
            stream.seek(size * block // _FINGERPRINT_BLOCKS)
            found.update(stream.read(_BLOCK))
    return found.hexdigest()[:12]
