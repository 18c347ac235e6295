"""Which sequences share a padded grid: the split into a few groups of similar length that pads least.

N sequences, K different lengths.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

MAX_GROUPS = 6
CALL = 128**2
"""What one more group costs in each layer, in cells of a score matrix. Two CPU cores need no longer for 2,000 cells; on
a device that is faster at them a call weighs more."""


def length_groups(lengths_N: Tensor, masked_N: Tensor) -> list[Tensor]:
    """The groups with the least work: B x L^2 cells of scores for B sequences padded to L, and CALL for each group.

    Sequences of one group are neighbours in length, so the best split is found by dynamic programming over the
    different lengths.

    Args:
        lengths_N: int64, tokens of each sequence.
        masked_N: bool; sequences that need a mask share no group with those that do not.

    Returns:
        int64, the members of each group in ascending order; at most MAX_GROUPS, at least one, which may be empty.
    """
    if not len(lengths_N):
        return [lengths_N]
    kind_K, kind_N, count_K = (lengths_N + (masked_N.long() << 32)).unique(return_inverse=True, return_counts=True)
    end_K, length_K, masked_K = count_K.cumsum(0), kind_K & (2**32 - 1), kind_K >> 32
    rows_KK = end_K - (end_K - count_K)[:, None]  # of a group from one kind to another
    work_KK = rows_KK.double() * length_K**2 + CALL
    work_KK = work_KK.masked_fill((rows_KK <= 0) | (masked_K[:, None] != masked_K), torch.inf)
    least, firsts = [work_KK[0]], []  # least[g][k]: work of the kinds up to k in g + 1 groups
    for _ in range(min(MAX_GROUPS, len(kind_K)) - 1):
        work_K, first_K = (least[-1][:-1, None] + work_KK[1:]).min(dim=0)  # the last group begins at a kind after 0
        least.append(work_K)
        firsts.append(first_K + 1)
    best = min(range(len(least)), key=lambda g: float(least[g][-1]))
    bounds = [len(kind_K)]
    for first_K in reversed(firsts[:best]):
        bounds.append(int(first_K[bounds[-1] - 1]))
    return [((kind_N >= first) & (kind_N < end)).nonzero().flatten() for end, first in pairwise([*bounds, 0])]
