"""Keeps a learned gate from sending all tokens to the same experts.

N visual tokens of the batch, E experts, K of them for each token, R documents.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.routers.top_k import TopKExperts, choose
from mmframe.auxiliary import Features, by_document
from mmframe.batch import Batch
from mmframe.contracts import AuxiliaryLoss
from mmframe.errors import UserError
from mmframe.registry import register


@register("auxiliary")
class LoadBalance(AuxiliaryLoss):
    """E times the sum over experts of (share of tokens) x (mean gate probability): 1 when all have the same.

    Switch Transformer (arXiv 2101.03961, equations 4 to 6), with K choices of a token counting 1 / K each, so that the
    optimum is 1 for any K. The means are over each document and not over the batch, as in DeepSeek-V3's sequence-wise
    loss (arXiv 2412.19437, equations 17 to 20): the loss then does not depend on what else is in the micro-batch. Over
    all layers and sites that have a gate, the mean. Logs the share of tokens that each expert got, over all of them.

    Args:
        weight: Factor beside the objective; 0.01 in Switch Transformer.
    """

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__(weight)

    def install(self, net: nn.Module, processor: Any) -> None:
        if not self.listens_to(net):
            raise UserError("LoadBalance: the model has no experts with a learned gate; take model.router: TopKRouter")

    def listens_to(self, net: nn.Module) -> Sequence[str]:
        return [f"{name}.gate" for name, module in net.named_modules() if isinstance(module, TopKExperts)]

    def forward(self, net: nn.Module, batch: Batch, features: Features) -> tuple[Tensor, Tensor]:
        assert features.plan is not None
        visual = list(net.router.experts).index("visual")  # type: ignore[union-attr]
        index_N = (features.plan.expert_T == visual).nonzero().flatten()
        gates = self.listens_to(net)
        sums: list[Tensor] = []
        loads: list[Tensor] = []
        count_R = torch.zeros(0)
        for name in gates:
            logits_NE = features.outputs[name]
            experts: Any = net.get_submodule(name.rpartition(".")[0])
            chosen_NK = choose(logits_NE, experts.top_k)[1]
            num_experts = logits_NE.shape[1]
            share_NE = F.one_hot(chosen_NK, num_experts).sum(1).float() / experts.top_k
            share_RE, count_R = by_document(batch, index_N, share_NE)
            probability_RE, _ = by_document(batch, index_N, logits_NE.float().softmax(-1))
            tokens_R = count_R.to(share_RE.device).clamp(min=1)
            sums.append(num_experts * (share_RE * probability_RE).sum(-1) / tokens_R)
            loads.append(share_NE.sum(0) / max(1, len(index_N)))
        load_E = torch.stack(loads).mean(0)
        self.facts = {f"expert_{number}": load for number, load in enumerate(load_E.detach())}
        return torch.stack(sums).mean(0), count_R
