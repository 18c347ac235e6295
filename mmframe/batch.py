"""Sample and Batch: what data hands to the model. All routing facts are made here, on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.prefix import in_front_of

IGNORE = -100
"""Label of a position that is not supervised."""
COLUMNS = (
    *("ids", "kinds", "labels", "positions", "docs", "branches", "blocks"),
    *("tile_index", "tile_row", "tile_column", "prefix"),
)
"""What a row says of each of its tokens. None holds floats, so that a trainer that casts its batches (bf16-true) rounds
pixels and nothing else."""


@dataclass
class Sample:
    """One row: a conversation, or several questions over one image, as tokens.

    Every tensor has length t (tokens of the row).

    A slot is a place that the patch embedder fills: an image's tokens, and what it adds to them (row ends, queries).

    ids        int64; at slots any valid id (the embedding is replaced)
    kinds      int8, TokenKind
    labels     int64, already shifted: labels[i] is the token to predict AT position i, or IGNORE
    positions  int64, rotary positions; restart at 0 for each document; a branch goes on from its trunk's end
    docs       int32, document in the row (packing), never falling; documents never see one another
    branches   int32, 0 = trunk, seen by all; k > 0 = branch k, seen only by itself (questions that share an image)
    blocks     int32, index of the image in the row, counting from 0, at its slots; -1 elsewhere
    tile_index   int32, index of the tile in the row, counting from 0, at its slots; -1 elsewhere
    tile_row     int32, row of the slot in its tile's grid; -1 elsewhere, and at slots without a place
    tile_column  int32, column of the slot in its tile's grid; a row end's is the one after the last
    prefix     bool, the prompt: all tokens of a document, or of a branch, in front of its first answer
    tiles      [n, 3, h, w], pixels of all images of the row, in order: float32, normalised; or uint8, as they were cut,
               to be normalised on the device (a quarter of the bytes to move)
    image_tiles  number of tiles of each image
    left_out     records that should stand in the row and could not be read
    num_records  records of the row, those left out among them
    sources      name of the source of each document, for the logs; () where nobody told
    """

    key: str
    ids: Tensor
    kinds: Tensor
    labels: Tensor
    positions: Tensor
    docs: Tensor
    branches: Tensor
    blocks: Tensor
    tile_index: Tensor
    tile_row: Tensor
    tile_column: Tensor
    prefix: Tensor
    tiles: Tensor
    image_tiles: tuple[int, ...] = ()
    left_out: tuple[Any, ...] = ()
    num_records: int = 1
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.ids.numel()

    @classmethod
    def packed(cls, samples: Sequence[Sample]) -> Sample:
        """One row of several samples, each a document of its own; a row without tokens if there are none."""
        parts = list(samples) or [cls.from_ids([])]
        columns = {name: [getattr(s, name) for s in parts] for name in COLUMNS}
        columns["docs"] = [torch.full_like(s.docs, n) for n, s in enumerate(parts)]
        for name in ("blocks", "tile_index"):
            columns[name] = _counted_on(columns[name])
        return cls(
            key=", ".join(s.key for s in parts),
            tiles=joined_tiles([s.tiles for s in parts]),
            image_tiles=tuple(count for s in parts for count in s.image_tiles),
            left_out=tuple(bad for s in parts for bad in s.left_out),
            num_records=sum(s.num_records for s in parts),
            sources=tuple(s.sources[0] if s.sources else source_of(s.key) for s in parts),
            **{name: torch.cat(column) for name, column in columns.items()},
        )

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int] | Tensor,
        *,
        kinds: Sequence[int] | Tensor | None = None,
        labels: Sequence[int] | Tensor | None = None,
        positions: Sequence[int] | Tensor | None = None,
        docs: Sequence[int] | Tensor | None = None,
        branches: Sequence[int] | Tensor | None = None,
        blocks: Sequence[int] | Tensor | None = None,
        tile_index: Sequence[int] | Tensor | None = None,
        tile_row: Sequence[int] | Tensor | None = None,
        tile_column: Sequence[int] | Tensor | None = None,
        prefix: Sequence[bool] | Tensor | None = None,
        tiles: Tensor | None = None,
        image_tiles: tuple[int, ...] = (),
        key: str = "",
    ) -> Sample:
        """A row from token ids; what is left out is one text document without labels.

        `blocks` defaults to one image per unbroken run of IMAGE slots, `tile_index` to an equal share of the slots for
        each of `tiles` (without tiles, or where they do not divide: an image is one tile), places to none;
        `prefix` to what is in front of the first label, all of a document without labels.
        """
        ids_t = torch.as_tensor(ids, dtype=torch.int64)
        t = ids_t.numel()

        def column(given: Sequence | Tensor | None, default: Callable[[], Tensor], dtype: torch.dtype) -> Tensor:
            value = default().to(dtype) if given is None else torch.as_tensor(given, dtype=dtype)
            if value.shape != (t,):
                raise UserError(f"sample {key!r}: a column has shape {tuple(value.shape)}, expected ({t},)")
            return value

        def zeros() -> Tensor:
            return torch.zeros(t)

        def runs() -> Tensor:
            is_image = kinds_t == TokenKind.IMAGE
            starts = is_image & ~torch.cat([torch.zeros(1, dtype=torch.bool), is_image[:-1]])[:t]
            return torch.where(is_image, starts.cumsum(0) - 1, -1)

        def shares() -> Tensor:
            is_slot = blocks_t >= 0
            slots, count = int(is_slot.sum()), 0 if tiles is None else tiles.shape[0]
            if not count or slots % count:
                return blocks_t
            return torch.where(is_slot, (is_slot.cumsum(0) - 1) // max(1, slots // count), -1)

        def nowhere() -> Tensor:
            return torch.full((t,), -1)

        def unanswered() -> Tensor:
            answers = torch.cat([torch.zeros(1, dtype=torch.bool), labels_t[:-1] != IGNORE])[:t]
            return in_front_of(answers, docs_t, branches_t)

        kinds_t = column(kinds, lambda: torch.full((t,), TokenKind.TEXT), torch.int8)
        labels_t = column(labels, lambda: torch.full((t,), IGNORE), torch.int64)
        docs_t, branches_t = column(docs, zeros, torch.int32), column(branches, zeros, torch.int32)
        blocks_t = column(blocks, runs, torch.int32)
        return cls(
            key=key,
            ids=ids_t,
            kinds=kinds_t,
            labels=labels_t,
            positions=column(positions, lambda: torch.arange(t), torch.int64),
            docs=docs_t,
            branches=branches_t,
            blocks=blocks_t,
            tile_index=column(tile_index, shares, torch.int32),
            tile_row=column(tile_row, nowhere, torch.int32),
            tile_column=column(tile_column, nowhere, torch.int32),
            prefix=column(prefix, unanswered, torch.bool),
            tiles=torch.zeros(0, 3, 1, 1) if tiles is None else tiles,
            image_tiles=image_tiles,
        )


ON_HOST = ("kinds", "prefix", "doc_lengths", "doc_branched", "doc_images")
"""Tensors of a batch that stay on the host: plan and layout are made of them, and no layer waits for them."""


@dataclass
class Batch:
    """Rows concatenated, no padding. A row may be empty, and all may: a step of nothing, whose gradients are zero.

    doc_lengths        int64 [documents] on the host: their tokens, in order
    doc_branched       bool [documents] on the host: the document has branches
    doc_images         bool [documents] on the host: the document has image blocks
    supervised         int64 [S], host-made indices of the supervised tokens
    supervised_counts  int64 [S], host-made: how many tokens are supervised in the same branch of the same document:
                       questions that share an image are samples of their own
    doc_sources        name of each document's source, "" where it is not known
    image_slots        int64 [N], host-made indices of the slots, which the patch embedder fills
    """

    ids: Tensor
    kinds: Tensor
    labels: Tensor
    positions: Tensor
    docs: Tensor
    branches: Tensor
    blocks: Tensor
    tile_index: Tensor
    tile_row: Tensor
    tile_column: Tensor
    prefix: Tensor
    tiles: Tensor
    row_lengths: tuple[int, ...]
    row_tiles: tuple[int, ...]
    doc_lengths: Tensor
    doc_branched: Tensor
    doc_images: Tensor
    supervised: Tensor
    supervised_counts: Tensor
    image_slots: Tensor
    keys: tuple[str, ...] = field(default=())
    image_tiles: tuple[int, ...] = ()
    left_out: tuple[Any, ...] = ()
    num_records: int = 0
    doc_sources: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.ids.numel()

    @property
    def num_rows(self) -> int:
        return len(self.row_lengths)

    @classmethod
    def collate(cls, samples: Sequence[Sample]) -> Batch:
        """Rows -> batch.

        Raises:
            UserError: no rows, tiles of different sizes in one batch, or documents of a row out of order.
        """
        if not samples:
            raise UserError("batch: no rows")
        tiles = [s.tiles for s in samples if s.tiles.shape[0]]
        sizes = {tuple(t.shape[2:]) for t in tiles}
        if len(sizes) > 1:
            raise UserError(
                f"batch: tiles of different sizes {sorted(sizes)} in one batch; use one tile size per stage"
            )
        columns = {name: torch.cat([getattr(s, name) for s in samples]) for name in COLUMNS}
        document_T = _documents(samples, columns["docs"])
        doc_lengths = document_T.bincount()

        def has(token_T: Tensor) -> Tensor:
            return torch.zeros(len(doc_lengths), dtype=torch.bool).index_fill_(0, document_T[token_T], True)

        supervised = (columns["labels"] != IGNORE).nonzero().flatten()
        branch_S = columns["branches"][supervised].long()
        _, sample_S = (document_T[supervised] + (branch_S << 32)).unique(return_inverse=True)
        return cls(
            **columns,
            tiles=joined_tiles(tiles),
            row_lengths=tuple(len(s) for s in samples),
            row_tiles=tuple(s.tiles.shape[0] for s in samples),
            doc_lengths=doc_lengths,
            doc_branched=has(columns["branches"] != 0),
            doc_images=has(columns["blocks"] >= 0),
            supervised=supervised,
            supervised_counts=sample_S.bincount()[sample_S],
            image_slots=(columns["blocks"] >= 0).nonzero().flatten(),
            keys=tuple(s.key for s in samples),
            image_tiles=tuple(count for s in samples for count in s.image_tiles),
            left_out=tuple(bad for s in samples for bad in s.left_out),
            num_records=sum(s.num_records for s in samples),
            doc_sources=tuple(name for s in samples for name in _sources(s)),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Moves the tensors that layers use."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in ON_HOST
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **pinned)


def source_of(key: str) -> str:
    """The source that a sample's key begins with, as data sets of records write it: SOURCE:ID; "" without one."""
    name, colon, _ = key.partition(":")
    return name if colon else ""


