"""Attention geometry of one batch: where tokens stand in the rows, who sees whom, rotary angles.

B rows, L longest row, K longest row of keys (with a cache: past and present), T tokens in plan order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmframe.batch import Batch
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.plan import Plan

if TYPE_CHECKING:
    from mmframe.cache import KVCache
    from mmframe.contracts import Backbone

ATTENTION = ("causal", "image_bidirectional")


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
class Layout:
    """Made once per batch, used by every layer. Cells are the places of the padded grid [B, L].

    rows, columns     int64 [T]: row and column of each token; a cache puts past columns before
    to_grid           int64 [B*L]: plan place of the token in each cell; a padding cell repeats place 0
    from_grid         int64 [T]: cell of each token
    holes             int64 [padding cells] or None
    slots             int64 [T] or None: row x capacity + column, each token's place in a cache, rows one after another
    context           K: columns of keys in use
    mask              bool [B, 1, L, K], True = may attend; None = plain causal attention
    cos, sin          [T, 1, head_dim] rotary angles
    key_cos, key_sin  [B, K, 1, head_dim], only for a cache of raw keys
    direct            one token in each row, in order: the grid is the tokens, nothing is gathered
    """

    num_rows: int
    length: int
    rows: Tensor
    columns: Tensor
    to_grid: Tensor
    from_grid: Tensor
    holes: Tensor | None
    context: int
    mask: Tensor | None
    cos: Tensor
    sin: Tensor
    key_cos: Tensor | None = None
    key_sin: Tensor | None = None
    slots: Tensor | None = None
    direct: bool = False

    @classmethod
    def build(
        cls, batch: Batch, plan: Plan, backbone: Backbone, dtype: torch.dtype, cache: KVCache | None = None
    ) -> Layout:
        """Host arithmetic on row lengths and the plan; the mask is computed on the device."""
        device = batch.ids.device
        lengths = torch.tensor(batch.row_lengths)
        num_rows, length = batch.num_rows, int(lengths.max())
        past = torch.tensor(cache.lengths if cache else [0] * num_rows)
        row_T = torch.arange(num_rows).repeat_interleave(lengths)
        local_T = torch.arange(batch.num_tokens) - (lengths.cumsum(0) - lengths)[row_T]
        cell_T = row_T * length + local_T  # sequence order, on the host
        order, inverse = plan.order_host, plan.inverse_host
        to_grid = torch.zeros(num_rows * length, dtype=torch.int64)
        to_grid[cell_T] = torch.arange(batch.num_tokens) if inverse is None else inverse
        is_hole = torch.ones(num_rows * length, dtype=torch.bool)
        is_hole[cell_T] = False

        def planned(x_T: Tensor) -> Tensor:
            return (x_T if order is None else x_T[order]).to(device)

        context_B = past + lengths
        # a prompt that comes in pieces turns by the length of the whole
        angle_B = context_B if cache is None else context_B.maximum(torch.tensor(cache.expected))
        cos, sin = backbone.rope(plan.sort(batch.positions), planned(angle_B[row_T]))
        column_T = local_T + past[row_T]
        layout = cls(
            num_rows=num_rows,
            length=length,
            rows=planned(row_T),
            columns=planned(column_T),
            to_grid=to_grid.to(device),
            from_grid=planned(cell_T),
            holes=is_hole.nonzero().flatten().to(device) if bool(is_hole.any()) else None,
            context=int(context_B.max()),
            mask=None,
            cos=cos.to(dtype)[:, None],
            sin=sin.to(dtype)[:, None],
            slots=None if cache is None else planned(row_T * cache.capacity + column_T),
        )
        return layout._with_mask(batch, plan, backbone, past.to(device), angle_B.to(device), dtype, cache)

    @classmethod
    def for_step(cls, backbone: Backbone, cache: KVCache, dtype: torch.dtype, context: int) -> Layout:
        """One more text token in each row, which goes on with its row's document, branch and positions.

        Everything is read from the cache on the device, so that no step waits for the host; with `context` = the
        cache's capacity no shape depends on what the cache holds.
        """
        rows = torch.arange(cache.num_rows, device=cache.used.device)
        columns = cache.used.clone()  # the cache counts on in place
        doc, branch, _, position = cache.table[:, rows, columns - 1].unbind(0)
        facts = torch.stack([doc, branch, torch.full_like(doc, -1), position + 1])
        cache.describe(rows, columns, torch.full_like(doc, TokenKind.TEXT, dtype=torch.int8), facts)
        key = cache.table[:, :, :context]
        cos, sin = backbone.rope(facts[3], columns + 1)
        layout = cls(
            num_rows=cache.num_rows,
            length=1,
            rows=rows,
            columns=columns,
            to_grid=rows,
            from_grid=rows,
            holes=None,
            context=context,
            mask=may_attend(facts[:, :, None], key, columns, backbone.attention)[:, None],
            cos=cos.to(dtype)[:, None],
            sin=sin.to(dtype)[:, None],
            slots=rows * cache.capacity + columns,
            direct=True,
        )
        return layout._with_key_angles(backbone, key[3], columns + 1, dtype) if cache.raw_keys else layout

    def grid(self, x_T: Tensor) -> Tensor:
        """[T, ...] in plan order -> [B, L, ...]."""
        if self.direct:
            return x_T[:, None]
        y: Tensor = _Gather.apply(x_T, self.to_grid, self.from_grid, None)  # type: ignore[assignment]
        return y.view(self.num_rows, self.length, *x_T.shape[1:])

    def ungrid(self, x_BL: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...] in plan order; padding cells are dropped."""
        if self.direct:
            return x_BL[:, 0]
        flat = x_BL.reshape(self.num_rows * self.length, *x_BL.shape[2:])
        return _Gather.apply(flat, self.from_grid, self.to_grid, self.holes)  # type: ignore[return-value]

    def _with_mask(
        self,
        batch: Batch,
        plan: Plan,
        backbone: Backbone,
        past: Tensor,
        angle_B: Tensor,
        dtype: torch.dtype,
        cache: KVCache | None,
    ) -> Layout:
        """Adds the mask where plain causal attention is not enough, and tells the cache what its columns hold."""
        bidirectional = backbone.attention == "image_bidirectional" and batch.image_slots.numel() > 0
        begun = cache is not None and any(cache.lengths)  # a row that begins sees nothing but itself
        plain = not batch.structured and not bidirectional and not begun
        if cache is None and plain:
            return self
        device = batch.ids.device
        facts = torch.stack([batch.docs.long(), batch.branches.long(), batch.blocks.long(), batch.positions])
        if plan.order is not None:
            facts = facts[:, plan.order]
        if cache is not None:  # images of earlier calls keep their own numbers
            images_before = torch.tensor(cache.num_images, device=device)[self.rows]
            facts[2] = torch.where(facts[2] >= 0, facts[2] + images_before, -1)
            cache.describe(self.rows, self.columns, plan.sort(batch.kinds.to(device)), facts)
        layout = self
        if not plain:
            query = torch.full((4, self.num_rows * self.length), -1, device=device)
            query[:, self.from_grid] = facts
            query = query.view(4, self.num_rows, self.length)
            key = query if cache is None else cache.table[:, :, : self.context]
            layout = replace(layout, mask=may_attend(query, key, past, backbone.attention)[:, None])
        if cache is not None and cache.raw_keys:
            layout = layout._with_key_angles(backbone, cache.table[3, :, : self.context], angle_B, dtype)
        return layout

    def _with_key_angles(
        self, backbone: Backbone, positions_BK: Tensor, lengths_B: Tensor, dtype: torch.dtype
    ) -> Layout:
        cos, sin = backbone.rope(positions_BK.clamp(min=0), lengths_B[:, None])
        return replace(self, key_cos=cos.to(dtype)[:, :, None], key_sin=sin.to(dtype)[:, :, None])


