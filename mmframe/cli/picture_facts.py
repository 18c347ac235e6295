"""What a picture becomes: its grid, its tiles, its tokens. Known from its size, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from mmframe.data.pictures import Picture, picture_size
from mmframe.errors import UserError
from mmframe.images import choose_grid
from mmframe.loading import LoadedModel


@dataclass(frozen=True)
class PictureFacts:
    """Pixels and tiles of one picture.

    Attributes:
        width, height: pixels of the picture.
        columns, rows: tiles of the grid.
        thumbnail: whether the whole picture follows as one more tile.
        tile: side of a tile, pixels.
        tokens_per_tile: visual tokens.
    """

    width: int
    height: int
    columns: int
    rows: int
    thumbnail: bool
    tile: int
    tokens_per_tile: int

    @property
    def tiles(self) -> int:
        return self.columns * self.rows + self.thumbnail

    @property
    def tokens(self) -> int:
        return self.tiles * self.tokens_per_tile

    def __str__(self) -> str:
        grid = f"{self.columns}x{self.rows} tiles{' + thumbnail' if self.thumbnail else ''}"
        grid = "1 tile" if self.tiles == 1 else grid
        return f"{self.width}x{self.height} px, {grid}, {self.tokens} tokens"


def picture_facts(size: tuple[int, int], model: LoadedModel, max_tiles: int) -> PictureFacts:
    """The facts of a picture of this size.

    Args:
        size: width and height, pixels.
        model: says the size of a tile and how many tokens it becomes.
        max_tiles: most tiles of this picture, the thumbnail not counted.

    Raises:
        UserError: the model takes no pictures.
    """
    embedder = model.net.patch_embedder
    if embedder is None:
        raise UserError("this model is a text-only LLM and takes no pictures; use one with a patch embedder")
    side = embedder.image_size
    columns, rows = choose_grid(*size, side, max_tiles)
    thumbnail = model.processor.thumbnail and columns * rows > 1
    return PictureFacts(*size, columns, rows, thumbnail, side, embedder.num_tokens(side, side))


def tokens_of_picture(picture: Picture, model: LoadedModel, max_tiles: int) -> int:
    """Visual tokens of a picture, from its header; 0 if it cannot be read or the model takes none."""
    try:
        return picture_facts(picture_size(picture), model, max_tiles).tokens
    except UserError:
        return 0
