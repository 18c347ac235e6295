"""Greedy generation over a cache that knows token kinds.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmframe.batch import Batch, Sample
from mmframe.cache import KVCache
from mmframe.model import MultimodalLM


@dataclass(frozen=True)
class Generation:
    """New token ids of each row, without the stop token; scores [steps, B, V] if asked for."""

    ids: list[list[int]]
    scores: Tensor | None = None


def _last_places(batch: Batch) -> Tensor:
    lengths = torch.tensor(batch.row_lengths, device=batch.ids.device)
    return lengths.cumsum(0) - 1


def _step(ids: list[int], positions: list[int], device: torch.device) -> Batch:
    rows = [Sample.from_ids([i], positions=[p]) for i, p in zip(ids, positions, strict=True)]
    return Batch.collate(rows).to(device)


@torch.no_grad()
def generate(
    net: MultimodalLM,
    prompts: Sequence[Sample],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    prefix: KVCache | None = None,
    want_scores: bool = False,
) -> Generation:
    """Continues each prompt with its most likely tokens.

    Args:
        net: The model; put it in eval mode.
        prompts: One row each; with `prefix`, the continuation of its row (positions go on from the past).
        max_new_tokens: At most so many new tokens a row.
        stop_ids: A row ends with one of them; it is not returned.
        prefix: A cache with the rows' past, e.g. an image shared by several questions, forked with `select`.
            It must have room for prompt and new tokens. Without it a cache is made.
        want_scores: Also return the logits of every step.
    """
    device = next(net.parameters()).device
    batch = Batch.collate(prompts).to(device)
    capacity = max(batch.row_lengths) + max_new_tokens
    cache = net.backbone.new_cache(len(prompts), capacity) if prefix is None else prefix
    positions = [int(sample.positions[-1]) for sample in prompts]
    logits_BV = net(batch, logits_at=_last_places(batch), cache=cache).logits
    rows = list(range(len(prompts)))  # rows still running, by their number in `prompts`
    out: list[list[int]] = [[] for _ in prompts]
    scores: list[Tensor] = []
    for step in range(max_new_tokens):
        if want_scores:
            scores.append(logits_BV)
        tokens = logits_BV.argmax(-1).tolist()
        running = [i for i, token in enumerate(tokens) if token not in stop_ids]
        for i in running:
            out[rows[i]].append(tokens[i])
        if not running or step + 1 == max_new_tokens:
            break
        if len(running) < len(rows) and not want_scores:  # finished rows leave the batch
            cache = cache.select(running)
            rows = [rows[i] for i in running]
            tokens = [tokens[i] for i in running]
        positions_now = [positions[row] + step + 1 for row in rows]
        batch = _step(tokens, positions_now, device)
        logits_BV = net(batch, logits_at=_last_places(batch), cache=cache).logits
    return Generation(out, torch.stack(scores) if scores else None)


@torch.no_grad()
def prefill(net: MultimodalLM, prompts: Sequence[Sample], capacity: int) -> KVCache:
    """Runs prompts into a new cache of `capacity` tokens a row: the shared past of several questions."""
    batch = Batch.collate(prompts).to(next(net.parameters()).device)
    cache = net.backbone.new_cache(len(prompts), capacity)
    net(batch, logits_at=torch.zeros(0, dtype=torch.int64, device=batch.ids.device), cache=cache)
    return cache
