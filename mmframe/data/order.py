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
