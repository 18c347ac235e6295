"""A tiny model on the disk, pictures and questions for it: what chat, generate, web and predict are tested with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.weights import save_weights

from ..helpers import tiny_llama, tiny_net


def tiny_model(folder: Path, image_size: int = 8, template: str = "plain", **sizes: Any) -> Path:
    """Writes weights.safetensors of a model with FFN experts that says rough, but always the same things."""
    processor = ChatProcessor(ByteTokenizer(), template=template, image_start="<img>", image_end="</img>")
    net = tiny_net(backbone=tiny_llama(vocab_size=264, tied_head=False, **sizes), distinct=True, image_size=image_size)
    parts = {"backbone": net.backbone, "patch_embedder": net.patch_embedder, "router": net.router}
    with torch.no_grad():  # it speaks in printable characters, and never ends by itself
        net.backbone.output.weight[:32] = net.backbone.output.weight[127:] = 0
        net.backbone.output.weight[32:127] *= 3
    specs = {name: part.spec for name, part in parts.items()} | {"processor": processor.spec}
    save_weights(net, folder / "weights.safetensors", {"model": specs})
    return folder


def picture(path: Path, width: int = 20, height: int = 12, seed: int = 0) -> Path:
    """Writes a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


def write_rows(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    """Writes a JSONL file; a string is written as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
