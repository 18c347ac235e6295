"""Prompts of a batch that begin alike, as questions about one picture do: their beginning runs once.

B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmframe.batch import COLUMNS, Sample
from mmframe.cache import KVCache
from mmframe.generation import part_of, run_prompts
from mmframe.model import MultimodalLM

LEAST = 128
"""Tokens of a batch that must be saved: fewer are not worth a second pass."""


@dataclass(frozen=True)
class Beginning:
    """What some prompts have in common.

    Attributes:
        rows: their places in the batch, two or more.
        length: tokens, all pictures among them, and fewer than any of the prompts has.
    """

    rows: list[int]
    length: int

    @property
    def saved(self) -> int:
        """Tokens that need not run again."""
        return (len(self.rows) - 1) * self.length


def shared_beginnings(prompts: Sequence[Sample]) -> list[Beginning]:
    """The prompts that have the same pictures, and the same tokens up to behind the last of them."""
    kin: list[list[int]] = []
    likely: dict[tuple, list[list[int]]] = {}
    for row, prompt in enumerate(prompts):
        few = prompt.tiles[..., ::16, ::16]
        near = likely.setdefault((prompt.tiles.shape, prompt.image_tiles, few.float().sum().item()), [])
        mine = next((rows for rows in near if torch.equal(prompts[rows[0]].tiles, prompt.tiles)), None)
        if mine is None:
            near.append(mine := [])
            kin.append(mine)
        mine.append(row)
    found = []
    for rows in kin:
        first = prompts[rows[0]]
        length = min(len(prompts[row]) - 1 for row in rows)
        for row in rows[1:]:
            length = min(length, _common(first, prompts[row], length))
        slots = (first.blocks >= 0).nonzero()
        if len(rows) > 1 and length > (int(slots[-1]) if len(slots) else 0):
            found.append(Beginning(rows, length))
    return found


def _common(one: Sample, other: Sample, most: int) -> int:
    """Tokens at the front that are the same in every respect that the model sees."""
    same = torch.ones(most, dtype=torch.bool)
    for name in COLUMNS:
        if name != "labels":
            same &= getattr(one, name)[:most] == getattr(other, name)[:most]
    return most if bool(same.all()) else int(same.long().argmin())


def run_beginnings(
    net: MultimodalLM, prompts: Sequence[Sample], cache: KVCache, chunk: int | None = None
) -> Sequence[Sample]:
    """Runs what prompts share, once, and puts it into the rows of a cache.

    Nothing runs where little would be saved, where the cache holds something already, or where a beginning would not
    be what it is within its whole: a ``prefix`` mask lets it see the question, and keys that are kept before rotation
    turn by the length of the whole (dynamic NTK beyond the trained context).

    Args:
        net: The model, in eval mode.
        prompts: One for each row of the cache.
        cache: Is advanced by the beginnings.
        chunk: See run_prompts.

    Returns:
        What is left of each prompt, to be run into the same cache: the prompts themselves where nothing was run.
    """
    if any(cache.lengths) or cache.raw_keys or net.backbone.attention == "prefix":
        return prompts
    beginnings = shared_beginnings(prompts)
    if sum(beginning.saved for beginning in beginnings) < LEAST:
        return prompts
    wholes = [prompts[each.rows[0]] for each in beginnings]
    parts = [
        replace(part_of(whole, 0, each.length), tiles=whole.tiles)
        for whole, each in zip(wholes, beginnings, strict=True)
    ]
    once = net.backbone.new_cache(len(parts), max(map(len, parts)))
    run_prompts(net, parts, once, chunk)
    source, left = [-1] * len(prompts), list(prompts)
    for number, beginning in enumerate(beginnings):
        for row in beginning.rows:
            source[row] = number
            left[row] = part_of(prompts[row], beginning.length, len(prompts[row]))
    cache.take(once, source)
    return left
