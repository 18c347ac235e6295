"""How experts run: the contract of an expert backend, which is also the torch backend, and the choice between them.

T tokens in plan order, D size of the hidden state.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError, nearest
from mmframe.plan import Plan

if TYPE_CHECKING:
    from mmframe.experts import Experts

BACKENDS = ("auto", "torch", "cupy")


class ExpertBackend:
    """Runs the experts of a site. This one is `torch`: each expert on its slice of the plan, by its own forward.

    A backend owns no parameters and changes no names, so checkpoints do not know of it. Another one overrides what it
    does better and leaves the rest to this one, which is also the oracle that it is tested against.
    """

    name = "torch"

    def run(self, experts: Experts, x_TD: Tensor, plan: Plan) -> Tensor:
        """One site: [T, D] in plan order -> [T, D_out]."""
        if len(experts) == 1:
            return experts["text"](x_TD)
        if plan.alone is not None:
            return list(experts.values())[plan.alone](x_TD)
        chunks = x_TD.split(plan.sizes)
        return torch.cat([expert(chunk) for expert, chunk in zip(experts.values(), chunks, strict=True)])

    def residual_ffn(self, x_TD: Tensor, delta_TD: Tensor, norm: Experts, ffn: Experts, plan: Plan) -> Tensor:
        """The end of a layer, s + ffn(norm(s)) with s = x + delta: one call, so that a backend may fuse it."""
        x_TD = x_TD + delta_TD
        return x_TD + ffn(norm(x_TD, plan), plan)


TORCH = ExpertBackend()


def use_backend(name: str) -> ExpertBackend:
    """Resolves an expert backend: ``auto`` takes cupy for what was measured to be faster on this device, and says once
    which it took.

    Raises:
        UserError: unknown, or cupy asked for where it cannot run; says why. Never a silent fallback.
    """
    if name not in BACKENDS:
        raise UserError(
            f"model: expert_backend={name!r} is not known; {nearest(name, BACKENDS)} use one of {', '.join(BACKENDS)}"
        )
    if name == "torch":
        return TORCH
    reason = why_not_cupy(measured=name == "auto")
    if name == "cupy" and reason:
        raise UserError(f"model: expert_backend=cupy cannot run here: {reason}; use auto or torch")
    if name == "auto":
        say_once(f"expert backend: {'torch (cupy: ' + reason + ')' if reason else 'cupy'}")
    if reason:
        return TORCH
    from mmframe.cupy_backend import CupyBackend

    return CupyBackend(always=name == "cupy")


def why_not_cupy(measured: bool) -> str | None:
    """Why the kernels are not taken, in one clause; None where they are.

    Args:
        measured: Also ask whether a measurement on this device speaks for them, as `auto` does.
    """
    try:
        import cupy_kernels
        from cupy_kernels import selection
    except ImportError as error:
        return f"cupy_kernels cannot be imported: {error}"
    reason = cupy_kernels.why_not()
    if reason is None and measured and not selection.measured(selection.device_name()):
        return f"nothing is measured on {selection.device_name()}; see cupy_kernels/README.md"
    return reason


@functools.cache
def say_once(line: str) -> None:
    """One line on stderr, however often it is said."""
    print(line, file=sys.stderr)
