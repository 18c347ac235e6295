"""Experts: the weights at one site of a layer, and how a planned batch runs through them.

T tokens in plan order, D and F sizes of the site.
"""

import copy

import torch
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.expert_backends import TORCH, ExpertBackend
from mmframe.plan import Plan


class Experts(nn.ModuleDict):
    """One or several experts at a site: ``{"text": module}``, later also ``{"visual": module}``.

    With one expert this is a plain module: dense and routed models share code and checkpoint keys
    (``...ffn.text.gate.weight``). With several, each runs on its contiguous slice of the plan.
    Every expert runs always, also on zero tokens: the graph does not depend on what a rank happened to
    see, and gradients are zero instead of missing. Generation alone asks for less (Plan.alone).

    A backend may run a module by its weights instead of its forward where the module's own class says
    ``fused_as = "swiglu"`` (`gate`, `up`, `down` are linear without bias, forward is down(silu(gate x) * up x)) or
    ``fused_as = "rms_norm"`` (`weight`, `eps`); linear layers are known by their type.
    """

    backend: ExpertBackend = TORCH
    """How they run; the model sets it."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__({"text": text})

    def forward(self, x_TD: Tensor, plan: Plan) -> Tensor:
        return self.backend.run(self, x_TD, plan)


def new_expert(pretrained: nn.Module, init: str, std: float = 0.02) -> nn.Module:
    """A new expert shaped like the pretrained one.

    Args:
        pretrained: the text expert of the site (Linear, RMSNorm or FFN).
        init: ``copy`` of the pretrained weights (Mono-InternVL); ``zero``: matrices that write the result are
            zero, so the expert starts silent; ``random``: normal with `std`, norm weights one.
    """
    expert = copy.deepcopy(pretrained)
    if init == "copy":
        return expert
    if init not in ("zero", "random"):
        raise UserError(f"router: init={init!r} is not known; use copy, zero or random")
    writers = {"down.weight", "weight"}
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            is_vector = parameter.ndim == 1
            if is_vector and name.endswith("weight"):
                parameter.fill_(1.0)
            elif is_vector:
                parameter.zero_()
            elif init == "zero" and name in writers:
                parameter.zero_()
            elif parameter.device.type != "meta":
                parameter.normal_(std=std)
    return expert


def active_parameters(module: nn.Module) -> int:
    """Parameters that one token passes through: of the experts at a site those of the largest one.

    A module whose forward leaves some of its own parameters out, or uses some of another's, says so by a method of
    the same name.
    """
    own = getattr(module, "active_parameters", None)
    if own is not None:
        return own()
    if isinstance(module, Experts):
        return max(map(active_parameters, module.values()))
    direct = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return direct + sum(map(active_parameters, module.children()))
