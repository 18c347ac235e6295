"""Experts: the weights at one site of a layer, and how a planned batch runs through them.

T tokens in plan order, D and F sizes of the site.
"""

import copy
import functools
import sys

import torch
from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.plan import Plan

BACKENDS = ("auto", "torch", "cupy")


class Experts(nn.ModuleDict):
    """One or several experts at a site: ``{"text": module}``, later also ``{"visual": module}``.

    With one expert this is a plain module: dense and routed models share code and checkpoint keys
    (``...ffn.text.gate.weight``). With several, each runs on its contiguous slice of the plan.
    Every expert runs always, also on zero tokens: the graph does not depend on what a rank happened to
    see, and gradients are zero instead of missing. Generation alone asks for less (Plan.alone).
    """

    def __init__(self, text: nn.Module) -> None:
        super().__init__({"text": text})

    def forward(self, x_TD: Tensor, plan: Plan) -> Tensor:
        if len(self) == 1:
            return self["text"](x_TD)
        if plan.alone is not None:
            return list(self.values())[plan.alone](x_TD)
        chunks = x_TD.split(plan.sizes)
        return torch.cat([expert(chunk) for expert, chunk in zip(self.values(), chunks, strict=True)])


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


def use_backend(name: str) -> str:
    """Resolves an expert backend: ``auto`` takes cupy where its kernels can run and says once which it took.

    Raises:
        UserError: unknown, or cupy asked for where it cannot run; says why. Never a silent fallback.
    """
    if name not in BACKENDS:
        raise UserError(f"model: expert_backend={name!r} is not known; use one of {', '.join(BACKENDS)}")
    if name == "torch":
        return name
    reason = _why_not_cupy()
    if name == "cupy" and reason:
        raise UserError(f"model: expert_backend=cupy cannot run here: {reason}; use auto or torch")
    if name == "auto":
        _say_once(f"expert backend: {'torch (cupy: ' + reason + ')' if reason else 'cupy'}")
    return "torch" if reason else "cupy"


def _why_not_cupy() -> str | None:
    try:
        import cupy_kernels
    except ModuleNotFoundError:
        return "package cupy_kernels is not installed"
    return cupy_kernels.why_not()


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
