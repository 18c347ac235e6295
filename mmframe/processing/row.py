"""Row: one row of tokens under construction, written from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmframe.batch import IGNORE, Sample
from mmframe.contracts import PatchEmbedder
from mmframe.errors import UserError
from mmframe.kinds import TokenKind

if TYPE_CHECKING:
    from mmframe.processing.chat import ChatProcessor

PLACEHOLDER = "<image>"


@dataclass
class Row:
    """A row under construction, written from left to right: ids, and runs of tokens that are alike in the rest."""

    processor: ChatProcessor
    images: Sequence[Image.Image | Tensor]
    embedder: PatchEmbedder | None
    max_tiles: int
    key: str
    ids: list[int] = field(default_factory=list)
    runs: list[tuple[int, ...]] = field(default_factory=list)  # count, first position, kind, supervised, branch, block
    tiles: list[Tensor] = field(default_factory=list)
    branch: int = 0
    position: int = 0
    images_placed: int = 0
    trunk_length: int = 0
    raw_tiles: bool = False  # uint8, to be normalised later
    image_tiles: list[int] = field(default_factory=list)

    def text(self, text: str, special: bool, supervised: bool = False) -> None:
        """Appends a text; pieces are encoded one by one, which is exact where they meet at a marker or line break."""
        if text:
            ids = self.processor.template_ids(text) if special else self.processor.tokenizer.encode(text)
            self._add(ids, TokenKind.TEXT, supervised)

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
        self.tiles.append(tiles if self.raw_tiles else self.processor.normalize(tiles))
        self.image_tiles.append(tiles.shape[0])

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

    def sample(self, labelled: bool = True) -> Sample:
        """The row as tensors; without labels it is a prompt, whose earlier answers are history."""
        runs = np.array(self.runs, dtype=np.int64).reshape(-1, 6)
        count = runs[:, 0]
        start, kinds, supervised, branches, blocks = np.repeat(runs[:, 1:].T, count, axis=1)
        before = np.repeat(count.cumsum() - count, count)
        ids = np.array(self.ids, dtype=np.int64)
        labels = np.full(len(ids), IGNORE)
        if labelled:
            # The token at i + 1 is the label at i, within a branch; a branch begins with a question, never an answer.
            learnt = (supervised[1:] == 1) & (branches[1:] == branches[:-1])
            labels[:-1][learnt] = ids[1:][learnt]
        return Sample.from_ids(
            torch.from_numpy(ids),
            kinds=torch.from_numpy(kinds),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(start + np.arange(len(ids)) - before),
            branches=torch.from_numpy(branches),
            blocks=torch.from_numpy(blocks),
            tiles=(torch.cat(self.tiles) if len(self.tiles) > 1 else self.tiles[0]) if self.tiles else None,
            image_tiles=tuple(self.image_tiles),
            key=self.key,
        )

    def _add(self, ids: Sequence[int], kind: TokenKind, supervised: bool = False, block: int = -1) -> None:
        self.ids += ids
        self.runs.append((len(ids), self.position, kind, supervised, self.branch, block))
        self.position += len(ids)


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
