"""Auxiliary losses: what they are given of an objective's forward, and how they join its loss.

N tokens that a loss looks at, R documents of the batch, S supervised tokens, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.contracts import AuxiliaryLoss, Objective
from mmframe.errors import UserError
from mmframe.plan import Plan


@dataclass
class Features:
    """What modules of the model gave in one forward.

    Attributes:
        outputs: Name of a module -> what it gave; for a layer, hidden states [T, D] in plan order.
        plan: Routing of the batch.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    plan: Plan | None = None

    def at(self, name: str, index_N: Tensor) -> Tensor:
        """Rows of a layer's output at some tokens, given by their index in the sequence: [N, D]."""
        assert self.plan is not None
        out = self.outputs[name]
        return out.index_select(0, self.plan.place(index_N.to(out.device)))


@contextmanager
def listening(net: nn.Module, losses: Mapping[str, AuxiliaryLoss]) -> Iterator[Features]:
    """Features of the forward inside, of the modules that the losses listen to. Without losses it does nothing."""
    features, handles = Features(), []

    def keep_plan(_: nn.Module, args: tuple[Any, ...]) -> None:
        features.plan = args[1]

    def keep_output(name: str) -> Any:
        return lambda _, __, output: features.outputs.__setitem__(name, output)

    try:
        if losses:
            handles.append(net.backbone.register_forward_pre_hook(keep_plan))  # type: ignore[operator, union-attr]
        for name in {name for loss in losses.values() for name in loss.listens_to(net)}:
            handles.append(net.get_submodule(name).register_forward_hook(keep_output(name)))
        yield features
    finally:
        for handle in handles:
            handle.remove()


def by_document(batch: Batch, index_N: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the tokens of each document: in a fixed order, so that a run can be continued exactly.

    Args:
        batch: Of R documents.
        index_N: int64, tokens by their index in the sequence, rising.
        values: [N, ...] of these tokens.

    Returns:
        Sums [R, ...] on the device of the values, and numbers of tokens [R] on the device of the index.
    """
    document_T = torch.arange(len(batch.doc_lengths)).repeat_interleave(batch.doc_lengths)
    count_R = document_T.to(index_N.device)[index_N].bincount(minlength=len(batch.doc_lengths))
    if not len(count_R):
        return values.sum(0, keepdim=True)[:0], count_R
    lengths_R = count_R.to(values.device)
    return torch.segment_reduce(values, "sum", lengths=lengths_R, axis=0, initial=0), count_R


def total(
    losses: Mapping[str, AuxiliaryLoss], net: nn.Module, batch: Batch, features: Features, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """The auxiliary losses as an addition to an objective's weighted sum.

    A document's loss is its mean over the tokens looked at, and counts what the document's supervised tokens count in
    the objective: so there is one divisor for all, the objective's sum of weights, and the gradient does not depend on
    how a batch was split over micro-batches and ranks.

    Returns:
        Weighted sum, fp32; and what to log: each loss's mean over the documents it looked at, and its facts.

    Raises:
        UserError: the objective did not run what a loss listens to.
    """
    added = torch.zeros((), device=batch.labels.device)
    logged: dict[str, Tensor] = {}
    weight_R, _ = by_document(batch, batch.supervised, objective.weights(batch))
    for name, loss in losses.items():
        if features.plan is None:
            raise UserError(
                f"model.auxiliary.{name}: {type(objective).__name__} runs no layer of the backbone that "
                f"{type(loss).__name__} could look at; take another objective in this stage, or set auxiliary: null"
            )
        sum_R, count_R = loss(net, batch, features)
        mean_R = sum_R / count_R.to(sum_R.device).clamp(min=1)
        weighted = (weight_R * mean_R).sum()
        added = added + loss.weight * weighted
        if count_R.any():  # a mean of nothing is no loss of 0
            looked_at = (weight_R * (count_R > 0).to(weight_R.device)).sum()
            logged[name] = (weighted / looked_at.clamp(min=1e-8)).detach()
            logged |= {f"{name}/{fact}": value for fact, value in loss.facts.items()}
    return added, logged
