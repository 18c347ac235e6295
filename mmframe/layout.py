"""Attention geometry of one batch: where tokens stand in the padded grids, who sees whom, rotary angles.

Without a cache the sequences are documents: they never see one another, so each is a row of its own, and a packed row
costs what its documents cost. With a cache they are its rows.

N sequences of the batch, B of a group, L the longest of these, K columns of keys (with a cache: past and present),
C cells of all groups, T tokens in plan order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmframe.batch import Batch
from mmframe.geometry import facts_of, may_attend, next_positions, rotary_positions
from mmframe.kinds import TokenKind
from mmframe.length_groups import length_groups
from mmframe.plan import Plan
from mmframe.prefix import prefix_documents, refuse_pieces

if TYPE_CHECKING:
    from mmframe.cache import KVCache
    from mmframe.contracts import Backbone


class _Gather(torch.autograd.Function):
    """y = x[index] where `back` undoes it, so that the backward is a gather too and adds nothing up.

    `holes` are places of x that no y takes (padding cells); their gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, holes: Tensor | None) -> Tensor:
        ctx.back, ctx.holes = back, holes
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0].index_select(0, ctx.back)
        if ctx.holes is not None:
            grad.index_fill_(0, ctx.holes, 0.0)
        return grad, None, None, None


@dataclass(frozen=True)
class Group:
    """Sequences of similar length in one padded grid [B, L]: one call of attention in each layer.

    Plain causal attention runs on flash kernels that torch brings along. So documents of different lengths need no
    kernel that must be built first (flash-attn) or compiled (FlexAttention): those could save no more than the padding
    that is left in the groups.

    mask        bool [B, 1, L, K], True = may attend; None = plain causal attention
    local_mask  that of local layers, of a backbone with a window
    """

    num_rows: int
    length: int
    mask: Tensor | None = None
    local_mask: Tensor | None = None

    @property
    def cells(self) -> int:
        return self.num_rows * self.length


