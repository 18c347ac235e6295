"""What patch embedders share: learned positions on a grid, pixel shuffle, the projector into the backbone.

n tiles, C channels of a grid cell, h x w cells, D hidden size of the backbone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.checkpoints import TensorLink
from mmframe.errors import UserError


def patches(tiles: Tensor, edge: int) -> Tensor:
    """Cuts tiles [n, 3, rows * edge, columns * edge] into patches [n, rows, columns, 3, edge, edge]."""
    n, channels, height, width = tiles.shape
    cut = tiles.reshape(n, channels, height // edge, edge, width // edge, edge)
    return cut.permute(0, 2, 4, 1, 3, 5)


def shuffle_block(downsample: float, version: str) -> int:
    """Edge of the blocks that a pixel shuffle of this ratio merges: 0.5 -> 2.

    Raises:
        UserError: a ratio that is not 1 / whole number, or an unknown version.
    """
    if version not in ("v1", "v2"):
        raise UserError(f"patch_embedder: shuffle_version={version!r} is not known; use v2 or v1")
    block = round(1 / downsample) if downsample > 0 else 0
    if not block or abs(block * downsample - 1) > 1e-6:
        raise UserError(f"patch_embedder: downsample={downsample} is no 1 / whole number; use 0.5, 0.25 or 1")
    return block


def pixel_shuffle(x: Tensor, block: int, version: str) -> Tensor:
    """Moves blocks of `block` x `block` grid cells into channels: [n, h, w, C] -> [n, h/b, w/b, C*b*b].

    v2 keeps the image upright; v1, of the first checkpoints, leaves it transposed (REF modeling_internvl_chat.py).
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h, w // block, c * block).transpose(1, 2)
    x = x.reshape(n, w // block, h // block, c * block * block)
    return x.transpose(1, 2) if version == "v2" else x


def grid_positions(cells: Tensor, rows: int, columns: int) -> Tensor:
    """Learned positions of a square grid [1, side * side, C] -> [1, C, rows, columns], bicubic in fp32 where the grid
    is not the stored one (REF resize_pos_embeddings: corners not aligned, no antialias)."""
    side = round(cells.shape[1] ** 0.5)
    grid = cells.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if (rows, columns) == (side, side):
        return grid
    resized = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False)
    return resized.to(grid.dtype)


def projector(channels: int, hidden_size: int) -> nn.Sequential:
    """LayerNorm, Linear, GELU (erf), Linear: `mlp1` of InternVL."""
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )


EMBEDDING_LINKS = [
    TensorLink("vision_model.embeddings.patch_embedding.weight", ("conv.weight",)),
    TensorLink("vision_model.embeddings.patch_embedding.bias", ("conv.bias",)),
    TensorLink("vision_model.embeddings.class_embedding", ("class_embedding",)),
    TensorLink("vision_model.embeddings.position_embedding", ("position",)),
]
PROJECTOR_LINKS = [
    TensorLink(f"mlp1.{layer}.{kind}", (f"mlp.{layer}.{kind}",)) for layer in (0, 1, 3) for kind in ("weight", "bias")
]
"""Official names of InternVL, the same for both of its patch embedders."""