def _sources(sample: Sample) -> tuple[str, ...]:
    """A name for each document of a row."""
    documents = len(sample.docs.unique_consecutive())
    known = sample.sources or (source_of(sample.key),)
    return known if len(known) == documents else (known[0] if len(set(known)) == 1 else "",) * documents


def joined_tiles(parts: Sequence[Tensor]) -> Tensor:
    """All tiles one after another; what is the only one is not copied: tiles are nearly all bytes of a batch."""
    filled = [tiles for tiles in parts if tiles.shape[0]]
    return torch.cat(filled) if len(filled) > 1 else filled[0] if filled else torch.zeros(0, 3, 1, 1)


def _counted_on(parts: Sequence[Tensor]) -> list[Tensor]:
    """Numbers of each part (from 0; -1: none) go on where those of the part before it end."""
    counts = [int(part.max()) + 1 if len(part) else 0 for part in parts]
    return [torch.where(part >= 0, part + sum(counts[:n]), -1) for n, part in enumerate(parts)]


def _documents(samples: Sequence[Sample], docs_T: Tensor) -> Tensor:
    """Number of each token's document, over all rows: [T]."""
    row_T = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s) for s in samples]))
    same_row, step = row_T[1:] == row_T[:-1], docs_T[1:] - docs_T[:-1]
    if bool((falls := same_row & (step < 0)).any()):
        key = samples[int(row_T[int(falls.nonzero()[0])])].key
        raise UserError(f"sample {key!r}: the documents of a row stand one after another, but `docs` falls in it")
    begins = torch.cat([torch.ones(min(1, len(docs_T)), dtype=torch.bool), ~same_row | (step != 0)])
    return begins.cumsum(0) - 1
