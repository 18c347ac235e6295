"""Learned routing inside of a kind: the visual expert is several, and a gate sends every token to the best of them.

T tokens of the kind, E experts, K of them for each token, D hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from components.routers.modality import ModalityRouter
from mmframe.errors import UserError
from mmframe.experts import Experts, active_parameters, new_expert
from mmframe.registry import register


class TopKExperts(nn.Module):
    """E experts shaped like the text expert, a linear gate, and K experts a token.

    The weights of the K are the softmax of their gate logits, which is the softmax over all, renormalised (Mixtral,
    arXiv 2401.04088, section 2.1). With K = 1 that would be 1 and teach the gate nothing: there the weight is the
    probability over all (Switch Transformer, arXiv 2101.03961, equation 2).

    Every expert runs always, also on no token, so that its gradient is zero and not missing.

    Args:
        pretrained: The text expert.
        in_features: D of what the expert takes.
        num_experts: E.
        top_k: K.
        init: As `new_expert`.
        noise: Added to each weight of an expert, normal, in units of the weight's own standard deviation.
    """

    def __init__(
        self, pretrained: nn.Module, in_features: int, num_experts: int, top_k: int, init: str, noise: float
    ) -> None:
        super().__init__()
        self.top_k = top_k
        weight = next(pretrained.parameters())
        self.gate = nn.Linear(in_features, num_experts, bias=False, device=weight.device, dtype=weight.dtype)
        self.experts = nn.ModuleList(new_expert(pretrained, init) for _ in range(num_experts))
        if not weight.is_meta:
            nn.init.normal_(self.gate.weight, std=0.02)
            for parameter in self.experts.parameters():
                _disturb(parameter, noise)

    def active_parameters(self) -> int:
        return self.gate.weight.numel() + self.top_k * active_parameters(self.experts[0])

    def forward(self, x_TD: Tensor) -> Tensor:
        weights_TK, chosen_TK = choose(self.gate(x_TD), self.top_k)
        order = chosen_TK.flatten().argsort(stable=True)  # token by token -> expert by expert
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        sizes = chosen_TK.flatten().bincount(minlength=len(self.experts)).tolist()
        # repeat, then permute: unlike a gather with repeated indices, its backward adds up in a fixed order
        sorted_x = x_TD.repeat_interleave(self.top_k, 0).index_select(0, order)
        made = torch.cat([expert(chunk) for expert, chunk in zip(self.experts, sorted_x.split(sizes), strict=True)])
        made_TKD = made.index_select(0, back).unflatten(0, (len(x_TD), self.top_k))
        return (weights_TK.to(made.dtype).unsqueeze(-1) * made_TKD).sum(1)


def choose(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Gate logits -> weights [T, K] in fp32 and the experts chosen [T, K]."""
    if top_k == 1:
        weights_TK, chosen_TK = logits_TE.float().softmax(-1).topk(1)
        return weights_TK, chosen_TK
    best_TK, chosen_TK = logits_TE.float().topk(top_k)
    return best_TK.softmax(-1), chosen_TK


@torch.no_grad()
def _disturb(parameter: nn.Parameter, noise: float) -> None:
    if noise and parameter.ndim > 1:
        parameter.add_(torch.randn_like(parameter) * parameter.std() * noise)


@register("router")
class TopKRouter(ModalityRouter):
    """Tokens go to the experts of their kind, and visual ones, by a learned gate, to the best few of several.

    MoMa (arXiv 2407.21770): experts in groups by modality, learned routing inside of a group. There each expert chooses
    its tokens; here each token chooses its experts, as in Switch Transformer and Mixtral, because an expert's choice
    looks at later tokens. Keep the gate from choosing always the same with `model.auxiliary: LoadBalance`.

    Args:
        experts_at: Site -> layers that have visual experts there. Sites: q, k, v, o, ffn (a norm has no use for a
            gate). Layers: all, 5, 12-23, 0-22/2, -8--1, 0-3,8-11.
        num_experts: Visual experts at a site.
        top_k: Experts of each visual token.
        init: Each expert starts as a ``copy`` of the text expert plus noise, ``zero`` or ``random``.
        noise: Of copies, in units of each weight's standard deviation; copies without noise differ by the gate alone.
        visual_kinds: Token kinds that go to the visual experts; all others go to the text expert.
    """

    toy_args = {"num_experts": 3}

    def __init__(
        self,
        experts_at: dict[str, str] | None = None,
        num_experts: int = 4,
        top_k: int = 2,
        init: Literal["copy", "zero", "random"] = "copy",
        noise: float = 0.01,
        visual_kinds: list[str] | None = None,
    ) -> None:
        super().__init__(experts_at, init, visual_kinds)
        if not 1 <= top_k <= num_experts:
            raise UserError(f"router: top_k={top_k} must be from 1 to num_experts={num_experts}")
        if noise < 0:
            raise UserError(f"router: noise={noise} must not be negative")
        if norms := [site for site in self.experts_at if site.endswith("norm")]:
            raise UserError(f"router: TopKRouter has no experts at {', '.join(norms)}; use q, k, v, o, ffn")
        self.num_experts, self.top_k = num_experts, top_k
        self.noise = noise if init == "copy" else 0.0

    def visual_expert(self, site: str, experts: Experts) -> nn.Module:
        text = experts["text"]
        takes = next(layer.in_features for layer in text.modules() if isinstance(layer, nn.Linear))
        return TopKExperts(text, takes, self.num_experts, self.top_k, self.init, self.noise)
