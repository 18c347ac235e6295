"""ToyData: drawn shapes with questions, made on the fly; for toy recipes and tests, needs no files."""

import numpy as np
import torch
from torch import Tensor

from mmframe.batch import Sample
from mmframe.contracts import PatchEmbedder
from mmframe.data.base import MultimodalData, Rows
from mmframe.data.order import hash64
from mmframe.errors import UserError
from mmframe.processing import ChatProcessor
from mmframe.registry import register

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle", "bar")


@register("data")
class ToyData(MultimodalData):
    """Coloured shapes on plain backgrounds, with a caption or questions. A pure function of (seed, index).

    Rows come in three forms: two questions that share the image, a conversation that describes it, and text alone.

    Args:
        size: Training rows of an epoch.
        val_size: Validation rows, other pictures than those of training; 0 for none.
        text_share: Share of the rows that are text without an image.
        images_per_row: Images of a conversation; more than one asks about the last.
        max_tiles: Most tiles of a row's images, thumbnails not counted.
        batch_size: Rows of a batch, for each device.
        val_batch_size: The same in validation; null takes batch_size.
        seed: Of everything drawn.
        num_workers: Loader processes; 0 loads in the training process.
    """

    def __init__(
        self,
        size: int = 256,
        val_size: int = 16,
        text_share: float = 0.2,
        images_per_row: int = 1,
        max_tiles: int = 1,
        batch_size: int = 4,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, seed, num_workers)
        if size < 1 or val_size < 0 or images_per_row < 1 or max_tiles < 1 or not 0 <= text_share <= 1:
            raise UserError(
                f"ToyData: size={size}, val_size={val_size}, images_per_row={images_per_row}, max_tiles={max_tiles}, "
                f"text_share={text_share}; sizes must be positive and text_share in 0..1"
            )
        self.size, self.val_size = size, val_size
        self.text_share, self.images_per_row, self.max_tiles = text_share, images_per_row, max_tiles

    def build(self, processor: ChatProcessor, embedder: PatchEmbedder) -> tuple[Rows, Rows | None]:
        validation = _ToyRows(self, processor, embedder, self.val_size, stream=1) if self.val_size else None
        return _ToyRows(self, processor, embedder, self.size, stream=0), validation


class _ToyRows:
    """The rows of an epoch; training rows differ from epoch to epoch, validation rows do not."""

    def __init__(
        self, data: ToyData, processor: ChatProcessor, embedder: PatchEmbedder, size: int, stream: int
    ) -> None:
        self.data, self.processor, self.embedder, self.size, self.stream = data, processor, embedder, size, stream

    def __len__(self) -> int:
        return self.size

    def sample(self, epoch: int, index: int) -> Sample:
        data, key = self.data, f"toy-{self.stream}:{index}"
        epoch = epoch if self.stream == 0 else 0
        draws = hash64(3 * data.images_per_row + 2, data.seed, self.stream, epoch, index)
        form, mode, *rest = (int(d >> np.uint64(11)) for d in draws)
        if form < data.text_share * 2**53:
            word = sorted(COLOURS)[mode % len(COLOURS)]
            talk = [{"from": "human", "value": f"repeat: {word}"}, {"from": "gpt", "value": word}]
            return self.processor.encode(talk, [], self.embedder, key=key)
        drawn = [drawn_shape(self.embedder.image_size, *rest[3 * i : 3 * i + 3]) for i in range(data.images_per_row)]
        _, colour, shape = drawn[-1]
        images = [self._tiles(picture) for picture, _, _ in drawn]
        if len(images) == 1 and mode % 2:
            asked = [("what color?", colour), ("what shape?", shape)]
            return self.processor.encode_branches(asked, images, self.embedder, data.max_tiles, key)
        question = "<image>" * len(images) + "\ndescribe the last image"
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": f"a {colour} {shape}"}]
        return self.processor.encode(talk, images, self.embedder, data.max_tiles, key)

    def _tiles(self, picture: Tensor) -> Tensor:
        """As many tiles as asked for: the picture, repeated (a toy has no detail to zoom into)."""
        share = max(1, self.data.max_tiles // self.data.images_per_row)
        return picture.expand(share, -1, -1, -1)


def drawn_shape(side: int, colour_draw: int, shape_draw: int, place_draw: int) -> tuple[Tensor, str, str]:
    """One picture, uint8 [1, 3, side, side], its colour and its shape."""
    colour = sorted(COLOURS)[colour_draw % len(COLOURS)]
    shape = SHAPES[shape_draw % len(SHAPES)]
    half = max(1, side // 4)
    spread = max(1, side - 2 * half)
    row, column = half + place_draw % spread, half + place_draw // spread % spread
    y, x = torch.meshgrid(torch.arange(side) - row, torch.arange(side) - column, indexing="ij")
    inside = {
        "square": (y.abs() < half) & (x.abs() < half),
        "circle": y**2 + x**2 < half**2,
        "bar": (y.abs() < max(1, half // 3)) & (x.abs() < half),
    }[shape]
    background = 170 + place_draw // (spread * spread) % 80
    paint = torch.tensor(COLOURS[colour], dtype=torch.uint8).view(3, 1, 1)
    return torch.where(inside, paint, torch.tensor(background, dtype=torch.uint8))[None], colour, shape
