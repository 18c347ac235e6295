"""Row: one row of tokens under construction, written from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmframe import images as pictures
from mmframe.batch import IGNORE, Sample
from mmframe.contracts import PatchEmbedder
from mmframe.errors import UserError
from mmframe.kinds import TokenKind

if TYPE_CHECKING:
    from mmframe.processing.chat import ChatProcessor

PLACEHOLDER = "<image>"


@dataclass
class Row:
    """A row under construction: columns of equal length, written from left to right."""

    processor: ChatProcessor
    images: Sequence[Image.Image | Tensor]
    embedder: PatchEmbedder | None
    max_tiles: int
    key: str
    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    tiles: list[Tensor] = field(default_factory=list)
    branch: int = 0
    position: int = 0
    images_placed: int = 0
    trunk_length: int = 0

    def text(self, text: str, special: bool, supervised: bool = False) -> None:
        """Appends a text; pieces are encoded one by one, which is exact where they meet at a marker or line break."""
        if text:
            self._add(self.processor.tokenizer.encode(text, special), TokenKind.TEXT, supervised)

    def marker(self, token: int | None, supervised: bool = False) -> None:
        assert token is not None
        self._add([token], TokenKind.TEXT, supervised)

    def image(self, index: int) -> None:
        """Appends an image: start marker, as many slots as its tiles have visual tokens, end marker."""
        self.images_placed += 1
        if index >= len(self.images):
            return  # counted, and refused by check_all_placed with both numbers
        if self.embedder is None:
            raise UserError(f"sample {self.key!r}: an image was given, but the model has no patch embedder")
        side = self.embedder.image_size
        given = self.images[index]
        share = max(1, self.max_tiles // len(self.images))
        tiles = given if isinstance(given, Tensor) else self.processor.cut(given, side, share)
        height, width = tiles.shape[2:]
        slots = tiles.shape[0] * self.embedder.num_tokens(height, width)
        self._add(self.processor.start_ids, TokenKind.BOUNDARY)
        self._add([self.processor.tokenizer.pad_id] * slots, TokenKind.IMAGE, block=index)
        self._add(self.processor.end_ids, TokenKind.BOUNDARY)
        p = self.processor
        self.tiles.append(pictures.normalize(tiles, p.mean, p.std, p.subtract_median))

    def start_branch(self, branch: int) -> None:
        if not self.branch:
            self.trunk_length = len(self.ids)
        self.branch = branch
        self.position = self.trunk_length  # each branch goes on from the trunk's end

    def check_all_placed(self) -> None:
        placed, given = self.images_placed, len(self.images)
        if placed != given:
            missing = f"image {min(placed, given)} has no " + ("picture" if placed > given else f"{PLACEHOLDER}")
            raise UserError(
                f"sample {self.key!r}: {placed} {PLACEHOLDER} placeholders but {given} images ({missing}); "
                "make the counts equal"
            )

    def sample(self) -> Sample:
        # The token at i + 1 is the label at i, within a branch; a branch begins with a question, never an answer.
        labels = [
            following if wanted and here == there else IGNORE
            for following, wanted, here, there in zip(
                self.ids[1:], self.supervised[1:], self.branches[:-1], self.branches[1:], strict=True
            )
        ]
        labels = (labels + [IGNORE])[: len(self.ids)]
        return Sample.from_ids(
            self.ids,
            kinds=self.kinds,
            labels=labels,
            positions=self.positions,
            branches=self.branches,
            blocks=self.blocks,
            tiles=torch.cat(self.tiles) if self.tiles else None,
            key=self.key,
        )

    def _add(self, ids: Sequence[int], kind: TokenKind, supervised: bool = False, block: int = -1) -> None:
        count = len(ids)
        self.ids += ids
        self.positions += range(self.position, self.position + count)
        self.position += count
        self.kinds += [int(kind)] * count
        self.supervised += [supervised] * count
        self.branches += [self.branch] * count
        self.blocks += [block] * count


@dataclass
class Tally(Row):
    """Counts what a row would hold, and makes no column. `images` are the numbers of tiles of the pictures."""

    tokens: int = 0
    image_tokens: int = 0
    supervised_tokens: int = 0
    num_tiles: int = 0

    def image(self, index: int) -> None:
        self.images_placed += 1
        if index >= len(self.images):
            return
        if self.embedder is None:
            raise UserError(f"sample {self.key!r}: an image was given, but the model has no patch embedder")
        tiles, side = int(self.images[index]), self.embedder.image_size  # type: ignore[call-overload]
        slots = tiles * self.embedder.num_tokens(side, side)
        self.num_tiles += tiles
        self.image_tokens += slots
        self.tokens += slots + len(self.processor.start_ids) + len(self.processor.end_ids)

    def _add(self, ids: Sequence[int], kind: TokenKind, supervised: bool = False, block: int = -1) -> None:
        self.tokens += len(ids)
        self.supervised_tokens += len(ids) if supervised else 0
