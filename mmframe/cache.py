"""Key-value cache of a batch of sequences; it remembers what each position holds.

B rows, C capacity, K columns in use, H key-value heads, T tokens of the present call in plan order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.geometry import FACTS, rotary_positions
from mmframe.kinds import TokenKind

if TYPE_CHECKING:
    from mmframe.batch import Batch
    from mmframe.layout import Layout


class KVCache:
    """Keys and values per layer, and per column its kind, document, branch, image block and position.

    Routing and masks never guess from the cache: an image in the third turn, a chunked prefill and a prompt of
    one token all take the way of a fresh forward.

    Attributes:
        lengths: Tokens of each row, on the host; `used` [B] is the same on the device, for steps that never ask
            the host.
        expected: Length that a prompt given in pieces will have; its rotary angles are those of the whole.
        num_images: Images of each row.

    Args:
        heads: Key-value heads of each layer, size of a key and of a value.
        rows: B.
        capacity: C, tokens of a row.
        raw_keys: Keep keys before rotation and rotate on reading. Needed where the rotary base depends on the
            length (dynamic NTK beyond the trained context), else the cached keys would keep an old base.
        facts: Columns of a batch to keep, see mmframe.geometry.facts_of.
        turning: Rotary positions of the backbone: one of mmframe.geometry.POSITIONS.
    """

    def __init__(
        self,
        heads: Sequence[tuple[int, int, int]],
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        raw_keys: bool = False,
        facts: Sequence[str] = FACTS,
        turning: str = "linear",
    ) -> None:
        self.keys = [torch.zeros(rows, capacity, n, k, dtype=dtype, device=device) for n, k, _ in heads]
        self.values = [torch.zeros(rows, capacity, n, v, dtype=dtype, device=device) for n, _, v in heads]
        self.raw_keys = raw_keys
        self.lengths = [0] * rows
        self.expected = [0] * rows
        self.num_images = [0] * rows
        self.used = torch.zeros(rows, dtype=torch.int64, device=device)
        self.kinds = torch.full((rows, capacity), TokenKind.PAD, dtype=torch.int8, device=device)
        # [F, B, C]: docs, branches, blocks, positions as the batch has them, and what else is asked for; -1: empty
        self.table = torch.full((len(facts), rows, capacity), -1, dtype=torch.int64, device=device)
        self.turning, self.placed = turning, None
        if turning != "linear":
            axes = () if turning == "shared" else (3,)
            self.placed = torch.zeros((*axes, rows, capacity), dtype=torch.int64, device=device)

    @property
    def num_rows(self) -> int:
        return self.kinds.shape[0]

    @property
    def capacity(self) -> int:
        return self.kinds.shape[1]

    @property
    def positions(self) -> Tensor:
        """Rotary positions [B, C], of `grid` and `native` [3, B, C]."""
        return self.table[3] if self.placed is None else self.placed

    def place(self, context: int) -> Tensor:
        """Rotary positions after new tokens were described: made of all columns, the past ones as before."""
        self.positions[..., :context] = rotary_positions(self.table[:, :, :context], self.turning)
        return self.positions

    def begin(self, batch: Batch) -> None:
        """Checks that the batch fits; call before anything is written.

        Raises:
            UserError: another number of rows, or more tokens than the capacity.
        """
        if batch.num_rows != self.num_rows:
            raise UserError(f"cache: {batch.num_rows} rows given, made for {self.num_rows}")
        self.check_room(batch.row_lengths)

    def check_room(self, tokens: Sequence[int]) -> None:
        """Raises a UserError where `tokens` more of each row would not fit."""
        for row, (past, new) in enumerate(zip(self.lengths, tokens, strict=True)):
            if past + new > self.capacity:
                raise UserError(
                    f"cache: row {row} would hold {past + new} tokens, capacity is {self.capacity}; "
                    "ask for fewer new tokens or a larger cache"
                )

    def describe(self, rows: Tensor, columns: Tensor, kinds: Tensor, facts: Tensor) -> None:
        """Writes kinds [T] and facts [F, T] of new tokens."""
        self.kinds[rows, columns] = kinds
        self.table[:, rows, columns] = facts

    def write(self, layer: int, k_THd: Tensor, v_THd: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Stores new keys and values; returns all in use: [B, K, H, head_dim]."""
        keys, values = self.keys[layer], self.values[layer]
        assert layout.slots is not None, "a layout that was built for a cache"
        for stored, new in ((keys, k_THd), (values, v_THd)):  # whole columns are copied; indexing both axes is slower
            stored.flatten(0, 1).index_copy_(0, layout.slots, new.to(stored.dtype))
        return keys[:, : layout.context], values[:, : layout.context]

    def advance(self, batch: Batch) -> None:
        """Counts the batch's tokens and images as past; call after the last layer."""
        first = 0
        for row, new in enumerate(batch.row_lengths):
            blocks = batch.blocks[first : first + new]
            if batch.image_slots.numel() and new:
                self.num_images[row] += int(blocks.max()) + 1
            self.lengths[row] += new
            first += new
        self.used += torch.tensor(batch.row_lengths, device=self.used.device)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets everything behind the first lengths[row] tokens of each row.

        Raises:
            UserError: a row holds fewer tokens than are to be kept.
        """
        for row, (have, keep) in enumerate(zip(self.lengths, lengths, strict=True)):
            if not 0 <= keep <= have:
                raise UserError(f"cache: row {row} holds {have} tokens, {keep} cannot be kept of them")
            self.kinds[row, keep:] = TokenKind.PAD
            self.table[:, row, keep:] = -1
            self.num_images[row] = int(self.table[2, row, :keep].max()) + 1 if keep else 0
        self.lengths, self.expected = list(lengths), [0] * self.num_rows
        self.used.copy_(torch.tensor(self.lengths))

    def take(self, other: KVCache, rows: Sequence[int] | None = None) -> None:
        """Takes over what another cache holds: how a cache grows, and how rows share a beginning that ran once.

        Args:
            other: No longer than this one.
            rows: Row of the other for each row of this one, -1 for none; None: its own.
        """
        n = max(other.lengths)
        source = list(range(other.num_rows)) if rows is None else list(rows)
        assert n <= self.capacity and self.num_rows == len(source) and self.raw_keys == other.raw_keys
        mine = [row for row, theirs in enumerate(source) if theirs >= 0]
        theirs = [source[row] for row in mine]
        to, of = (torch.tensor(places, dtype=torch.int64, device=self.used.device) for places in (mine, theirs))
        for new, old in zip(self.keys + self.values, other.keys + other.values, strict=True):
            new[:, :n].index_copy_(0, to, old[:, :n].index_select(0, of))
        self.kinds[to, :n], self.table[:, to, :n] = other.kinds[of, :n], other.table[:, of, :n]
        self.positions[..., to, :n] = other.positions[..., of, :n]
        for row, place in zip(mine, theirs, strict=True):
            self.lengths[row], self.expected[row] = other.lengths[place], other.expected[place]
            self.num_images[row] = other.num_images[place]
        self.used.index_copy_(0, to, other.used.index_select(0, of))

    def select(self, rows: Sequence[int]) -> KVCache:
        """A new cache whose row i is a copy of row rows[i]: forks a shared prefix, drops finished rows."""
        new = KVCache.__new__(KVCache)
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.kinds.device)
        new.keys = [k.index_select(0, index) for k in self.keys]
        new.values = [v.index_select(0, index) for v in self.values]
        new.raw_keys = self.raw_keys
        new.lengths = [self.lengths[row] for row in rows]
        new.expected = [self.expected[row] for row in rows]
        new.num_images = [self.num_images[row] for row in rows]
        new.used = self.used.index_select(0, index)
        new.kinds = self.kinds.index_select(0, index)
        new.table = self.table.index_select(1, index)
        new.turning, new.placed = self.turning, None if self.placed is None else self.placed.index_select(-2, index)
        return new
