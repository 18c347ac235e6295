"""The objective that language models train with.

S supervised tokens, V vocabulary.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.contracts import Objective
from mmframe.errors import UserError, nearest
from mmframe.planned_device import device_type
from mmframe.registry import register

CHUNK = {"cpu": 2**20, "cuda": 2**26}
"""Logits that are widened to fp32 at a time: what stays in a CPU's cache, what keeps a GPU busy."""
Weighting = Literal["token", "sample", "sqrt"]
EXPONENTS: dict[str, float] = {"token": 0.0, "sample": -1.0, "sqrt": -0.5}
"""Of the number of a sample's supervised tokens: the weight of each of them."""


class _CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] in fp32, [S, V] -> [S], without ever holding [S, V] in fp32.

    The backward widens the logits again, chunk by chunk: softmax is exp(logits - logsumexp), one pass.
    """

    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, labels_S: Tensor) -> Tensor:
        lse_S = torch.cat([rows.float().logsumexp(-1) for rows in _chunks(logits_SV)])
        ctx.save_for_backward(logits_SV, labels_S, lse_S)
        return lse_S - logits_SV.gather(1, labels_S[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits_SV, labels_S, lse_S = ctx.saved_tensors
        grad_SV = torch.empty_like(logits_SV)
        first = 0
        for rows, out in zip(_chunks(logits_SV), _chunks(grad_SV), strict=True):
            part = slice(first, first + len(rows))
            wide = rows.to(torch.float32, copy=True).sub_(lse_S[part, None]).exp_()
            wide[torch.arange(len(rows), device=wide.device), labels_S[part]] -= 1
            out.copy_(wide.mul_(grads[0][part, None]))
            first = part.stop
        return grad_SV, None


def _chunks(logits_SV: Tensor) -> tuple[Tensor, ...]:
    return logits_SV.split(max(1, CHUNK.get(device_type(logits_SV), 2**26) // logits_SV.shape[1]))


def cross_entropy(logits_SV: Tensor, labels_S: Tensor) -> Tensor:
    """Cross entropy of each position in fp32: logits [S, V], labels int64 [S] -> [S]."""
    return _CrossEntropy.apply(logits_SV, labels_S)  # type: ignore[return-value]


@register("objective")
class NextToken(Objective):
    """Cross entropy of the next token at supervised positions; logits are computed nowhere else.

    The loss is sum(w ce) / sum(w) over the supervised tokens of the global batch, as in the released code of
    Mono-InternVL (arXiv 2410.08202; `loss_reduction` of its packed data sets, where sqrt is called square).

    Args:
        weighting: w of a token in a sample with x supervised tokens: ``token`` 1; ``sample`` 1 / x, so that a long
            answer counts no more than a short one; ``sqrt`` 1 / sqrt(x). Questions that share an image are samples of
            their own.
        chunk: Positions whose logits exist at a time (mmframe.chunked_loss): memory of logits and of their gradients
            is then bounded, for one more run of the head; null: all at once.
    """

    def __init__(self, weighting: Weighting = "token", chunk: int | None = None) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise UserError(f"objective: chunk={chunk} must be at least 1 position; null computes all logits at once")
        if weighting not in EXPONENTS:
            hint = nearest(weighting, EXPONENTS)
            raise UserError(
                f"objective: weighting={weighting!r} is not known; {hint} use one of {', '.join(EXPONENTS)}"
            )
        self.weighting, self.chunk = weighting, chunk

    def __call__(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        weights_S = self.weights(batch)
        if self.chunk is None:
            ce_S = cross_entropy(net(batch).logits, batch.labels[batch.supervised])
        else:
            ce_S = net(batch, chunk=self.chunk).cross_entropy
        self.per_token = ce_S.detach(), weights_S
        return (weights_S * ce_S).sum(), weights_S.sum()

    def weights(self, batch: Batch) -> Tensor:
        return batch.supervised_counts.float() ** EXPONENTS[self.weighting]
