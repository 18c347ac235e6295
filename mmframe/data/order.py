"""Order by hashing: permutations and draws that are pure functions of their key, on every platform and version."""

from __future__ import annotations

from typing import Any

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15


def hash64(count: int, *key: int) -> np.ndarray:
    """uint64 [count]: a pseudo-random number for each of 0..count-1, from the key (seed, epoch, ...) alone."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):  # wrapping around is what the hash wants
        for part in key:
            state = _mix(state + np.uint64((part + 1) * _GOLDEN % 2**64))
        return _mix(state + (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)))


def permutation(count: int, *key: int) -> np.ndarray:
    """int64 [count]: a permutation of 0..count-1 that depends on the key alone."""
    return np.argsort(hash64(count, *key), kind="stable")


def uniform(*key: int) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return float(hash64(1, *key)[0] >> np.uint64(11)) / 2**53


def systematic_counts(weights: np.ndarray, total: int, offset: float) -> np.ndarray:
    """How often to draw each item so that `total` are drawn in proportion to the weights.

    One comb of `total` equally spaced teeth, shifted by `offset` in [0, 1), is laid over the weights put end to end:
    every item, and every run of neighbouring items, is drawn its exact share, rounded up or down.

    Args:
        weights: float [n], not negative, not all zero.
        total: number of draws.
        offset: shift of the comb.

    Returns:
        int64 [n], sum is `total`.
    """
    ends = np.cumsum(weights, dtype=np.float64)
    teeth = np.floor(ends / ends[-1] * total + offset).astype(np.int64)
    teeth[-1] = total  # rounding of the last sum must not lose or add a draw
    return np.diff(np.minimum(teeth, total), prepend=0)


def _mix(value: Any) -> Any:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hash_of(values: np.ndarray, *key: int) -> np.ndarray:
    """uint64, as `values`: a pseudo-random number for each value (0 or more), from the value and the key alone."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for part in key:
            state = _mix(state + np.uint64((part + 1) * _GOLDEN % 2**64))
        return _mix(state + (np.asarray(values).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


class Shuffle:
    """A permutation of 0..count-1 that is computed, not stored: any place of a billion costs the same few steps.

    A Feistel network of six rounds over the next power of four permutes a little more than `count` numbers; a result
    outside is sent through again until it lies inside (cycle walking; Black and Rogaway, 2002, "Ciphers with Arbitrary
    Finite Domains"). `permutation` sorts instead, and takes memory for all of them.

    Args:
        count: how many numbers.
        key: everything the order depends on.
    """

    def __init__(self, count: int, *key: int) -> None:
        self.count, self.key = count, key
        self._bits = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._mask = np.uint64(2 ** int(self._bits) - 1)

    def at(self, places: np.ndarray) -> np.ndarray:
        """int64, as `places`: the number at each place.

        Raises:
            IndexError: a place is not in 0..count-1.
        """
        places = np.asarray(places)
        if places.size and not (0 <= places.min() and places.max() < self.count):
            raise IndexError(f"places {places.min()}..{places.max()} of a shuffle of {self.count}")
        found = self._rounds(places.astype(np.uint64))
        while (outside := found >= self.count).any():
            found[outside] = self._rounds(found[outside])
        return found.astype(np.int64)

    def _rounds(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._bits, values & self._mask
        for number in range(6):
            left, right = right, left ^ (hash_of(right, *self.key, number) & self._mask)
        return (left << self._bits) | right