@dataclass(frozen=True)
class _Sequences:
    """What stands in the grids. All of it on the host.

    lengths  int64 [N], tokens in this call
    past     int64 [N], tokens before it
    turning  int64 [N], lengths that the rotary angles are those of
    groups   the members of each group
    masked   of each group: whether plain causal attention is not enough
    """

    lengths: Tensor
    past: Tensor
    turning: Tensor
    groups: list[Tensor]
    masked: list[bool]

    @classmethod
    def documents(cls, batch: Batch, masked: Tensor) -> _Sequences:
        lengths = batch.doc_lengths
        groups = length_groups(lengths, masked)
        return cls(lengths, torch.zeros_like(lengths), lengths, groups, [bool(masked[group].any()) for group in groups])

    @classmethod
    def rows(cls, batch: Batch, masked: Tensor, cache: KVCache) -> _Sequences:
        lengths, past = torch.tensor(batch.row_lengths), torch.tensor(cache.lengths)
        # a prompt that comes in pieces turns by the length of the whole
        turning = (past + lengths).maximum(torch.tensor(cache.expected))
        packed = len(batch.doc_lengths) > int((lengths > 0).sum())
        begun = any(cache.lengths)  # a row that begins sees nothing but itself
        return cls(lengths, past, turning, [torch.arange(len(lengths))], [packed or begun or bool(masked.any())])

    def cells(self) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """Rows and columns of each grid; the token in each cell [C], and whether the cell is padding. Padding repeats
        the last token of its own sequence, so that nothing of a neighbour, not even a NaN, comes near."""
        start = self.lengths.cumsum(0) - self.lengths
        shapes, tokens, holes = [], [], []
        for group in self.groups:
            lengths_B1 = self.lengths[group, None]
            column_L = torch.arange(int(lengths_B1.max()) if len(group) else 0)
            tokens.append((start[group, None] + column_L.minimum(lengths_B1 - 1)).clamp(min=0))
            holes.append(column_L >= lengths_B1)
            shapes.append((len(group), len(column_L)))
        return shapes, torch.cat([t.flatten() for t in tokens]), torch.cat([h.flatten() for h in holes])

    def remember(self, batch: Batch, facts: Tensor, attention: str, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Writes down in the cache what the new tokens are; returns the row and column of each there.

        Args:
            batch: The tokens.
            facts: [F, T]; images get the numbers that they have in the cache.
            attention: Of the backbone.
            cache: Is told.
        """
        device = facts.device
        before_N = self.past - (self.lengths.cumsum(0) - self.lengths)
        rows = torch.arange(len(self.lengths)).repeat_interleave(self.lengths)
        columns = (torch.arange(batch.num_tokens) + before_N[rows]).to(device)
        rows = rows.to(device)
        if attention == "prefix":
            refuse_pieces(batch, facts, rows, cache)
        images_before = torch.tensor(cache.num_images, device=device)[rows]
        facts[2] = torch.where(facts[2] >= 0, facts[2] + images_before, -1)  # those of earlier calls keep theirs
        cache.describe(rows, columns, batch.kinds.to(device), facts)
        return rows, columns


@dataclass(frozen=True)
class Layout:
    """Made once per batch, used by every layer. Cells are the places of the groups' grids, one grid after another.

    to_grid           int64 [C]: plan place of the token in each cell
    from_grid         int64 [T]: cell of each token
    holes             int64 [padding cells] or None
    cos, sin          [T, 1, head_dim] rotary angles
    direct            the cells are the tokens, in order: nothing is gathered
    context           K, with a cache
    slots             int64 [T], with a cache: row x capacity + column, each token's place in it
    key_cos, key_sin  [B, K, 1, head_dim], with a cache of raw keys
    """

    groups: tuple[Group, ...]
    to_grid: Tensor
    from_grid: Tensor
    holes: Tensor | None
    cos: Tensor
    sin: Tensor
    direct: bool = False
    context: int = 0
    slots: Tensor | None = None
    key_cos: Tensor | None = None
    key_sin: Tensor | None = None

    @classmethod
    def build(
        cls, batch: Batch, plan: Plan, backbone: Backbone, dtype: torch.dtype, cache: KVCache | None = None
    ) -> Layout:
        """Host arithmetic on lengths and the plan; masks are computed on the device."""
        device, order, inverse = batch.ids.device, plan.order_host, plan.inverse_host

        def planned(x_T: Tensor) -> Tensor:
            return (x_T if order is None else x_T[order]).to(device)

        masked = _masked_documents(batch, backbone.attention)
        if backbone.window is not None:
            masked = masked | (batch.doc_lengths > backbone.window)
        of = _Sequences.documents(batch, masked) if cache is None else _Sequences.rows(batch, masked, cache)
        shapes, token_C, is_hole_C = of.cells()
        cell_T = torch.empty(batch.num_tokens, dtype=torch.int64)
        cell_T[token_C[~is_hole_C]] = (~is_hole_C).nonzero().flatten()
        sequence_T = torch.arange(len(of.lengths)).repeat_interleave(of.lengths)
        positions = batch.positions
        facts, context, slots = None, 0, None
        if cache is not None or any(of.masked) or backbone.positions != "linear":
            facts = torch.stack([getattr(batch, name).to(device).long() for name in facts_of(backbone)])
            if cache is not None:
                rows, columns = of.remember(batch, facts, backbone.attention, cache)
                context, slots = int((of.past + of.lengths).max()), plan.sort(rows * cache.capacity + columns)
                if backbone.positions != "linear":
                    positions = cache.place(context)[..., rows, columns]
            elif backbone.positions != "linear":  # all in one row, where `docs` do not tell rows apart
                whole = torch.stack([sequence_T.to(device), *facts[1:]])[:, None]
                positions = rotary_positions(whole, backbone.positions)[..., 0, :]
        if plan.order is not None:
            positions = positions.index_select(-1, plan.order)
            facts = None if facts is None else facts[:, plan.order]
        cos, sin = backbone.rope(positions, planned(of.turning[sequence_T]))
        layout = cls(
            groups=tuple(Group(*shape) for shape in shapes),
            to_grid=(token_C if inverse is None else inverse[token_C]).to(device),
            from_grid=planned(cell_T),
            holes=is_hole_C.nonzero().flatten().to(device) if bool(is_hole_C.any()) else None,
            cos=cos.to(dtype)[:, None],
            sin=sin.to(dtype)[:, None],
            direct=order is None and torch.equal(token_C, torch.arange(batch.num_tokens)),
            context=context,
            slots=slots,
        )
        if cache is not None and cache.raw_keys:
            layout = layout._with_key_angles(backbone, cache, of.turning.to(device), dtype)
        return layout if facts is None else layout._with_masks(of, facts, backbone, cache)

    @classmethod
    def for_step(cls, backbone: Backbone, cache: KVCache, dtype: torch.dtype, context: int) -> Layout:
        """One more text token in each row, which goes on with its row's document, branch and positions.

        Everything is read from the cache on the device, so that no step waits for the host; with `context` = the
        cache's capacity no shape depends on what the cache holds.
        """
        rows = torch.arange(cache.num_rows, device=cache.used.device)
        columns = cache.used.clone()  # the cache counts on in place
        doc, branch, _, position, *more = cache.table[:, rows, columns - 1].unbind(0)
        none = torch.full_like(doc, -1)
        facts = torch.stack([doc, branch, none, position + 1, *(none for _ in more)])
        cache.describe(rows, columns, torch.full_like(doc, TokenKind.TEXT, dtype=torch.int8), facts)
        masks = _masks(facts[:, :, None], cache.table[:, :, :context], columns, backbone)
        positions = facts[3]
        if backbone.positions != "linear":
            positions = next_positions(cache.positions[..., rows, columns - 1], backbone.positions)
            cache.positions[..., rows, columns] = positions
        cos, sin = backbone.rope(positions, columns + 1)
        layout = cls(
            groups=(Group(cache.num_rows, 1, **masks),),
            to_grid=rows,
            from_grid=rows,
            holes=None,
            cos=cos.to(dtype)[:, None],
            sin=sin.to(dtype)[:, None],
            direct=True,
            context=context,
            slots=rows * cache.capacity + columns,
        )
        return layout._with_key_angles(backbone, cache, columns + 1, dtype) if cache.raw_keys else layout

    def local(self) -> Layout:
        """The same for local layers, of a backbone with a window."""
        return replace(self, groups=tuple(replace(group, mask=group.local_mask) for group in self.groups))

    def grid(self, x_T: Tensor) -> list[Tensor]:
        """[T, ...] in plan order -> [B, L, ...] of each group."""
        cells: Tensor = x_T if self.direct else _Gather.apply(x_T, self.to_grid, self.from_grid, None)  # type: ignore
        parts = cells.split([group.cells for group in self.groups]) if len(self.groups) > 1 else [cells]
        return [
            part.view(group.num_rows, group.length, *x_T.shape[1:])
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def ungrid(self, parts: list[Tensor]) -> Tensor:
        """[B, L, ...] of each group -> [T, ...] in plan order; padding cells are dropped."""
        cells = [part.flatten(0, 1) for part in parts]
        flat = torch.cat(cells) if len(cells) > 1 else cells[0]
        if self.direct:
            return flat
        return _Gather.apply(flat, self.from_grid, self.to_grid, self.holes)  # type: ignore[return-value]

    def _with_masks(self, of: _Sequences, facts: Tensor, backbone: Backbone, cache: KVCache | None) -> Layout:
        """Adds the masks of the groups where plain causal attention is not enough."""
        if not any(of.masked):
            return self
        query = facts.new_full((len(facts), len(self.to_grid)), -1)
        query[:, self.from_grid] = facts
        groups = []
        parts = query.split([group.cells for group in self.groups], dim=1)
        for group, part, members, masked in zip(self.groups, parts, of.groups, of.masked, strict=True):
            if masked:
                q = part.view(-1, group.num_rows, group.length)
                k = q if cache is None else cache.table[:, :, : self.context]
                group = replace(group, **_masks(q, k, of.past[members].to(q.device), backbone))
            groups.append(group)
        return replace(self, groups=tuple(groups))

    def _with_key_angles(self, backbone: Backbone, cache: KVCache, lengths_B: Tensor, dtype: torch.dtype) -> Layout:
        positions_BK = cache.positions[..., : self.context].clamp(min=0)
        cos, sin = backbone.rope(positions_BK, lengths_B[:, None])
        return replace(self, key_cos=cos.to(dtype)[:, :, None], key_sin=sin.to(dtype)[:, :, None])


def _masks(query: Tensor, key: Tensor, past_B: Tensor, backbone: Backbone) -> dict[str, Tensor]:
    """Masks of a group, each [B, 1, L, K]: with a window that of global layers, which are causal, and of local ones."""
    if backbone.window is None:
        return {"mask": may_attend(query, key, past_B, backbone.attention)[:, None]}
    local = may_attend(query, key, past_B, backbone.attention, backbone.window)
    return {"mask": may_attend(query, key, past_B, "causal")[:, None], "local_mask": local[:, None]}


def _masked_documents(batch: Batch, attention: str) -> Tensor:
    """For which documents plain causal attention is not enough: bool [documents], on the host."""
    if attention == "image_bidirectional":
        return batch.doc_branched | batch.doc_images
    return prefix_documents(batch) if attention == "prefix" else batch.doc_branched
