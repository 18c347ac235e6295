"""Which rows of a batch belong to which expert, as the kernels want to know it: a table of tiles, made once a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cupy_kernels.errors import KernelError

TILE_ROWS = 128
NUM_EXPERTS = 2


@dataclass(frozen=True)
class TileTable:
    """Made on the host, once a batch; every layer and every site uses it.

    spans  (expert, first row, end) one after another, in the order of the rows: host integers, nothing waits for them
    tiles  int32 [m, 4] on the device: first row, rows (at most TILE_ROWS), expert, 0
    rows   of the batch
    """

    spans: tuple[int, ...]
    tiles: Tensor
    rows: int

    @classmethod
    def make(cls, spans: Sequence[tuple[int, int, int]], device: torch.device | str) -> TileTable:
        """
        Args:
            spans: (expert, first row, end); together they cover the rows 0.. without gaps, in order. Empty ones may be.
            device: Of the batch.

        Raises:
            KernelError: an expert that does not exist, a gap or an overlap; names the span.
        """
        at, table = 0, []
        for number, (expert, first, end) in enumerate(spans):
            if not 0 <= expert < NUM_EXPERTS:
                raise KernelError(f"spans: span {number} is of expert {expert}; there are {NUM_EXPERTS}")
            if first != at or end < first:
                raise KernelError(f"spans: span {number} is rows {first} to {end}, the one before ends at {at}")
            table += [(row, min(TILE_ROWS, end - row), expert, 0) for row in range(first, end, TILE_ROWS)]
            at = end
        tiles = torch.tensor(table, dtype=torch.int32).view(-1, 4).to(device)
        return cls(tuple(number for span in spans for number in span), tiles, at)

    @classmethod
    def sorted(cls, sizes: Sequence[int], device: torch.device | str) -> TileTable:
        """Rows in order of their experts: the first sizes[0] of expert 0, then sizes[1] of expert 1."""
        first, spans = 0, []
        for expert, size in enumerate(sizes):
            spans.append((expert, first, first + size))
            first += size
        return cls.make(spans, device)


def triples(spans: Sequence[int]) -> list[tuple[int, int, int]]:
    """(expert, first, end) of the spans that have rows, from their flat form."""
    return [(spans[i], spans[i + 1], spans[i + 2]) for i in range(0, len(spans), 3) if spans[i + 1] < spans[i + 2]]
