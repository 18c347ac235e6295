"""Optimisation as one component: AdamW over the policy's groups, warm-up, schedule by step."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from mmframe.contracts import Component, TrainableGroup
from mmframe.errors import UserError
from mmframe.registry import register


class MasterAdamW(AdamW):
    """AdamW that keeps fp32 masters of bf16 parameters, as DeepSpeed's bf16 optimiser does.

    A bf16 weight has 8 bits of precision: a step of 1e-3 of its size would be lost. fp32 parameters are their
    own masters. Costs 12 bytes of state for a bf16 parameter; frozen parameters are never given to it.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    self._start(p)
            for part in _parts(parameters):
                self._update(part, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        masters = [s.get("master", p) for p, s in zip(parameters, states, strict=True)]
        grads: list[Tensor] = [p.grad.to(m.dtype) for p, m in zip(parameters, masters, strict=True)]  # type: ignore[union-attr]
        adamw(
            masters,
            grads,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for p, m in zip(parameters, masters, strict=True):
            if m is not p:
                p.copy_(m)

    def _start(self, p: nn.Parameter) -> None:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        if p.dtype != torch.float32:
            state["master"] = p.detach().float()
        state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
        state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch casts state to the parameter's dtype, which would round the masters: put the fp32 values back."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        # numbers, or names where the state was put together from shards
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p, of in zip(parameters, keys, strict=True):
            for key, value in saved.get(of, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.to(device=p.device, dtype=torch.float32, copy=True)


def _parts(parameters: list[nn.Parameter], limit: int = 2**25) -> Iterator[list[nn.Parameter]]:
    """Parameters in order, as many at a time as have `limit` numbers (or one): their gradients are widened to fp32
    together, and those of a whole model would take twice its memory once more."""
    part: list[nn.Parameter] = []
    for p in parameters:
        if part and sum(q.numel() for q in part) + p.numel() > limit:
            yield part
            part = []
        part.append(p)
    if part:
        yield part


@register("optim")
class AdamWSchedule(Component):
    """AdamW with decoupled decay on matrices, linear warm-up, then cosine or constant, by optimiser step.

    Learning rates come from the freezing policy's groups; this says how they move.

    Args:
        warmup_steps: Steps of linear warm-up.
        warmup_ratio: Warm-up as a share of all steps, rounded up, in place of warmup_steps; null for those.
        schedule: ``cosine`` down to min_lr_ratio at the last step, or ``constant``.
        min_lr_ratio: Final rate over peak rate.
        weight_decay: For matrices; vectors (norms, biases) get none.
        betas: AdamW betas.
        eps: AdamW eps.
    """

    def __init__(
        self,
        warmup_steps: int = 100,
        schedule: Literal["cosine", "constant"] = "cosine",
        min_lr_ratio: float = 0.0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_ratio: float | None = None,
    ) -> None:
        if schedule not in ("cosine", "constant"):
            raise UserError(f"optim: schedule={schedule!r} is not known; use cosine or constant")
        if warmup_ratio is not None and not 0 <= warmup_ratio < 1:
            raise UserError(f"optim: warmup_ratio={warmup_ratio} must be a share of all steps, from 0 to below 1")
        self.warmup_ratio = warmup_ratio
        self.warmup_steps, self.schedule, self.min_lr_ratio = warmup_steps, schedule, min_lr_ratio
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps

    def scale(self, step: int, max_steps: int) -> float:
        """Rate over peak rate at an optimiser step, counted from 0."""
        warmup = self.warmup_steps if self.warmup_ratio is None else math.ceil(self.warmup_ratio * max_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, max_steps - warmup)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def configure(
        self,
        named: dict[str, nn.Parameter],
        group_of: dict[str, str],
        groups: dict[str, TrainableGroup],
        max_steps: int,
        spread: bool = False,
    ) -> dict[str, Any]:
        """Optimiser and scheduler in Lightning's form.

        Args:
            named: Parameters by name; frozen ones are left out.
            group_of: Trainable name -> group.
            groups: The policy's groups.
            max_steps: Optimiser steps of the stage. (Not trainer.estimated_stepping_batches: it makes the
                dataloaders early and so drops their saved state on resume.)
            spread: Each rank holds the state of a share of the parameters (ZeRO-1).

        Raises:
            UserError: cosine or a warm-up ratio without a known number of steps.
        """
        if max_steps <= 0 and (self.schedule == "cosine" or self.warmup_ratio is not None):
            cosine = self.schedule == "cosine"
            what, instead = ("schedule cosine", "schedule constant") if cosine else ("warmup_ratio", "warmup_steps")
            raise UserError(f"optim: {what} needs trainer.max_steps or max_epochs; set it, or use {instead}")
        param_groups: dict[str, dict[str, Any]] = {}
        for name, parameter in named.items():
            if name not in group_of:
                continue
            spec = groups[group_of[name]]
            decay = self.weight_decay if spec.weight_decay is None else spec.weight_decay
            is_vector = parameter.ndim < 2
            key = f"{group_of[name]}/no_decay" if is_vector else group_of[name]
            entry = {"params": [], "lr": spec.lr, "weight_decay": 0.0 if is_vector else decay, "name": key}
            param_groups.setdefault(key, entry)["params"].append(parameter)
        settings: dict[str, Any] = dict(betas=self.betas, eps=self.eps)
        made = list(param_groups.values())
        optimizer: Any = MasterAdamW
        if spread:
            from mmframe.spread_optim import SpreadAdamW as optimizer
        optimizer = optimizer(made, **settings)
        scheduler = LambdaLR(optimizer, lambda step: self.scale(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
