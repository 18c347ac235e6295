"""Floating-point operations that are really done, counted while they are done by the formulas of torch's flop counter.

A product of [m, k] and [k, n] is 2 m k n. Counted are matrix products, convolutions and attention (all pairs of a mask,
also those that a causal kernel leaves out), forward and backward: what is frozen costs no gradient of its weights, and
what is recomputed costs twice. Norms, activations and the optimiser are left out (under 2 % of a layer).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

aten = torch.ops.aten


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores and their sum over values: shapes [B, H, L, d], [B, K, T, d], [B, K, T, e]; K may divide H."""
    batch, heads, length, depth = query
    return 2 * batch * heads * length * key[2] * (depth + value[3])


def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores once more, and the gradients of q, k (through the scores), of v and of the probabilities."""
    batch, heads, length, depth = query
    return 2 * batch * heads * length * key[2] * (3 * depth + 2 * value[3])


_KERNELS = ("flash_attention", "efficient_attention", "cudnn_attention")
# torch's own formulas lack the CPU's kernel, and older ones refuse grouped keys
_ATTENTION = {f"_scaled_dot_product_{kernel}": attention for kernel in (*_KERNELS, "flash_attention_for_cpu")}
_ATTENTION |= {f"_scaled_dot_product_{kernel}_backward": attention_backward for kernel in _KERNELS}
_ATTENTION |= {"_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward}
_OWN = {getattr(aten, name): shape_wrapper(formula) for name, formula in _ATTENTION.items()}


class FlopCounter(TorchDispatchMode):
    """A context in which operations are counted, forward and backward; it changes no bit of any result.

    torch's FlopCounterMode has the same formulas, but takes operations apart that have none, to look into them: the
    gradient of SiLU then differs in the last bit.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = flop_registry | _OWN  # here: operators of kernels may be registered late

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
