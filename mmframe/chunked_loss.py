"""Cross entropy over a large vocabulary without ever holding all logits.

S supervised tokens, V vocabulary, D hidden size. InternLM2's vocabulary is 92,553: 8192 supervised tokens have 1.5 GB
of logits in bf16, and as much again of gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmframe.recompute import recomputed


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor],
    h_SD: Tensor,
    labels_S: Tensor,
    chunk: int,
    cross_entropy: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Cross entropy of each position, fp32 [S]: `chunk` positions at a time through the head, again in the backward.

    Logits and their gradients exist for one chunk at a time; the head's matrix product runs once more. Each position's
    loss is what it would be without chunks; only the gradient of the head's weight is summed in another order.

    Args:
        head: Hidden states [n, D] -> logits [n, V].
        h_SD: Hidden states at the supervised positions.
        labels_S: int64.
        chunk: Positions at a time.
        cross_entropy: Logits [n, V], labels [n] -> [n].
    """

    def of_chunk(h: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head(h), labels)

    parts = zip(h_SD.split(chunk), labels_S.split(chunk), strict=True)
    return torch.cat([recomputed(of_chunk, h, labels, to_the_end=True) for h, labels in parts])
