"""Sample and Batch: what data hands to the model. All routing facts are made here, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.kinds import TokenKind

IGNORE = -100
"""Label of a position that is not supervised."""


@dataclass
class Sample:
    """One row: a conversation, or several questions over one image, as tokens.

    Every tensor has length t (tokens of the row).

    ids        int64; at IMAGE slots any valid id (the embedding is replaced)
    kinds      int8, TokenKind
    labels     int64, already shifted: labels[i] is the token to predict AT position i, or IGNORE
    positions  int64, rotary positions; restart at 0 for each document; a branch goes on from its trunk's end
    docs       int32, document in the row (packing); documents never see one another
    branches   int32, 0 = trunk, seen by all; k > 0 = branch k, seen only by itself (questions that share an image)
    blocks     int32, index of the image in the row, counting from 0, for IMAGE slots (and its queries); -1 elsewhere
    weights    float32, weight of the token's loss
    tiles      float32 [n, 3, h, w], normalised pixels of all images of the row, in order
    """

    key: str
    ids: Tensor
    kinds: Tensor
    labels: Tensor
    positions: Tensor
    docs: Tensor
    branches: Tensor
    blocks: Tensor
    weights: Tensor
    tiles: Tensor
    left_out: tuple[Any, ...] = ()
    num_records: int = 1

    def __len__(self) -> int:
        return self.ids.numel()

    @classmethod
    def packed(cls, samples: Sequence[Sample], left_out: tuple[Any, ...] = (), num_records: int = 1) -> Sample:
        """One row of several samples, each a document of its own; a row without tokens if there are none."""
        parts = list(samples) or [cls.from_ids([])]
        images = [int(s.blocks.max()) + 1 if len(s) else 0 for s in parts]
        columns = ("ids", "kinds", "labels", "positions", "branches", "weights")
        blocks = [torch.where(s.blocks >= 0, s.blocks + sum(images[:n]), -1) for n, s in enumerate(parts)]
        tiles = [s.tiles for s in parts if s.tiles.shape[0]]
        return cls(
            key=", ".join(s.key for s in parts),
            docs=torch.cat([torch.full_like(s.docs, n) for n, s in enumerate(parts)]),
            blocks=torch.cat(blocks),
            tiles=torch.cat(tiles) if tiles else parts[0].tiles,
            left_out=left_out,
            num_records=num_records,
            **{name: torch.cat([getattr(s, name) for s in parts]) for name in columns},
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
        weights: Sequence[float] | Tensor | None = None,
        tiles: Tensor | None = None,
        key: str = "",
    ) -> Sample:
        """A row from token ids; what is left out is one text document without labels.

        `blocks` defaults to one image per unbroken run of IMAGE slots.
        """
        ids_t = torch.as_tensor(ids, dtype=torch.int64)
        t = ids_t.numel()

        def column(given: Sequence | Tensor | None, default: Tensor, dtype: torch.dtype) -> Tensor:
            value = default.to(dtype) if given is None else torch.as_tensor(given, dtype=dtype)
            if value.shape != (t,):
                raise UserError(f"sample {key!r}: a column has shape {tuple(value.shape)}, expected ({t},)")
            return value

        kinds_t = column(kinds, torch.full((t,), TokenKind.TEXT), torch.int8)
        is_image = kinds_t == TokenKind.IMAGE
        starts = is_image & ~torch.cat([torch.zeros(1, dtype=torch.bool), is_image[:-1]])[:t]
        runs = torch.where(is_image, starts.cumsum(0) - 1, -1)
        zeros = torch.zeros(t)
        return cls(
            key=key,
            ids=ids_t,
            kinds=kinds_t,
            labels=column(labels, torch.full((t,), IGNORE), torch.int64),
            positions=column(positions, torch.arange(t), torch.int64),
            docs=column(docs, zeros, torch.int32),
            branches=column(branches, zeros, torch.int32),
            blocks=column(blocks, runs, torch.int32),
            weights=column(weights, torch.ones(t), torch.float32),
            tiles=torch.zeros(0, 3, 1, 1) if tiles is None else tiles,
        )


@dataclass
class Batch:
    """Rows concatenated, no padding. `kinds` stays on the host, where the routing plan is made."""

    ids: Tensor
    kinds: Tensor
    labels: Tensor
    positions: Tensor
    docs: Tensor
    branches: Tensor
    blocks: Tensor
    weights: Tensor
    tiles: Tensor
    row_lengths: tuple[int, ...]
    row_tiles: tuple[int, ...]
    supervised: Tensor  # int64 [S], host-made indices of the supervised tokens
    image_slots: Tensor  # int64 [N], host-made indices of the IMAGE slots
    structured: bool  # some row has several documents or branches: plain causal attention is not enough
    keys: tuple[str, ...] = field(default=())
    left_out: tuple[Any, ...] = ()
    num_records: int = 0

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
            UserError: a batch without tokens, or tiles of different sizes in one batch.
        """
        if not samples or not sum(len(s) for s in samples):
            raise UserError("batch: no tokens; every row is empty")
        kinds = torch.cat([s.kinds for s in samples])
        labels = torch.cat([s.labels for s in samples])
        weights = torch.cat([s.weights for s in samples])
        tiles = [s.tiles for s in samples if s.tiles.shape[0]]
        sizes = {tuple(t.shape[2:]) for t in tiles}
        if len(sizes) > 1:
            raise UserError(
                f"batch: tiles of different sizes {sorted(sizes)} in one batch; use one tile size per stage"
            )
        docs = torch.cat([s.docs for s in samples])
        branches = torch.cat([s.branches for s in samples])
        return cls(
            ids=torch.cat([s.ids for s in samples]),
            kinds=kinds,
            labels=labels,
            positions=torch.cat([s.positions for s in samples]),
            docs=docs,
            branches=branches,
            blocks=torch.cat([s.blocks for s in samples]),
            weights=weights,
            tiles=torch.cat(tiles) if tiles else torch.zeros(0, 3, 1, 1),
            row_lengths=tuple(len(s) for s in samples),
            row_tiles=tuple(s.tiles.shape[0] for s in samples),
            supervised=((labels != IGNORE) & (weights != 0)).nonzero().flatten(),
            image_slots=(kinds == TokenKind.IMAGE).nonzero().flatten(),
            structured=bool(docs.any() or branches.any()),
            keys=tuple(s.key for s in samples),
            left_out=tuple(bad for s in samples for bad in s.left_out),
            num_records=sum(s.num_records for s in samples),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Moves the tensors that layers use; `kinds` stays on the host (see Plan)."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "kinds"
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **pinned)
