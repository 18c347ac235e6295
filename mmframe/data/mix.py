"""Mix: which record stands at which place of an epoch, over several sources. A pure function of (seed, epoch, place).

A *draw* is one visit of a record. The draws of an epoch are numbered source by source, those of the next epoch go on
from there; `order` shuffles an epoch's. A source is gone through in passes, each in an order of its own; an epoch takes
up a pass where the last epoch left it, so that a repeat of 0.1 has seen every record once after ten epochs, and a
repeat of 2 twice in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmframe.data.order import Shuffle, hash_of, systematic_counts


@dataclass(frozen=True)
class Draws:
    """Some draws, resolved; int64 [n] each.

    Attributes:
        part: number of the source.
        record: index of the record in its source.
        visit: how often the record has been visited before, over all epochs.
    """

    part: np.ndarray
    record: np.ndarray
    visit: np.ndarray


class Mix:
    """The draws of every epoch.

    Args:
        good: for each source, the indices of the records that can be learnt from, or their number if all can.
        repeats: passes over each source in an epoch.
        temperature: 1 keeps these proportions; 2 draws sources by the square root of their size; the higher, the more
            alike. The number of draws in an epoch stays the same.
        seed: of the run; None keeps everything in order (validation).
    """

    def __init__(
        self,
        good: Sequence[np.ndarray | int],
        repeats: Sequence[float],
        temperature: float = 1.0,
        seed: int | None = 0,
    ) -> None:
        self.good, self.seed = list(good), seed
        self.sizes = [g if isinstance(g, int) else len(g) for g in good]
        wanted = np.array([n * r for n, r in zip(self.sizes, repeats, strict=True)], dtype=np.float64)
        counts = np.maximum(np.rint(wanted).astype(np.int64), np.array(self.sizes) > 0)
        if temperature != 1.0 and counts.sum():
            counts = systematic_counts(np.where(wanted > 0, wanted ** (1 / temperature), 0), int(counts.sum()), 0.5)
        self.counts = counts
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def order(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """int64: the draws at these places of an epoch."""
        inside = places if self.seed is None else Shuffle(len(self), self.seed, epoch, 10).at(places)
        return inside.astype(np.int64) + epoch * len(self)

    def resolve(self, draws: np.ndarray) -> Draws:
        """The records of some draws, of any epochs."""
        epoch, draws = np.divmod(np.asarray(draws, dtype=np.int64), max(1, len(self)))
        part = np.searchsorted(self._ends, draws, side="right")
        record, visit = np.empty(len(draws), np.int64), np.empty(len(draws), np.int64)
        for number in np.unique(part):
            here = part == number
            size, good = self.sizes[number], self.good[number]
            inside = draws[here] - (self._ends[number] - self.counts[number])
            passed, row = np.divmod(epoch[here] * self.counts[number] + inside, size)
            if self.seed is not None:
                for each in np.unique(passed):
                    of = passed == each
                    row[of] = Shuffle(size, self.seed, int(number), int(each), 11).at(row[of])
            record[here] = row if isinstance(good, int) else good[row]
            visit[here] = passed
        return Draws(part, record, visit)

    def chance(self, draws: Draws, purpose: int) -> np.ndarray:
        """float64 in [0, 1) for each draw: what is drawn for a visit of a record, for one purpose."""
        mixed = hash_of(draws.record, self.seed or 0, purpose)
        mixed = hash_of(mixed >> np.uint64(1) ^ draws.part.astype(np.uint64), 0)
        mixed = hash_of(mixed >> np.uint64(1) ^ draws.visit.astype(np.uint64), 1)
        return (mixed >> np.uint64(11)) / 2**53
