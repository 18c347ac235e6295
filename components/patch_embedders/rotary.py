"""Rotary angles of places in a grid, for embedders that know places by rotation.

K cells of a grid, d size of what is rotated.
"""

import torch
from torch import Tensor

from mmframe.tile_tokens import grid_places


def grid_angles(rows: int, columns: int, size: int, theta: float, device: torch.device) -> Tensor:
    """Angles of each cell, row by row: [K, 2, size / 4] in fp32, of its row and of its column.

    Half of the pairs of numbers turn with the row, half with the column, each half with the frequencies of plain rotary
    positions of its size.
    """
    exponents = torch.arange(0, size // 2, 2, dtype=torch.float32, device=device) / (size // 2)
    return grid_places(rows, columns).to(device, torch.float32)[:, :, None] * theta**-exponents


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turns neighbouring numbers (0, 1), (2, 3), ... of x [..., K, d] by angles [K, d / 2], computed in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
