"""One training step on the meta device: its operations and its memory, counted and not estimated.

The model, the batch, the objective and autograd are the real ones; only the numbers are missing. So what is frozen,
what needs no gradient, which tokens an expert sees and what is kept for the backward are as they will be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mmframe.batch import Batch
from mmframe.contracts import Objective
from mmframe.flops import FlopCounter
from mmframe.planned_device import planned_for
from mmframe.planning.live_bytes import LiveBytes, Timeline

aten = torch.ops.aten


@dataclass
class Product:
    """What one weight costs in a step.

    Attributes:
        rows: Tokens (of a convolution: places) that it was applied to.
        forward: FLOPs.
        backward: FLOPs: of its gradient where it trains, of its input's where something below trains.
    """

    rows: int = 0
    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class StepTrace:
    """A step of one micro-batch.

    Attributes:
        tokens, image_tokens, supervised: Of the micro-batch.
        forward, backward: FLOPs; recomputation of checkpointed layers is in `backward`.
        products: By the name of the weight; empty for a checkpointed step, in which weights are applied twice.
        inputs: Bytes of the batch.
        memory: What is alive when, beside weights and the batch.
    """

    tokens: int
    image_tokens: int
    supervised: int
    forward: int
    backward: int
    products: dict[str, Product]
    inputs: int
    memory: Timeline


def trace_step(
    net: nn.Module, objective: Objective, batch: Batch, device: str = "cuda", checkpointed: bool = False
) -> StepTrace:
    """Runs forward and backward.

    Args:
        net: MultimodalLM; on the meta device, or anywhere for a check against real numbers. Its gradients are reset.
        objective: What is minimised.
        batch: On the host; is moved to where the model is.
        device: `cpu` or `cuda`: what meta tensors stand for. It decides which attention runs.
        checkpointed: Layers of the backbone keep their input alone, and run once more in the backward.
    """
    parameters = list(net.parameters())
    batch = batch.to(parameters[0].device)
    batch.tiles = batch.tiles.to(parameters[0].dtype)
    net.zero_grad(set_to_none=True)
    memory, flops, products = LiveBytes(), FlopCounter(), _Products(net, device)
    memory.known([*parameters, *net.buffers(), *_tensors(batch)])
    with ExitStack() as stack:
        stack.enter_context(planned_for(device))
        stack.enter_context(_checkpointed(net, products) if checkpointed else ExitStack())
        for mode in (memory, flops, products):
            stack.enter_context(mode)
        total, weight = objective(net, batch)
        loss = total / weight.clamp(min=1e-8)
        forward, first = flops.total, len(memory.events)
        loss.backward()
        del loss, total, weight
    gradients = [number for p in parameters if p.grad is not None if (number := memory.number(p.grad)) is not None]
    timeline = Timeline.of(memory.events, gradients, first)
    net.zero_grad(set_to_none=True)
    return StepTrace(
        tokens=batch.num_tokens,
        image_tokens=batch.image_slots.numel(),
        supervised=batch.supervised.numel(),
        forward=forward,
        backward=flops.total - forward,
        products={} if checkpointed else products.found,
        inputs=sum(tensor.nbytes for tensor in _tensors(batch)),
        memory=timeline,
    )


def _tensors(batch: Batch) -> list[Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, Tensor)]


def layers_of(net: nn.Module) -> list[nn.Module]:
    """The layers of the backbone, those in front included."""
    return [m for name, m in net.named_modules() if re.fullmatch(r"backbone\.(pre_)?layers\.\d+", name)]


@contextmanager
def _checkpointed(net: nn.Module, mode: TorchFunctionMode) -> Iterator[None]:
    layers = layers_of(net)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), mode  # a mode of functions is off inside of backward(), where layers run once more

    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # of the instance: that of the class is back


class _Products(TorchFunctionMode):
    """Writes down products with weights by their names, and has attention run as on the device that is planned for."""

    def __init__(self, net: nn.Module, device: str) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.attention = _on_cpu if device == "cpu" else _on_gpu
        self.found: dict[str, Product] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return self.attention(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in (F.linear, F.conv2d, torch.conv2d):
            x, weight = (args[n] if n < len(args) else kwargs[key] for n, key in enumerate(("input", "weight")))
            if id(weight) not in self.names:
                return out
            product = self.found.setdefault(self.names[id(weight)], Product())
            rows = out.numel() // weight.shape[0]
            cost = 2 * rows * weight.numel()
            product.rows += rows
            product.forward += cost
            product.backward += cost * (x.requires_grad + weight.requires_grad)
        return out


def _on_gpu(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What SDPA runs on a GPU: flash, which takes grouped keys; with a mask the memory-efficient kernel, which does
    not. On the meta device it would take the plain path, which keeps all scores."""
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    bias = attn_mask if attn_mask.dtype != torch.bool else torch.zeros_like(attn_mask, dtype=q.dtype)
    bias = bias.expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p, is_causal, scale=scale)[0]


def _on_cpu(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What SDPA runs on a CPU."""
    kernel = aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
