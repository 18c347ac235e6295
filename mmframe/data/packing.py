"""Packs: several rows put together to rows of nearly equal length, planned from lengths before anything is decoded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappush, heapreplace

import numpy as np

WINDOW = 16384
"""Draws that are packed together. Large enough that what is left over at its end does not count, small enough that
neighbours in the order stay near one another and a plan for a billion rows needs little memory."""
_GOOD = 0.985


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Puts items into as few packs as two heuristics can.

    Args:
        lengths: of the items, each at most `limit`.
        limit: of a pack.

    Returns:
        Items of each pack.
    """
    packs = best_fit(lengths, limit)
    if len(packs) < 2 or sum(lengths) >= _GOOD * limit * len(packs):
        return packs
    return min(packs, exchanged(lengths, limit), key=len)


def best_fit(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Longest first, each to where the least room stays: good for lengths of every kind (Johnson, 1974)."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, pack), sorted
    for item in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        length = lengths[item]
        place = bisect_left(room, (length, -1))
        if place == len(room):
            left, number = limit, len(packs)
            packs.append([])
        else:
            left, number = room.pop(place)
        packs[number].append(item)
        insort(room, (left - length, number))
    return packs


def exchanged(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Pack by pack, as items come; then each item is changed for the longest that fits in its place.

    Good where all lengths are alike (pictures of one tile): there best fit wastes nearly half an item in each pack,
    while a few slightly longer ones in place of others fill it.
    """
    count = len(lengths)
    pool = sorted((length, item) for item, length in enumerate(lengths))
    free = bytearray(b"\1") * count
    packs: list[list[int]] = []
    first = 0  # no item before it is free

    def take(place: int) -> tuple[int, int]:
        length, item = pool.pop(place)
        free[item] = 0
        return length, item

    while pool:
        room, chosen, item = limit, [], first
        while item < count and (not free[item] or lengths[item] <= room):
            if free[item]:
                chosen.append(take(bisect_left(pool, (lengths[item], item))))
                room -= lengths[item]
            item += 1
        first = item
        while (place := bisect_right(pool, (room, count))) > 0:
            chosen.append(take(place - 1))
            room -= chosen[-1][0]
        for number, (length, item) in enumerate(chosen):
            place = bisect_right(pool, (length + room, count)) - 1
            if room and place >= 0 and pool[place][0] > length:
                chosen[number] = take(place)
                room -= chosen[number][0] - length
                insort(pool, (length, item))
                free[item] = 1
                first = min(first, item)
        packs.append([item for _, item in chosen])
    return packs


@dataclass(frozen=True)
class Packs:
    """Draws of some packs, one after another: pack i holds `draws[starts[i]:starts[i + 1]]`."""

    draws: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.draws[self.starts[index] : self.starts[index + 1]]

    @classmethod
    def of(cls, groups: Sequence[np.ndarray]) -> Packs:
        sizes = [len(group) for group in groups]
        draws = np.concatenate(groups) if groups else np.zeros(0, np.int64)
        return cls(draws.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def resized(self, count: int) -> tuple[Packs, np.ndarray]:
        """As many packs as `count`, and the draws that are left over.

        Where there are too many packs the last ones are left over; where there are too few, full ones are halved,
        until one draw stands in each.
        """
        if len(self.draws) < count:
            raise ValueError(f"{len(self.draws)} draws cannot fill {count} packs")
        groups = [self[i] for i in range(len(self))]
        left = groups[count:]
        groups = groups[:count]
        by_size = [(-len(group), number) for number, group in enumerate(groups)]
        heapify(by_size)
        while len(groups) < count:
            _, number = by_size[0]
            half = len(groups[number]) // 2
            groups.append(groups[number][half:])
            groups[number] = groups[number][:half]
            heapreplace(by_size, (-half, number))
            heappush(by_size, (-len(groups[-1]), len(groups) - 1))
        return Packs.of(groups), np.concatenate(left) if left else np.zeros(0, np.int64)
