"""Images to tiles: dynamic high resolution (grid, tiles, thumbnail), and tiles to normalised tensors.

A picture becomes a grid of square tiles whose shape is closest to the picture's own, plus one thumbnail of the whole
picture as the last tile. The number of tiles follows from (width, height) alone, so prompts, packing and error
messages never need to decode a picture.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (cols, rows) with min_tiles <= cols * rows <= max_tiles, small areas first."""
    found = [
        (cols, rows)
        for cols in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // cols + 1)
        if min_tiles <= cols * rows
    ]
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1], grid[0])))


@lru_cache(maxsize=65536)
def choose_grid(width: int, height: int, tile: int, max_tiles: int, min_tiles: int = 1) -> tuple[int, int]:
    """Picks the grid of tiles for a picture.

    The grid whose ratio cols / rows is nearest to width / height wins. Grids of the same ratio (1x1, 2x2, 3x3) tie
    exactly; the larger one is taken only if the picture has more than half the pixels that the grid can hold.

    Args:
        width: picture width, pixels.
        height: picture height, pixels.
        tile: side of a tile, pixels.
        max_tiles: most tiles of the grid, the thumbnail not counted.
        min_tiles: fewest tiles of the grid.

    Returns:
        (cols, rows)

    Raises:
        ValueError: an argument is not positive, or max_tiles < min_tiles.
    """
    if min(width, height, tile, min_tiles) < 1 or max_tiles < min_tiles:
        raise ValueError(f"no grid for a {width}x{height} picture with {min_tiles}..{max_tiles} tiles of {tile} pixels")
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for cols, rows in _grids(min_tiles, max_tiles):
        distance = abs(aspect - cols / rows)
        fills_half = width * height > 0.5 * tile * tile * cols * rows
        if distance < best_distance or (distance == best_distance and fills_half):
            best, best_distance = (cols, rows), distance
    return best


def count_tiles(width: int, height: int, tile: int, max_tiles: int, thumbnail: bool = True) -> int:
    """Number of tiles that `cut_tiles` returns for a picture of this size, without reading it."""
    cols, rows = choose_grid(width, height, tile, max_tiles)
    count = cols * rows
    return count + 1 if thumbnail and count > 1 else count


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB copy of a picture; an alpha channel is dropped, not composited (as the reference does)."""
    return image if image.mode == "RGB" else image.convert("RGB")


def cut_tiles(image: Image.Image, tile: int, max_tiles: int, thumbnail: bool = True) -> Tensor:
    """Resizes a picture to its grid and cuts it.

    Args:
        image: any PIL picture.
        tile: side of a tile, pixels.
        max_tiles: most tiles of the grid; 1 gives one tile: the whole picture, resized.
        thumbnail: append the whole picture as the last tile when the grid has more than one.

    Returns:
        Tiles in row-major order, uint8 [count, 3, tile, tile], count as `count_tiles` says.
    """
    image = to_rgb(image)
    cols, rows = choose_grid(image.width, image.height, tile, max_tiles)
    # The whole picture is stretched to the grid (bicubic, ratio not kept) and cut; tiles do not overlap.
    whole = _resize(image, cols * tile, rows * tile)
    tiles = whole.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(rows * cols, tile, tile, 3)
    if thumbnail and rows * cols > 1:
        tiles = np.concatenate([tiles, _resize(image, tile, tile)[None]])
    return torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))


def _resize(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bicubic resize to uint8 [height, width, 3]."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)  # a copy: PIL's own buffer is read-only


def normalize(tiles: Tensor, mean: tuple[float, ...], std: tuple[float, ...], subtract_median: bool = False) -> Tensor:
    """uint8 tiles [count, 3, H, W] to float32: (pixel / 255 - mean) / std for each channel.

    Args:
        tiles: the tiles of ONE picture.
        mean: per channel, in units of 0..1.
        std: per channel, in units of 0..1.
        subtract_median: first take away the picture's own median colour, so that a flat background becomes zero.
    """
    pixels = tiles.float().div_(255)
    if subtract_median:
        median = pixels.transpose(0, 1).reshape(pixels.shape[1], -1).median(dim=1).values
        pixels.sub_(median.view(1, -1, 1, 1))
    return pixels.sub_(torch.tensor(mean).view(1, -1, 1, 1)).div_(torch.tensor(std).view(1, -1, 1, 1))
