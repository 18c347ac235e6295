"""Pictures from files, images to tiles: dynamic high resolution (grid, tiles, thumbnail), tiles to tensors.

A picture becomes a grid of square tiles whose shape is closest to the picture's own, plus one thumbnail of the whole
picture as the last tile. The number of tiles follows from (width, height) alone, so prompts, packing and error
messages never need to decode a picture.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from mmframe.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 89_478_485
"""A picture with more is refused before it is decoded: a quarter of a gigabyte, Pillow's own limit for a warning."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the picture upright."""


class TooManyPixels(UserError):
    """A picture is larger than the limit; nothing of it was decoded."""


def open_image(source: str | Path | BinaryIO | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture as a person sees it, as RGB with 8 bits.

    A camera's EXIF orientation is applied (the released Mono-InternVL leaves such pictures lying on their side). An
    alpha channel is dropped as `to_rgb` does, not composited: that is what the released models saw in training. Of an
    animation the first frame is read. Grey of more than 8 bits is scaled, see `to_rgb`.

    Args:
        source: path, open binary file, or the bytes of a file.
        max_pixels: a picture with more pixels is refused by its header, before anything is decoded.

    Raises:
        UserError: missing, empty, truncated, corrupt, too large or no picture; one line that names the file.
    """
    with _header(source) as (image, name):
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixels(
                f"cannot read the picture {name}: {width} x {height} = {width * height:,} pixels, more than the limit "
                f"of {max_pixels:,}; make the picture smaller"
            )
        turn = _TURNS.get(_orientation(image))
        image.load()
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def image_size(source: str | Path | BinaryIO | bytes) -> tuple[int, int]:
    """(width, height) in pixels that `open_image` would give, read from the header alone.

    Raises:
        UserError: missing, empty or no picture; one line that names the file.
    """
    with _header(source) as (image, _):
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


@contextmanager
def _header(source: str | Path | BinaryIO | bytes) -> Iterator[tuple[Image.Image, str]]:
    """A picture of which only the header is read, and its name; whatever goes wrong with it becomes a UserError."""
    if isinstance(source, bytes):
        name, file = f"of {len(source)} bytes", io.BytesIO(source)
    else:
        file = Path(source).expanduser() if isinstance(source, str) else source
        name = str(file if isinstance(file, Path) else getattr(file, "name", "of an open file"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels says so, as an error
            with Image.open(file) as image:
                yield image, name
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read the picture {name}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read the picture {name}: it is a folder") from error
    except UnidentifiedImageError as error:
        empty = source == b"" or (isinstance(file, Path) and file.stat().st_size == 0)
        reason = "the file is empty" if empty else "not a picture of a format that Pillow knows"
        raise UserError(f"cannot read the picture {name}: {reason}") from error
    except Image.DecompressionBombError as error:  # far beyond the limit: Pillow does not even tell its size
        raise TooManyPixels(f"cannot read the picture {name} ({error}); make the picture smaller") from error
    except Exception as error:  # decoders raise nearly everything when a file is corrupt
        raise UserError(f"cannot read the picture {name} ({error or type(error).__name__})") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of a picture that is not decoded yet."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, and its size is that of the turned picture
    try:
        # Not image.getexif(): for a PNG that decodes the whole picture in search of a chunk behind it.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block says nothing about the picture
        return 1
    return orientation if orientation in _TURNS else 1


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
    """RGB version of a picture; an alpha channel is dropped, not composited (as the reference does).

    Grey of more than 8 bits is scaled where Pillow would clip it: 16 bits to 8; integers of 32 bits and floats by the
    smallest of 1 (floats alone), 255 and 65535 that holds them all, else by their largest value. Negative values, NaN
    and infinity become black.
    """
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; straight to RGB Pillow warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0, posinf=0, neginf=0).clip(0)
    largest = float(values.max(initial=0))
    known = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = next((limit for limit in known if largest <= limit), largest)
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def cut_tiles(
    image: Image.Image, tile: int, max_tiles: int, thumbnail: bool = True, out: np.ndarray | None = None
) -> Tensor:
    """Resizes a picture to its grid and cuts it.

    Args:
        image: any PIL picture.
        tile: side of a tile, pixels.
        max_tiles: most tiles of the grid; 1 gives one tile: the whole picture, resized.
        thumbnail: append the whole picture as the last tile when the grid has more than one.
        out: uint8 [count, tile, tile, 3] to write into; None: a new array.

    Returns:
        Tiles in row-major order, uint8 [count, 3, tile, tile], count as `count_tiles` says; channels last in memory, as
        pictures are.
    """
    image = to_rgb(image)
    cols, rows = choose_grid(image.width, image.height, tile, max_tiles)
    if out is None:
        count = count_tiles(image.width, image.height, tile, max_tiles, thumbnail)
        out = np.empty((count, tile, tile, 3), dtype=np.uint8)
    # The whole picture is stretched to the grid (bicubic, ratio not kept) and cut; tiles do not overlap.
    whole = _resize(image, cols * tile, rows * tile).reshape(rows, tile, cols, tile, 3)
    out[: rows * cols].reshape(rows, cols, tile, tile, 3)[...] = whole.swapaxes(1, 2)
    if len(out) > rows * cols:
        out[-1] = _resize(image, tile, tile)
    return torch.from_numpy(out.transpose(0, 3, 1, 2))


class TileBuffer:
    """Tiles of several pictures, cut right into one array: tiles are nearly all bytes of a row, so none is copied.

    Args:
        count: how many tiles there will be; it grows if there are more.
        tile: side of a tile, pixels.
        thumbnail: see `cut_tiles`.
    """

    def __init__(self, count: int, tile: int, thumbnail: bool = True) -> None:
        self.tile, self.thumbnail, self.used = tile, thumbnail, 0
        self._pixels = np.empty((count, tile, tile, 3), dtype=np.uint8)

    def cut(self, image: Image.Image, max_tiles: int) -> int:
        """Cuts a picture; returns the number of its tiles."""
        count = count_tiles(image.width, image.height, self.tile, max_tiles, self.thumbnail)
        if self.used + count > len(self._pixels):
            self._pixels = np.concatenate([self._pixels, np.empty((count, *self._pixels.shape[1:]), dtype=np.uint8)])
        cut_tiles(image, self.tile, max_tiles, self.thumbnail, self._pixels[self.used : self.used + count])
        self.used += count
        return count

    def tiles(self, first: int = 0) -> Tensor:
        """The tiles from number `first` on: uint8 [n, 3, tile, tile], a view."""
        return torch.from_numpy(self._pixels[first : self.used].transpose(0, 3, 1, 2))


def _resize(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bicubic resize to uint8 [height, width, 3], read-only."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def normalize(tiles: Tensor, mean: tuple[float, ...], std: tuple[float, ...], subtract_median: bool = False) -> Tensor:
    """uint8 tiles [count, 3, H, W] to float32, contiguous: (pixel / 255 - mean) / std for each channel.

    Args:
        tiles: the tiles of ONE picture.
        mean: per channel, in units of 0..1.
        std: per channel, in units of 0..1.
        subtract_median: first take away the picture's own median colour, so that a flat background becomes zero.
    """
    pixels = tiles.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if subtract_median:
        median = pixels.transpose(0, 1).reshape(pixels.shape[1], -1).median(dim=1).values
        pixels.sub_(median.view(1, -1, 1, 1))
    mean_C, std_C = (torch.tensor(values, device=tiles.device).view(1, -1, 1, 1) for values in (mean, std))
    return pixels.sub_(mean_C).div_(std_C)
