"""The routing of one batch: computed once, on the host, used by every layer and site."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Tokens grouped by expert. Hidden states travel through the layers in this order, so that every
    expert sees one contiguous slice and no site gathers or scatters.

    order     int64 [T] or None: sequence index of the token at each plan place; None = already in order
    inverse   int64 [T] or None: plan place of each token of the sequence
    expert_T  int64 [T] on the host: expert of each token, in sequence order
    sizes     tokens per expert, in the router's order of experts; host integers, so no layer synchronises
    segments  runs of one expert in sequence order: (expert, first, last + 1)
    alone     the one expert that is called at all; None, the rule in training, where ranks wait for one another
              and a graph must not depend on the batch: every expert, also on zero tokens
    memo      what a backend made of this plan for all its layers, e.g. a table on the device; lives as long as the plan
    """

    order: Tensor | None
    inverse: Tensor | None
    sizes: tuple[int, ...]
    expert_T: Tensor
    order_host: Tensor | None = None
    inverse_host: Tensor | None = None
    alone: int | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_experts(cls, expert_T: Tensor, num_experts: int) -> Plan:
        """expert_T: int64 [T] on the CPU, the expert of each token."""
        sizes = tuple(torch.bincount(expert_T, minlength=num_experts).tolist())
        if sum(size > 0 for size in sizes) <= 1:
            return cls(None, None, sizes, expert_T)
        order = torch.argsort(expert_T, stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        return cls(order, inverse, sizes, expert_T, order, inverse)

    def without_idle(self) -> Plan:
        """The same plan, where experts without tokens are not called if one has them all: for generation."""
        busy = [expert for expert, size in enumerate(self.sizes) if size]
        return replace(self, alone=busy[0]) if len(busy) == 1 else self

    @property
    def num_tokens(self) -> int:
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First place of each expert's slice, and the end: E + 1 integers."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + size)
        return tuple(ends)

    @cached_property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        experts, counts = torch.unique_consecutive(self.expert_T, return_counts=True)
        ends = counts.cumsum(0)
        return tuple(zip(experts.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))

    def to(self, device: torch.device | str) -> Plan:
        if self.order is None or self.inverse is None:
            return self
        return replace(self, order=self.order.to(device), inverse=self.inverse.to(device))

    def place(self, sequence_index: Tensor) -> Tensor:
        """Plan places of tokens given by their index in the sequence."""
        return sequence_index if self.inverse is None else self.inverse[sequence_index]

    def sort(self, x_T: Tensor) -> Tensor:
        """Sequence order -> plan order, along the first dimension."""
        return x_T if self.order is None else x_T.index_select(0, self.order)

    def unsort(self, x_T: Tensor) -> Tensor:
        """Plan order -> sequence order, along the first dimension."""
        return x_T if self.inverse is None else x_T.index_select(0, self.inverse)