def may_attend(query: Tensor, key: Tensor, past_B: Tensor, attention: str) -> Tensor:
    """Who sees whom: bool [B, L, K].

    A token sees earlier tokens of its document that stand in the trunk or in its own branch; with
    ``image_bidirectional`` also later slots of its own image. A padding query sees column 0, so that no softmax is
    empty.

    Args:
        query: Documents, branches, image blocks, positions of the queries [4, B, L]; -1 marks padding.
        key: The same of the columns [4, B, K]; -1 marks an empty one.
        past_B: Column of each row's first query.
        attention: ``causal`` or ``image_bidirectional``.
    """
    q_doc, q_branch, q_block, _ = query[:, :, :, None].unbind(0)
    k_doc, k_branch, k_block, _ = key[:, :, None, :].unbind(0)
    column = torch.arange(key.shape[2], device=key.device)
    q_column = torch.arange(query.shape[2], device=key.device)[None, :, None] + past_B[:, None, None]
    seen = column <= q_column
    if attention == "image_bidirectional":
        seen = seen | ((q_block >= 0) & (q_block == k_block))
    allowed = (q_doc == k_doc) & ((k_branch == 0) | (q_branch == k_branch)) & seen
    return torch.where(q_doc < 0, column == 0, allowed)


def check_attention(attention: str) -> str:
    """Returns the name of a mask, or says which exist."""
    if attention not in ATTENTION:
        raise UserError(f"backbone: attention={attention!r} is not known; use one of {', '.join(ATTENTION)}")
    return attention
