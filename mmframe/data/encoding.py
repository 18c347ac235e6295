"""Encoder: a record becomes a row of tokens and tiles, or is counted without decoding anything."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmframe.contracts import PatchEmbedder
from mmframe.data.pictures import Picture, open_picture, picture_size
from mmframe.data.records import Record
from mmframe.data.source import BadRecord
from mmframe.errors import UserError
from mmframe.images import MAX_PIXELS, TileBuffer, TooManyPixels, count_tiles
from mmframe.processing import ChatProcessor
from mmframe.processing.row import PLACEHOLDER, Row, Tally
from mmframe.tile_tokens import TileGeometry

JPEG_QUALITY = (75, 100)


class Encoder:
    """Turns records into rows, with one and the same reading for counting and for training.

    Args:
        processor: of the model.
        embedder: of the model.
        max_pixels: larger pictures are refused by their header, before anything is decoded.
    """

    def __init__(self, processor: ChatProcessor, embedder: PatchEmbedder, max_pixels: int = MAX_PIXELS) -> None:
        self.processor, self.max_pixels = processor, max_pixels
        side = embedder.image_size
        self.embedder: Any = TileGeometry(side, embedder.tile_tokens(side, side))

    def measure(self, record: Record, max_tiles: int, prompt: str = "") -> Tally:
        """Tokens, image tokens, supervised tokens and tiles of the row that `encode` will make, from headers alone.

        Raises:
            BadRecord: a picture is missing, broken or too large; turns or placeholders do not fit; nothing to learn.
        """
        share = self._share(record, max_tiles)
        tiles = []
        for picture in record.images:
            width, height = _read(record, picture, picture_size)
            if width * height > self.max_pixels:
                raise BadRecord(
                    "picture too large",
                    f"sample {record.key!r}: {picture} has {width} x {height} = {width * height:,} pixels, more than "
                    f"{self.max_pixels:,}",
                )
            tiles.append(count_tiles(width, height, self.embedder.image_size, share, self.processor.thumbnail))
        try:
            count = self.processor.row(_content(record, prompt), tiles, self.embedder, max_tiles, record.key, Tally)
        except BadRecord:
            raise
        except UserError as error:
            raise BadRecord("conversation", str(error)) from error
        if not count.supervised_tokens:
            raise BadRecord("nothing to learn", f"sample {record.key!r}: there is no answer in it to learn from")
        return count

    def encode(
        self, record: Record, max_tiles: int, buffer: TileBuffer, prompt: str = "", jpeg_quality: int | None = None
    ) -> Row:
        """The row; its tiles are cut into the buffer.

        Args:
            record: to encode.
            max_tiles: most tiles of its pictures, shared evenly; thumbnails not counted.
            buffer: for the tiles; a bad record leaves it as it was.
            prompt: what is asked where the record has a caption alone.
            jpeg_quality: pictures go through a JPEG of this quality first.

        Raises:
            BadRecord: as `measure`, or a picture cannot be decoded.
        """
        share = self._share(record, max_tiles)
        first = buffer.used
        try:
            counts = []
            for picture in record.images:
                image = _read(record, picture, lambda p: open_picture(p, self.max_pixels))
                if jpeg_quality is not None:
                    image = through_jpeg(image, jpeg_quality)
                counts.append(buffer.cut(image, share))
            return self.processor.row(_content(record, prompt), counts, self.embedder, max_tiles, record.key)
        except UserError as error:
            buffer.used = first
            if isinstance(error, BadRecord):
                raise
            raise BadRecord("conversation", str(error)) from error

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens that a prompt adds to the row of a caption."""
        record = Record("prompt", (Path("-"),), caption="x")
        with_it, without = (
            self.processor.row(_content(record, p), [1], self.embedder, kind=Tally) for p in (prompt, "")
        )
        return with_it.tokens - without.tokens

    @staticmethod
    def _share(record: Record, max_tiles: int) -> int:
        return max(1, max_tiles // max(1, len(record.images)))


def _content(record: Record, prompt: str) -> Sequence[dict[str, str]] | Sequence[tuple[str, str]] | str:
    """What the processor is given: turns, pairs or a text."""
    if record.text is not None:
        return record.text
    if record.caption is not None:
        asked = PLACEHOLDER * len(record.images) + (f"\n{prompt}" if prompt else "")
        return [{"from": "human", "value": asked}, {"from": "gpt", "value": record.caption}]
    return record.questions or record.conversation or ()


def _read(record: Record, picture: Picture, how: Any) -> Any:
    try:
        return how(picture)
    except UserError as error:
        reason = "picture unreadable"
        if isinstance(error, TooManyPixels):
            reason = "picture too large"
        elif isinstance(picture, Path) and not picture.exists():
            reason = "picture missing"
        raise BadRecord(reason, f"sample {record.key!r}: {error}") from error


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """A picture as it comes out of a JPEG of this quality (1..100)."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return Image.open(written).convert("RGB")
