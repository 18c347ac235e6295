"""Memory of one GPU under each strategy: what lives throughout, and what a step adds.

Bytes of a weight that trains, with MasterAdamW: bf16 2 + gradient 2 + master, mean and variance 12; fp32 4 + 4 + 8. A
frozen weight has its own bytes and nothing else.

    single   all of it
    ddp      all of it, and the gradients once more in the buckets of the all-reduce (torch's default)
    zero1    optimiser state over N (DeepSpeed), and the fp32 gradients that its step needs, also over N
    zero2    gradients over N too
    fsdp     FSDP2: weights, gradients and state over N; whole are what stands outside of the layers, two layers (one
             computes, the next is fetched) and the gradients of one
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmframe.freezing import FreezingReport
from mmframe.planning.trace import StepTrace, layers_of

STRATEGIES = ("ddp", "zero1", "zero2", "fsdp")
USABLE = 0.95
"""Share of a GPU's memory; the rest is left to CUDA's context, NCCL, workspaces and fragments. An assumption."""


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU. `total` is less than the sum of the parts where these do not peak together."""

    weights: float
    gradients: float
    optimizer: float
    step: float
    total: float


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a stage's model.

    Attributes:
        weights, gradients, optimizer: Of all of it.
        update: What the optimiser's step adds: fp32 copies of the gradients of the largest group.
        whole: What FSDP holds whole while it computes: weights and gradients outside of the layers, two layers, the
            gradients of one.
    """

    weights: int
    gradients: int
    optimizer: int
    update: int
    whole: int

    @classmethod
    def of(cls, net: nn.Module, report: FreezingReport, mixed: bool = False) -> ModelBytes:
        """Counted on the model.

        Args:
            net: In the dtype of its weights, as it was frozen.
            report: Of the freezing.
            mixed: Autocast: the bf16 copies of fp32 weights that train count as weights.
        """
        named = dict(net.named_parameters())
        learnt = {name: p for name, p in named.items() if p.requires_grad}
        groups: dict[str, int] = {}
        for name, p in learnt.items():
            if p.dtype != torch.float32:
                groups[report.group_of[name]] = groups.get(report.group_of[name], 0) + 4 * p.numel()
        layers = [list(layer.parameters()) for layer in layers_of(net)]
        inside = {id(p) for layer in layers for p in layer}
        outside = [p for p in named.values() if id(p) not in inside]
        return cls(
            weights=_bytes(named.values()) + 2 * mixed * sum(p.numel() for p in learnt.values()),
            gradients=_bytes(learnt.values()),
            optimizer=sum(p.numel() * (8 if p.dtype == torch.float32 else 12) for p in learnt.values()),
            update=max(groups.values(), default=0),
            whole=_bytes(outside) + _learnt(outside) + 2 * max(map(_bytes, layers)) + max(map(_learnt, layers)),
        )

    def need(self, strategy: str, gpus: int, trace: StepTrace, times: float = 1.0) -> Need:
        """On one GPU.

        Args:
            strategy: `single` or one of STRATEGIES.
            gpus: N.
            trace: Of a micro-batch.
            times: The micro-batch has so many times the rows of the trace. What a step adds grows with them, all but a
                weight's second gradient (of a tied head), so more than the traced rows is a little less than said.
        """
        inputs, n = times * trace.inputs, gpus
        if strategy in ("single", "ddp", "zero1"):
            buckets = self.gradients if strategy == "ddp" else 0
            state = self.optimizer / (n if strategy == "zero1" else 1)
            update = self.gradients + (self.update / n if strategy == "zero1" else self.update)
            step = inputs + trace.memory.step(self.gradients, times)
            total = self.weights + buckets + state + max(step, update)
            activations = inputs + trace.memory.activations(times)
            return Need(self.weights, self.gradients + buckets, state, activations, total)
        weights = self.weights if strategy == "zero2" else self.weights / n
        whole = 0 if strategy == "zero2" else self.whole
        step = inputs + trace.memory.activations(times) + whole
        gradients, state = self.gradients / n, self.optimizer / n
        total = weights + gradients + state + max(step, self.update / n)
        return Need(weights, gradients, state, step, total)

    def largest(self, strategy: str, gpus: int, trace: StepTrace, memory: float) -> float:
        """How many times the rows of the trace fit; 0 where not even one step's constants do."""
        usable = USABLE * memory
        if self.need(strategy, gpus, trace, 0.0).total > usable:
            return 0.0
        low, high = 0.0, 1.0
        while self.need(strategy, gpus, trace, high).total <= usable and high < 2**20:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            fits = self.need(strategy, gpus, trace, middle).total <= usable
            low, high = (middle, high) if fits else (low, middle)
        return low


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.nbytes for p in parameters)


def _learnt(parameters: list[nn.Parameter]) -> int:
    return _bytes(p for p in parameters if p.requires_grad)
