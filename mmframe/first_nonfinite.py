"""Runs a model once and notes, in the order of the computation, what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Seen:
    """What was not finite.

    Attributes:
        forward: A line for each module whose output was not finite, in the order in which they ended.
        backward: A line for each gradient that was not finite, in the order in which they were made.
    """

    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)


@contextmanager
def watching(net: nn.Module) -> Iterator[Seen]:
    """Watches every module and every trained parameter while the model runs inside."""
    seen = Seen()
    handles: list[Any] = []
    for name, module in net.named_modules():
        if name:
            handles.append(module.register_forward_hook(_forward_hook(seen, name)))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(_parameter_hook(seen, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(seen: Seen, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs = list(tensors_in(output))
        bad = sum(bad_values(tensor) for tensor in outputs)
        if bad:
            came = (
                "its input was not finite either"
                if any(map(bad_values, tensors_in(inputs)))
                else "its input was finite"
            )
            count = sum(tensor.numel() for tensor in outputs)
            seen.forward.append(f"{name} ({type(module).__name__}): {bad:,} of {count:,} values; {came}")
        for tensor in outputs:
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: _note(seen, grad, f"at the output of {name}"))

    return hook


def _parameter_hook(seen: Seen, name: str) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            _note(seen, parameter.grad, f"of {name}")

    return hook


def _note(seen: Seen, grad: Tensor, where: str) -> None:
    if bad := bad_values(grad):
        seen.backward.append(f"{where}: {bad:,} of {grad.numel():,} values")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested tuples, lists, dictionaries and plain objects' fields."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def bad_values(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    return int((~torch.isfinite(tensor.detach())).sum())
