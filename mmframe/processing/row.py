"""Row: one row of tokens under construction, written from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmframe.batch import IGNORE, Sample, joined_tiles, source_of
from mmframe.contracts import PatchEmbedder
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.prefix import in_front_of

if TYPE_CHECKING:
    from mmframe.processing.chat import ChatProcessor

PLACEHOLDER = "<image>"


@dataclass
class Row:
    """A row under construction, written from left to right: ids, and runs of tokens that are alike in the rest."""

    processor: ChatProcessor
    images: Sequence[Image.Image | Tensor | int]
    embedder: PatchEmbedder | None
    max_tiles: int
    key: str
    ids: list[int] = field(default_factory=list)
    runs: list[tuple[int, ...]] = field(default_factory=list)  # count, first position, kind, supervised, branch, block
    tiles: list[Tensor] = field(default_factory=list)
    tile_tokens: list[np.ndarray] = field(default_factory=list)  # of each tile: kinds, rows, columns of its slots
    branch: int = 0
    position: int = 0
    images_placed: int = 0
    trunk_length: int = 0
    image_tiles: list[int] = field(default_factory=list)
    source: str = ""

    def text(self, text: str, special: bool, supervised: bool = False) -> None:
        """Appends a text; pieces are encoded one by one, which is exact where they meet at a marker or line break."""
        if text:
            self._add(self.processor.piece_ids(text, special), TokenKind.TEXT, supervised)

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
        height, width, count = side, side, given
        if not isinstance(given, int):
            share = max(1, self.max_tiles // len(self.images))
            tiles = given if isinstance(given, Tensor) else self.processor.cut(given, side, share)
            count, _, height, width = tiles.shape
            self.tiles.append(self.processor.normalize(tiles))
        self.image_tiles.append(count)  # type: ignore[arg-type]
        tokens = self.embedder.tile_tokens(height, width)
        self.tile_tokens += [tokens] * count  # type: ignore[operator]
        slots = count * tokens.shape[1]  # type: ignore[operator]
        self._add(self.processor.start_ids, TokenKind.BOUNDARY)
        self._add([self.processor.tokenizer.pad_id] * slots, TokenKind.IMAGE, block=index)
        self._add(self.processor.end_ids, TokenKind.BOUNDARY)

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

    def plain(self, ids: Sequence[int]) -> None:
        """Appends a text of which every token after the first is learnt."""
        self._add(ids[:1], TokenKind.TEXT)
        self._add(ids[1:], TokenKind.TEXT, supervised=True)

    def sample(self, labelled: bool = True) -> Sample:
        """The row as tensors; without labels it is a prompt, whose earlier answers are history."""
        return packed([self], joined_tiles(self.tiles), labelled)

    def _add(self, ids: Sequence[int], kind: TokenKind, supervised: bool = False, block: int = -1) -> None:
        self.ids += ids
        self.runs.append((len(ids), self.position, kind, supervised, self.branch, block))
        self.position += len(ids)


def packed(rows: Sequence[Row], tiles: Tensor, labelled: bool = True) -> Sample:
    """Rows as one sample: each is a document of its own. What is done here for many costs little more than for one.

    Args:
        rows: in order; none gives a sample without tokens.
        tiles: of all their pictures.
        labelled: what is supervised gets labels.
    """
    runs = np.array([(*run, doc) for doc, row in enumerate(rows) for run in row.runs], dtype=np.int64).reshape(-1, 7)
    count = runs[:, 0]
    start, kinds, supervised, branches, blocks, docs = np.repeat(runs[:, 1:].T, count, axis=1)
    images = np.cumsum([0, *(row.images_placed for row in rows)])
    ids = np.array([token for row in rows for token in row.ids], dtype=np.int64)
    labels = np.full(len(ids), IGNORE)
    if labelled:
        # The token at i + 1 is the label at i, within a branch; a branch begins with a question, never an answer.
        learnt = (supervised[1:] == 1) & (branches[1:] == branches[:-1]) & (docs[1:] == docs[:-1])
        labels[:-1][learnt] = ids[1:][learnt]
    answers, docs_T, branches_T = (torch.from_numpy(x) for x in (supervised == 1, docs, branches))
    before = np.repeat(count.cumsum() - count, count)
    slots = np.flatnonzero(blocks >= 0)
    tile_tokens = [tokens for row in rows for tokens in row.tile_tokens]
    tile_index, tile_row, tile_column = np.full((3, len(ids)), -1, dtype=np.int32)
    if tile_tokens:  # the run of an image is cut no finer than here: what the embedder writes there
        kinds[slots], tile_row[slots], tile_column[slots] = np.concatenate(tile_tokens, axis=1)
        tile_index[slots] = np.repeat(np.arange(len(tile_tokens)), [tokens.shape[1] for tokens in tile_tokens])
    return Sample(
        key=", ".join(row.key for row in rows),
        ids=torch.from_numpy(ids),
        kinds=torch.from_numpy(kinds.astype(np.int8)),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(start + np.arange(len(ids)) - before),
        docs=torch.from_numpy(docs.astype(np.int32)),
        branches=torch.from_numpy(branches.astype(np.int32)),
        blocks=torch.from_numpy(np.where(blocks >= 0, blocks + images[docs], -1).astype(np.int32)),
        tile_index=torch.from_numpy(tile_index),
        tile_row=torch.from_numpy(tile_row),
        tile_column=torch.from_numpy(tile_column),
        prefix=in_front_of(answers, docs_T, branches_T),
        tiles=tiles,
        image_tiles=tuple(count for row in rows for count in row.image_tiles),
        num_records=len(rows),
        sources=tuple(row.source or source_of(row.key) for row in rows),
    )


@dataclass
class Tally(Row):
    """Counts what a row would hold, and makes no column."""

    tokens: int = 0
    image_tokens: int = 0
    supervised_tokens: int = 0

    @property
    def num_tiles(self) -> int:
        return sum(self.image_tiles)

    def _add(self, ids: Sequence[int], kind: TokenKind, supervised: bool = False, block: int = -1) -> None:
        self.tokens += len(ids)
        self.image_tokens += len(ids) if block >= 0 else 0
        self.supervised_tokens += len(ids) if supervised else 0
