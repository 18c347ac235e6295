"""What the tokens of a tile are, known from its size: rows are made of this, without pixels or weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmframe.kinds import TokenKind


def grid_places(rows: int, columns: int) -> Tensor:
    """Row and column of each cell of a grid, row by row: int32 [rows * columns, 2], on the host."""
    axes = (torch.arange(count, dtype=torch.int32, device="cpu") for count in (rows, columns))
    return torch.cartesian_prod(*axes).view(-1, 2)


def described(kinds: Tensor, places: Tensor) -> np.ndarray:
    """Kinds [N] and places [N, 2] as rows are made of them: kind, row and column of each token, int32 [3, N]."""
    return np.vstack([kinds.numpy(), places.numpy().T]).astype(np.int32)


@dataclass(frozen=True)
class TileGeometry:
    """What of a patch embedder data needs, without its weights: loader processes get a copy.

    Attributes:
        image_size: Edge of a tile, pixels.
        tokens: Of such a tile, int32 [3, N], as `PatchEmbedder.tile_tokens` gives them.
    """

    image_size: int
    tokens: np.ndarray

    @classmethod
    def plain(cls, image_size: int, rows: int, columns: int) -> TileGeometry:
        """Tiles whose tokens are a grid and nothing else."""
        places = grid_places(rows, columns)
        return cls(image_size, described(torch.full((len(places),), TokenKind.IMAGE), places))

    @property
    def per_tile(self) -> int:
        """Visual tokens of a tile."""
        return self.tokens.shape[1]

    def tile_tokens(self, height: int, width: int) -> np.ndarray:
        assert height == width == self.image_size, "tiles are squares of the embedder's size"
        return self.tokens
