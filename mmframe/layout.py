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
    context           K: columns of keys in use
    mask              bool [B, 1, L, K], True = may attend; None = plain causal attention
    cos, sin          [T, 1, head_dim] rotary angles
    key_cos, key_sin  [B, K, 1, head_dim], only for a cache of raw keys
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
        cos, sin = backbone.rope(plan.sort(batch.positions), planned(context_B[row_T]))
        layout = cls(
            num_rows=num_rows,
            length=length,
            rows=planned(row_T),
            columns=planned(local_T + past[row_T]),
            to_grid=to_grid.to(device),
            from_grid=planned(cell_T),
            holes=is_hole.nonzero().flatten().to(device) if bool(is_hole.any()) else None,
            context=int(context_B.max()),
            mask=None,
            cos=cos.to(dtype)[:, None],
            sin=sin.to(dtype)[:, None],
        )
        return layout._with_mask(batch, plan, backbone, past.to(device), context_B.to(device), dtype, cache)

    def grid(self, x_T: Tensor) -> Tensor:
        """[T, ...] in plan order -> [B, L, ...]."""
        y: Tensor = _Gather.apply(x_T, self.to_grid, self.from_grid, None)  # type: ignore[assignment]
        return y.view(self.num_rows, self.length, *x_T.shape[1:])

    def ungrid(self, x_BL: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...] in plan order; padding cells are dropped."""
        flat = x_BL.reshape(self.num_rows * self.length, *x_BL.shape[2:])
        return _Gather.apply(flat, self.from_grid, self.to_grid, self.holes)  # type: ignore[return-value]

    def _with_mask(
        self,
        batch: Batch,
        plan: Plan,
        backbone: Backbone,
        past: Tensor,
        context_B: Tensor,
        dtype: torch.dtype,
        cache: KVCache | None,
    ) -> Layout:
        """Who sees whom: a token sees earlier tokens of its document that stand in the trunk or in its own
        branch; with ``image_bidirectional`` also later slots of its own image. A padding query sees column 0,
        so that no softmax is empty."""
        bidirectional = backbone.attention == "image_bidirectional" and batch.image_slots.numel() > 0
        if cache is None and not batch.structured and not bidirectional:
            return self
        device = batch.ids.device
        facts = torch.stack([batch.docs.long(), batch.branches.long(), batch.blocks.long(), batch.positions])
        if plan.order is not None:
            facts = facts[:, plan.order]
        if cache is not None:  # images of earlier calls keep their own numbers
            images_before = torch.tensor(cache.num_images, device=device)[self.rows]
            facts[2] = torch.where(facts[2] >= 0, facts[2] + images_before, -1)
        query = torch.full((4, self.num_rows * self.length), -1, device=device)
        query[:, self.from_grid] = facts
        query = query.view(4, self.num_rows, self.length)
        if cache is None:
            key = query
        else:
            cache.describe(self.rows, self.columns, plan.sort(batch.kinds.to(device)), facts)
            key = cache.table[:, :, : self.context]

        q_doc, q_branch, q_block, _ = query[:, :, :, None].unbind(0)
        k_doc, k_branch, k_block, key_positions = key[:, :, None, :].unbind(0)
        column = torch.arange(self.context, device=device)
        q_column = torch.arange(self.length, device=device)[None, :, None] + past[:, None, None]
        seen = column <= q_column
        if backbone.attention == "image_bidirectional":
            seen = seen | ((q_block >= 0) & (q_block == k_block))
        allowed = (q_doc == k_doc) & ((k_branch == 0) | (q_branch == k_branch)) & seen
        allowed = torch.where(q_doc < 0, column == 0, allowed)
        changes: dict[str, Any] = {"mask": allowed[:, None]}
        if cache is not None and cache.raw_keys:
            cos, sin = backbone.rope(key_positions[:, 0].clamp(min=0), context_B[:, None])
            changes |= {"key_cos": cos.to(dtype)[:, :, None], "key_sin": sin.to(dtype)[:, :, None]}
        return replace(self, **changes)


def check_attention(attention: str) -> str:
    """Returns the name of a mask, or says which exist."""
    if attention not in ATTENTION:
        raise UserError(f"backbone: attention={attention!r} is not known; use one of {', '.join(ATTENTION)}")
    return attention
