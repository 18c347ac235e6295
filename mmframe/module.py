"""The LightningModule: holds the model, the optimisation and the hooks; nothing else."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Optional

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mmframe.batch import Batch
from mmframe.contracts import (
    Backbone,
    ExpertRouter,
    FreezingPolicy,
    Objective,
    PatchEmbedder,
    as_plain,
    check_fp16,
)
from mmframe.freezing import freeze
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.optim import AdamWSchedule
from mmframe.processing import ChatProcessor
from mmframe.weights import load_weights, read_weights, save_weights


class MultimodalModule(pl.LightningModule):
    """Trains a MultimodalLM.

    Args:
        backbone: The pretrained LLM.
        patch_embedder: Pixels -> visual tokens.
        router: Experts: where, how they start, who goes to whom.
        freezing: Which parameters train, with learning-rate groups.
        processor: Text and pictures -> tokens.
        optim: Optimiser and schedule.
        objective: What is minimised; default: cross entropy of the next token.
        init_from: weights.safetensors of the stage before. Weights only; new experts that it lacks start from
            their text expert as the router says.
        expert_backend: ``torch``, ``cupy``, or ``auto``: cupy where it can run.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_embedder: PatchEmbedder,
        router: ExpertRouter,
        freezing: FreezingPolicy,
        processor: ChatProcessor,
        optim: Optional[AdamWSchedule] = None,
        objective: Optional[Objective] = None,
        init_from: Optional[str] = None,
        expert_backend: Literal["auto", "torch", "cupy"] = "auto",
    ) -> None:
        super().__init__()
        parts = dict(
            backbone=backbone, patch_embedder=patch_embedder, router=router, freezing=freezing, processor=processor
        )
        self.save_hyperparameters({name: as_plain(part) for name, part in parts.items()}, logger=False)
        if init_from:
            # before the router copies text experts: a dense checkpoint is then the text path of all experts
            state, _ = read_weights(init_from)
            text = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
            own = dict(backbone.named_parameters())
            with torch.no_grad():
                for name, tensor in text.items():
                    if name in own and own[name].shape == tensor.shape:
                        own[name].copy_(tensor)
        self.net = MultimodalLM(backbone, patch_embedder, router, expert_backend)
        if init_from:
            new_experts = {name for name in self.net.state_dict() if ".visual." in name}
            fresh = load_weights(self.net, state, allow_missing=new_experts)
            if fresh:
                self.print_once(
                    f"init_from {init_from}: {len(fresh)} expert tensors are new, made from the text experts"
                )
        self.objective = objective or NextToken()
        self.processor = processor
        self.optim = optim or AdamWSchedule()
        self.groups = freezing.groups(router.experts)
        self.freezing_report = freeze(self.net, self.groups)
        self.val_loss = MeanMetric()
        self.step_stats: dict[str, int] = {}
        self._weight_seen: Tensor | None = None

    def print_once(self, line: str) -> None:
        if self._trainer is None or self.trainer.is_global_zero:
            print(line)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [S, V] at the supervised positions."""
        return self.net(batch).logits

    def setup(self, stage: str) -> None:
        check_fp16(str(self.trainer.precision))
        if stage == "fit":
            self.print_once(str(self.freezing_report))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled so that the optimiser step sees sum(loss) / sum(weights) of the whole
        global batch, however it is split over micro-batches and ranks."""
        total, weight = self.objective(self.net, batch)
        self.step_stats = {
            "tokens": batch.num_tokens,
            "image_tokens": batch.image_slots.numel(),
            "supervised": batch.supervised.numel(),
        }
        mean = (total / weight.clamp(min=1e-8)).detach()
        self.log("train/loss", mean, prog_bar=True, batch_size=max(1, batch.supervised.numel()))
        if self._whole_batch():
            return total / weight.clamp(min=1e-8)
        self._weight_seen = weight.detach() if self._weight_seen is None else self._weight_seen + weight.detach()
        # Lightning divides by the micro-batches, DDP averages over ranks: undo both, divide in on_before_optimizer_step
        return total * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def _whole_batch(self) -> bool:
        return self.trainer.accumulate_grad_batches == 1 and self.trainer.world_size == 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._whole_batch() or self._weight_seen is None:
            return
        weight = self._weight_seen
        self._weight_seen = None
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(weight)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for grad in grads:
            grad.div_(weight.clamp(min=1e-8))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        total, weight = self.objective(self.net, batch)
        self.val_loss.update(total / weight.clamp(min=1e-8), weight)  # exact over batches and ranks: weighted by tokens
        self.log("val/loss", self.val_loss, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        named = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        return self.optim.configure(named, self.freezing_report.group_of, self.groups, self.trainer.max_steps)

    def save_weights(self, path: str | Path, run: Optional[dict[str, Any]] = None) -> None:
        """Writes the hand-over of the stage: the model's weights, what it is made of, and of which run it comes."""
        trained = [asdict(row) for row in self.freezing_report.rows]
        save_weights(self.net, path, metadata={"model": dict(self.hparams), "freezing": trained, "run": run or {}})
