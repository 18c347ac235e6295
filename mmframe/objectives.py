"""The objective that language models train with."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.contracts import Objective
from mmframe.registry import register


@register("objective")
class NextToken(Objective):
    """Cross entropy of the next token at supervised positions; logits are computed nowhere else."""

    def __call__(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_SV = net(batch).logits
        weights_S = batch.weights[batch.supervised].float()  # Lightning casts batches under bf16-true
        ce_S = F.cross_entropy(logits_SV.float(), batch.labels[batch.supervised], reduction="none")
        return (weights_S * ce_S).sum(), weights_S.sum()
