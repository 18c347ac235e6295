"""Key-value cache of a batch of sequences; it remembers what each position holds.

B rows, C capacity, K columns in use, H key-value heads, T tokens of the present call in plan order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.kinds import TokenKind

if TYPE_CHECKING:
    from mmframe.batch import Batch
    from mmframe.layout import Layout


class KVCache:
    """Keys and values per layer, and per position its kind, document, branch, image block and rotary position.

    Routing and masks never guess from the cache: an image in the third turn, a chunked prefill and a prompt of
    one token all take the way of a fresh forward.

    Args:
        raw_keys: Keep keys before rotation and rotate on reading. Needed where the rotary base depends on the
            length (dynamic NTK beyond the trained context), else the cached keys would keep an old base.
    """

    def __init__(
        self,
        num_layers: int,
        rows: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        raw_keys: bool = False,
    ) -> None:
        shape = (rows, capacity, kv_heads, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.raw_keys = raw_keys
        self.lengths = [0] * rows
        self.num_images = [0] * rows
        self.kinds = torch.full((rows, capacity), TokenKind.PAD, dtype=torch.int8, device=device)
        # docs, branches, blocks, positions: [4, B, C]; -1 marks an empty column
        self.table = torch.full((4, rows, capacity), -1, dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        return self.kinds.shape[1]

    def begin(self, batch: Batch) -> None:
        """Checks that the batch fits; call before anything is written.

        Raises:
            UserError: another number of rows, or more tokens than the capacity.
        """
        if batch.num_rows != len(self.lengths):
            raise UserError(f"cache: {batch.num_rows} rows given, made for {len(self.lengths)}")
        for row, (past, new) in enumerate(zip(self.lengths, batch.row_lengths, strict=True)):
            if past + new > self.capacity:
                raise UserError(
                    f"cache: row {row} would hold {past + new} tokens, capacity is {self.capacity}; "
                    "ask for fewer new tokens or a larger cache"
                )

    def describe(self, rows: Tensor, columns: Tensor, kinds: Tensor, facts: Tensor) -> None:
        """Writes kinds [T] and facts [4, T] (docs, branches, blocks, positions) of new tokens."""
        self.kinds[rows, columns] = kinds
        self.table[:, rows, columns] = facts

    def write(self, layer: int, k_THd: Tensor, v_THd: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Stores new keys and values; returns all in use: [B, K, H, head_dim]."""
        keys, values = self.keys[layer], self.values[layer]
        keys[layout.rows, layout.columns] = k_THd
        values[layout.rows, layout.columns] = v_THd
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

    def select(self, rows: Sequence[int]) -> KVCache:
        """A new cache whose row i is a copy of row rows[i]: forks a shared prefix, drops finished rows."""
        new = KVCache.__new__(KVCache)
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.kinds.device)
        new.keys = [k.index_select(0, index) for k in self.keys]
        new.values = [v.index_select(0, index) for v in self.values]
        new.raw_keys = self.raw_keys
        new.lengths = [self.lengths[row] for row in rows]
        new.num_images = [self.num_images[row] for row in rows]
        new.kinds = self.kinds.index_select(0, index)
        new.table = self.table.index_select(1, index)
        return new
