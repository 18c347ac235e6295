"""The cupy backend: expert linear layers and SwiGLU FFNs by the fused kernels, everything else by torch.

T tokens in plan order, D size of the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cupy_kernels.errors import KernelError
from cupy_kernels.kernels import MAX_DECODE_TOKENS
from cupy_kernels.ops import decode_ffn, project
from cupy_kernels.ops import ffn as fused_ffn
from cupy_kernels.selection import device_name, worth
from cupy_kernels.tiles import NUM_EXPERTS, TileTable
from mmframe.errors import UserError
from mmframe.expert_backends import ExpertBackend, say_once
from mmframe.plan import Plan

if TYPE_CHECKING:
    from mmframe.experts import Experts


class CupyBackend(ExpertBackend):
    """Reads the weights of the experts' modules, bf16. What it leaves to torch: sites with one expert (cuBLAS cannot be
    beaten there), norms, fp32, and modules whose forward is not known (LoRA, hooks); the last two it says once.

    Args:
        always: Kernels wherever they can run; else only where a measurement on this device says that they are faster
            (cupy_kernels/selection.py).
    """

    name = "cupy"

    def __init__(self, always: bool = True) -> None:
        self.always = always

    def run(self, experts: Experts, x_TD: Tensor, plan: Plan) -> Tensor:
        modules: list[Any] = list(experts.values())
        if len(modules) == NUM_EXPERTS and plan.alone is None:
            if isinstance(modules[0], nn.Linear) and self._takes("project", x_TD, experts):
                weights, biases = [m.weight for m in modules], [m.bias for m in modules]
                return _checked(project, x_TD.contiguous(), weights, self._table(plan, x_TD), biases)
            if _is_swiglu(modules[0]) and self._takes("ffn", x_TD, experts):
                return _checked(fused_ffn, x_TD.contiguous(), None, _matrices(modules), self._table(plan, x_TD))
        return super().run(experts, x_TD, plan)

    def residual_ffn(self, x_TD: Tensor, delta_TD: Tensor, norm: Experts, ffn: Experts, plan: Plan) -> Tensor:
        modules: list[Any] = list(ffn.values())
        norms: list[Any] = list(norm.values())
        if max(len(modules), len(norms)) <= NUM_EXPERTS and _is_swiglu(modules[0]):
            few = x_TD.shape[0] <= MAX_DECODE_TOKENS and not torch.is_grad_enabled()
            if few and len({m.eps for m in norms}) == 1 and self._takes("decode_ffn", x_TD, norm, ffn):
                first = plan.sizes[0] if len(modules) + len(norms) > 2 else x_TD.shape[0]
                weights, experts = [norms[0].weight, norms[-1].weight], _matrices([modules[0], modules[-1]])
                x_TD, delta_TD = x_TD.contiguous(), delta_TD.contiguous()
                return _checked(decode_ffn, x_TD, delta_TD, weights, experts, first, norms[0].eps)
            if len(modules) == NUM_EXPERTS and plan.alone is None and self._takes("ffn", x_TD, ffn):
                x_TD = x_TD + delta_TD
                normed = norm(x_TD, plan).contiguous()
                return _checked(fused_ffn, normed, x_TD, _matrices(modules), self._table(plan, x_TD))
        return super().residual_ffn(x_TD, delta_TD, norm, ffn, plan)

    def _takes(self, op: str, x: Tensor, *sites: Experts) -> bool:
        """Whether the kernels run these sites; says once why not where a user might wonder."""
        experts: list[Any] = [expert for site in sites for expert in site.values()]
        leaves: list[Any] = []
        for expert in experts:
            leaves += [expert.gate, expert.up, expert.down] if _is_swiglu(expert) else [expert]
        for module in (*sites, *experts, *leaves):
            if module._forward_hooks or module._forward_pre_hooks:
                say_once(f"expert backend cupy: {type(module).__name__} with a hook runs on torch")
                return False
        for leaf in leaves:
            if type(leaf) is not nn.Linear and not _fused_as("rms_norm", leaf):
                say_once(f"expert backend cupy: {type(leaf).__name__} runs on torch")
                return False
        if any(tensor.dtype != torch.bfloat16 for tensor in (x, *(leaf.weight for leaf in leaves))):
            say_once(f"expert backend cupy: {str(x.dtype).removeprefix('torch.')} runs on torch; the kernels are bf16")
            return False
        return self.always or worth(op, x.shape[0], device_name())

    def _table(self, plan: Plan, x: Tensor) -> TileTable:
        key = ("tiles", x.device)
        if key not in plan.memo:
            plan.memo[key] = TileTable.sorted(plan.sizes, x.device)
        return plan.memo[key]


def _fused_as(what: str, module: Any) -> bool:
    """Whether the class itself says that its forward is this; a subclass may have changed it."""
    return type(module).__dict__.get("fused_as") == what


def _is_swiglu(module: Any) -> bool:
    return _fused_as("swiglu", module)


def _matrices(modules: list[Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(m.gate.weight, m.up.weight, m.down.weight) for m in modules]


def _checked(op: Callable[..., Tensor], *args: Any) -> Tensor:
    """What the kernels refuse becomes the user's one line."""
    try:
        return op(*args)
    except KernelError as error:
        text = str(error).removeprefix("cupy_kernels: ")
        raise UserError(f"model: expert_backend=cupy: {text}; or use torch") from error
