"""Weights of an InternViT file, official or timm's -> our InternViT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mmframe.errors import UserError
from mmframe.safetensors_file import SafetensorsFile
from mmframe.weights import load_weights

if TYPE_CHECKING:
    from components.patch_embedders.internvit import InternViT

TIMM = [
    (r"patch_embed\.proj\.(\w+)", r"conv.\1"),
    (r"cls_token", r"class_embedding"),
    (r"pos_embed", r"position"),
    (r"blocks\.(\d+\.ls[12])\.gamma", r"layers.\1"),
    (r"blocks\.(.+)", r"layers.\1"),
]
"""Names of timm's vision transformers and ours; the first that fits."""


def from_timm(name: str) -> str:
    """timm's name of a tensor -> ours; one that is not timm's stays as it is, so that a strict load reports it."""
    for pattern, ours in TIMM:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def load_encoder(embedder: InternViT, path: Path) -> None:
    """Fills the encoder, and the projector where the file has one. A language model beside them is left alone.

    Raises:
        UserError: no such file, or tensors that do not fit, listed with the nearest name.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"patch_embedder: weights={path} is no safetensors file and no folder with one")
    official = {link.theirs: link.ours[0] for link in embedder.links()}
    official |= {name.removeprefix("vision_model."): ours for name, ours in official.items()}
    state: dict[str, Tensor] = {}
    for file in map(SafetensorsFile, files):
        for name in file.entries:
            if not name.startswith("language_model."):
                state[official.get(name) or from_timm(name)] = file.read(name)
    projector = {name for name, _ in embedder.named_parameters() if name.startswith("mlp.")}
    load_weights(embedder, state, allow_missing=projector)
