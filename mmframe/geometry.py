"""Who sees whom, and where a token stands: the masks and rotary positions that a backbone can have.

Both are functions of what a row says of its tokens, so no data is made anew for another option, and a cache that keeps
these facts gives the same as a fresh forward.

F facts, B rows, L queries, K columns of keys, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError, suggest

if TYPE_CHECKING:
    from mmframe.contracts import Backbone

ATTENTION = ("causal", "image_bidirectional", "prefix")
POSITIONS = ("linear", "shared", "grid", "native")
FACTS = ("docs", "branches", "blocks", "positions")
"""Columns of a batch that every cache keeps, in the order of its table."""


def facts_of(backbone: Backbone) -> tuple[str, ...]:
    """Columns of a batch that the backbone's mask and positions are made of: FACTS, then those of its options."""
    seen = ("prefix",) if backbone.attention == "prefix" else ()
    placed = ("tile_index", "tile_row", "tile_column") if backbone.positions in ("grid", "native") else ()
    return FACTS + seen + placed


def may_attend(query: Tensor, key: Tensor, past_B: Tensor, attention: str, window: int | None = None) -> Tensor:
    """Who sees whom: bool [B, L, K].

    A token sees earlier tokens of its document that stand in the trunk or in its own branch; with
    ``image_bidirectional`` also later slots of its own image; with ``prefix`` a token of the prompt sees all of the
    prompt (prefix LM: arXiv 1910.10683, section 3.2.1; PaliGemma, arXiv 2407.07726). A padding query sees column 0, so
    that no softmax is empty.

    Args:
        query: Facts of the queries [F, B, L], see `facts_of`; -1 marks padding.
        key: The same of the columns [F, B, K]; -1 marks an empty one.
        past_B: Column of each row's first query.
        attention: One of ATTENTION.
        window: Tokens of its document and branch that a query sees at most, back from itself and with it; None: all.
    """
    q_doc, q_branch, q_block, q_place, *q_more = query[:, :, :, None].unbind(0)
    k_doc, k_branch, k_block, k_place, *k_more = key[:, :, None, :].unbind(0)
    column = torch.arange(key.shape[2], device=key.device)
    q_column = torch.arange(query.shape[2], device=key.device)[None, :, None] + past_B[:, None, None]
    seen = column <= q_column
    if attention == "image_bidirectional":
        seen = seen | ((q_block >= 0) & (q_block == k_block))
    elif attention == "prefix":
        seen = seen | ((q_more[0] > 0) & (k_more[0] > 0))
    if window is not None:
        seen = seen & (q_place - k_place < window)  # columns would count other branches
    allowed = (q_doc == k_doc) & ((k_branch == 0) | (q_branch == k_branch)) & seen
    return torch.where(q_doc < 0, column == 0, allowed)


def rotary_positions(facts: Tensor, positions: str) -> Tensor:
    """Where tokens stand: int64 [B, K] under ``shared``, [3, B, K] (time, row, column) under ``grid`` and ``native``.

    shared  All slots of an image stand at one position, and what follows at the next (CogVLM, arXiv 2311.03079).

    grid    A slot has its tile's position as time, and that plus its row and column in the tile as the other two; what
            follows goes on after the largest of the three (M-RoPE: Qwen2-VL, arXiv 2409.12191 section 2.1; SAIL's
            released example). Each tile is a grid of its own. Slots without a place stand as text does: all three
            alike, one after another.
    native  Slots of a tile share their time, as of ``shared``; row and column count from 0 in the tile and are 0
            elsewhere (NEO, arXiv 2510.14979, as its released code has it).

    No token's place depends on a later one. Every document starts at 0, and a branch goes on from its trunk's end.

    Args:
        facts: [F, B, K], see `facts_of`; -1 marks an empty column. Rows are whole: from the first token of a document.
        positions: ``shared``, ``grid`` or ``native``.
    """
    doc, branch, block, linear = facts[:4]
    tile, row, column = facts[-3:] if positions != "shared" else (block, *[(block >= 0).long() - 1] * 2)
    index = torch.arange(doc.shape[1], device=doc.device).expand_as(doc)
    new_doc = _changes(doc)
    new_path = new_doc | _changes(branch)
    placed = row >= 0
    begins = placed & (new_path | _changes(block) | _changes(tile) | _changes(placed))
    start = _latest(begins, index)
    offset = torch.where(placed, index - start, 0)  # in the run of slots that share a time
    # the reach of a run grows as it goes on; its start in front keeps those of earlier runs apart
    far = torch.maximum(row, column).clamp(min=0) if positions == "grid" else torch.zeros_like(row)
    reach = ((start << 32) + far).cummax(1).values & (2**32 - 1)
    ends = placed & torch.cat([begins[:, 1:] | ~placed[:, 1:], placed[:, -1:]], dim=1)
    saved = torch.where(ends, offset - reach, 0)  # by the whole run, beside one position a slot
    before = saved.cumsum(1) - saved
    trunk_end = _latest((branch > 0) & (new_doc | (branch.roll(1, 1) <= 0)), index)
    of_trunk = before.gather(1, trunk_end) - before.gather(1, _latest(new_doc, index))
    time = linear - offset - (before - before.gather(1, _latest(new_path, index)))
    time = time - torch.where(branch > 0, of_trunk, 0)
    if positions == "shared":
        return time
    base = time if positions == "grid" else torch.zeros_like(time)
    return torch.stack([time, base + row.clamp(min=0), base + torch.where(placed, column, 0)])


def _changes(x_BK: Tensor) -> Tensor:
    """Where a column differs from the one before it, and the first."""
    return torch.cat([torch.ones_like(x_BK[:, :1], dtype=torch.bool), x_BK[:, 1:] != x_BK[:, :-1]], dim=1)


def _latest(marked_BK: Tensor, index_BK: Tensor) -> Tensor:
    """The last marked column up to each, or 0."""
    return torch.where(marked_BK, index_BK, 0).cummax(1).values


def next_positions(positions: Tensor, kind: str) -> Tensor:
    """Where a text token stands that follows tokens at `positions` [..., B].

    On a grid that is after the largest of its three numbers: the last slot of a tile has the largest ones, since slots
    stand row by row.
    """
    if kind == "grid":
        return (positions.amax(0) + 1).expand(3, -1)
    if kind == "native":
        return torch.stack([positions[0] + 1, *[torch.zeros_like(positions[0])] * 2])
    return positions + 1


def check_option(name: str, value: str, known: tuple[str, ...]) -> str:
    """Returns an option of a backbone, or says which there are."""
    if value not in known:
        raise UserError(f"backbone: {name}={value!r} is not known; {suggest(value, known)}")
    return value
