"""The LightningModule: holds the model, the optimisation and the hooks; nothing else."""

import copy
import math
import os
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Optional

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mmframe import auxiliary as aux
from mmframe.batch import Batch
from mmframe.contracts import (
    Adapter,
    AuxiliaryLoss,
    Backbone,
    ExpertRouter,
    FreezingPolicy,
    Objective,
    PatchEmbedder,
    TrainableGroup,
    as_plain,
    check_fp16,
)
from mmframe.data.base import MultimodalData
from mmframe.data.loaders import refuse_inexact
from mmframe.data.order import hash64
from mmframe.data.prompts import Prompt
from mmframe.errors import UserError
from mmframe.expert_backends import TORCH, say_once
from mmframe.freezing import freeze
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.optim import AdamWSchedule
from mmframe.processing import ChatProcessor
from mmframe.recompute import recompute_layers
from mmframe.sharding import is_sharded, local, shard, whole
from mmframe.strategies import FullySharded, is_deepspeed, spreads_optimizer
from mmframe.weights import load_weights, read_weights, save_weights

NEW_PARTS = {"backbone.pre_layers.": "the layers in front", "_hw": "the heads for rows and columns"}
"""Parts of a name -> what an option of the backbone adds to a pretrained one."""


def seed_micro_batch(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seeds all generators for one micro-batch: what it draws depends on nothing else."""
    drawn = hash64(1, seed, step, micro_batch, rank, 20)[0]
    torch.manual_seed(int(drawn) >> 1)
    random.seed(int(drawn))
    np.random.seed(int(drawn) % 2**32)


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
        init_from: weights.safetensors of the stage before, or of an import. Weights only; new experts that it lacks
            start from their text expert as the router says, beside a text LLM the patch embedder is new, and so are
            what options of the backbone add to a pretrained one (pre_layers, positions: native).
        adapter: Trainable additions beside the loaded weights (LoRA); merged into the weights that are handed on.
        auxiliary: Further losses by name, beside the objective; their own parameters train and are not handed on.
        expert_backend: ``torch``, ``cupy`` (fused kernels, CUDA), or ``auto``: cupy where it was measured to be faster.
        recompute: Activation checkpointing: every layer of the backbone is computed again in the backward, so that its
            activations need not be kept. The numbers are the same to the last bit; true reduces memory and takes up to
            a third longer.
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
        adapter: Optional[Adapter] = None,
        auxiliary: Optional[dict[str, AuxiliaryLoss]] = None,
        expert_backend: Literal["auto", "torch", "cupy"] = "auto",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        parts = dict(
            backbone=backbone, patch_embedder=patch_embedder, router=router, freezing=freezing, processor=processor
        )
        self.save_hyperparameters({name: as_plain(part) for name, part in parts.items()}, logger=False)
        if init_from:
            # before the router copies text experts: a dense checkpoint is then the text path of all experts
            state, metadata = read_weights(init_from)
            text = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
            own = dict(backbone.named_parameters())
            with torch.no_grad():
                for name, tensor in text.items():
                    if name in own and own[name].shape == tensor.shape:
                        own[name].copy_(tensor)
        self._asked_backend = expert_backend
        self.net = MultimodalLM(backbone, patch_embedder, router, expert_backend)
        self.source: Any = None  # of an import: its official config, which goes on with the weights
        self.metadata: Mapping[str, Any] = {}  # of the weights that it started from
        if init_from:
            self._load(state, metadata, init_from)
        self.adapter = adapter
        added = self._install(adapter) if adapter else set()
        self.objective = objective or NextToken()
        self.processor = processor
        self.optim = optim or AdamWSchedule()
        self.groups = freezing.groups(router.experts)
        self.freezing_report = freeze(self.net, self.groups)
        if added and added.isdisjoint(self.freezing_report.group_of):
            raise UserError(
                f"model: {type(freezing).__name__} trains none of the {len(added)} tensors that "
                f"{type(adapter).__name__} adds; take a freezing policy that does: `mmframe components ls freezing`"
            )
        for name in auxiliary or {}:
            if not name.isidentifier():
                raise UserError(f"model.auxiliary: {name!r} is no name for a loss; use letters, digits and _")
        self.auxiliary: Any = nn.ModuleDict(auxiliary)
        for loss in self.auxiliary.values():
            loss.install(self.net, processor)
        self.recompute, self._configured = recompute, False
        self.val_loss = MeanMetric()
        self.step_stats: dict[str, int] = {}
        self._weight_seen: Tensor | None = None
        self._micro_batch = 0  # of the optimiser step

    def _load(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any], path: str) -> None:
        """Copies a checkpoint into the model, and says what of the model is not in it."""
        self.source, self.metadata = metadata.get("source"), metadata
        names = self.net.state_dict()
        may_lack = {name for name in names if ".visual." in name}
        if "model" in metadata and metadata["model"].get("patch_embedder") is None:  # a text LLM
            may_lack |= {name for name in names if name.startswith("patch_embedder.")}
        for part in NEW_PARTS:
            if not any(part in name for name in state):  # all or none
                may_lack |= {name for name in names if part in name}
        fresh = load_weights(self.net, state, allow_missing=may_lack)
        counts = Counter(next((part for part in (".visual.", *NEW_PARTS) if part in name), "") for name in fresh)
        said = [f"{count} expert tensors are new, made from the text experts"] if (count := counts[".visual."]) else []
        said += [f"the {counts[part]} tensors of {what} are new" for part, what in NEW_PARTS.items() if counts[part]]
        if counts[""]:
            said.append(f"a text LLM, so the {counts['']} tensors of the patch embedder are new")
        if said:
            self.print_once(f"init_from {path}: {'; '.join(said)}")

    def _install(self, adapter: Adapter) -> set[str]:
        """Names of the parameters that the adapter adds."""
        before = {name for name, _ in self.net.named_parameters()}
        adapter.install(self.net)
        return {name for name, _ in self.net.named_parameters()} - before

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
            for name, loss in self.auxiliary.items():
                own = sum(parameter.numel() for parameter in loss.parameters())
                rate = f", lr {loss.lr:.1e}" if own else ""
                self.print_once(f"auxiliary {name}: weight {loss.weight}, {own:,} parameters of its own{rate}")

    def configure_model(self) -> None:
        """Recomputation and sharding, once: after the weights are there, before the optimiser is made."""
        if self._configured:
            return
        self._configured = True
        if not isinstance(self.trainer.strategy, FullySharded):
            if self.recompute:
                recompute_layers(self.net.backbone.stack())
            return
        if not self.objective.whole_model:
            raise UserError(
                f"trainer.strategy: {type(self.objective).__name__} calls parts of the model, and a sharded model can "
                "only be called as a whole; train this stage with --trainer.strategy=ddp"
            )
        from torch.distributed.fsdp import fully_shard  # takes long, and few need it

        if self.net.expert_backend is not TORCH:
            self._run_experts_in_torch()
        self.trainer.precision_plugin.convert_module(self)
        shard(self.net, self.device_mesh["data_parallel"], self.recompute)  # type: ignore[index]
        for loss in self.auxiliary.values():
            if any(True for _ in loss.parameters()):
                fully_shard(loss, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]

    def _run_experts_in_torch(self) -> None:
        """The fused kernels read weights past the modules at whose calls they are gathered."""
        if self._asked_backend == "cupy":
            raise UserError(
                "model: expert_backend=cupy reads weights past their modules, and fsdp2 gathers them when a module is "
                "called; use torch, or another strategy"
            )
        say_once("expert backend: torch (fsdp2 gathers weights when a module is called; cupy reads past it)")
        self.net.use_expert_backend(TORCH)

    def on_train_start(self) -> None:
        refuse_inexact(self.trainer.fit_loop._combined_loader.flattened)  # type: ignore[union-attr]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled so that the optimiser step sees sum(loss) / sum(weights) of the whole
        global batch, however it is split over micro-batches and ranks."""
        self._seed_step()
        with aux.listening(self.net, self.auxiliary) as features:
            total, weight = self.objective(self.net, batch)
        self.step_stats = {
            "tokens": batch.num_tokens,
            "image_tokens": batch.image_slots.numel(),
            "supervised": batch.supervised.numel(),
            "samples": batch.num_rows,
        }
        mean = total / weight.clamp(min=1e-8)
        if batch.supervised.numel():  # a mean of nothing is no loss of 0
            self.log("train/loss", mean.detach(), prog_bar=True, batch_size=batch.supervised.numel())
        if self.auxiliary:
            added, logged = aux.total(self.auxiliary, self.net, batch, features, self.objective)
            total, mean = total + added, mean + added / weight.clamp(min=1e-8)
            for name, value in logged.items():
                self.log(f"train/aux/{name}", value, batch_size=batch.supervised.numel())
        if self._whole_batch():
            return mean
        self._weight_seen = weight.detach() if self._weight_seen is None else self._weight_seen + weight.detach()
        if is_deepspeed(self.trainer.strategy):
            return total * self.trainer.world_size / self._weight_of_all_ranks().clamp(min=1e-8)
        # Lightning divides by the micro-batches, DDP averages over ranks: undo both, divide in on_before_optimizer_step
        return total * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def _weight_of_all_ranks(self) -> Tensor:
        """The divisor of the step; DeepSpeed owns the gradients, so it must be known before the backward."""
        if self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                "trainer: deepspeed divides gradients before a step's last micro-batch is known, so the loss would "
                "depend on the split; use accumulate_grad_batches=1, or strategy zero1 or fsdp2"
            )
        assert self._weight_seen is not None
        weight, self._weight_seen = self._weight_seen, None
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(weight)
        return weight

    def _seed_step(self) -> None:
        """What a step draws (dropout) follows from the run's seed, the step, the micro-batch and the rank, so that a
        killed run goes on exactly without the state of any generator."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        seed_micro_batch(seed, self.trainer.global_step, self._micro_batch, self.trainer.global_rank)
        self._micro_batch += 1

    def _whole_batch(self) -> bool:
        return self.trainer.accumulate_grad_batches == 1 and self.trainer.world_size == 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._micro_batch = 0
        if self._whole_batch() or self._weight_seen is None:
            return
        weight = self._weight_seen
        self._weight_seen = None
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(weight)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for grad in grads:
            local(grad).div_(weight.clamp(min=1e-8))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        total, weight = self.objective(self.net, batch)
        self.val_loss.update(total / weight.clamp(min=1e-8), weight)  # exact over batches and ranks: weighted by tokens
        self.log("val/loss", self.val_loss, prog_bar=True, batch_size=1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """A task of TaskData: asked, scored, written down; logs its figure for tables as test/TASK/FIGURE."""
        from mmframe.evaluate.stage_test import test_task  # not needed to train

        result = test_task(self, batch)
        if result.figures:
            self.log(f"test/{result.task}/{result.headline}", result.score, batch_size=1, rank_zero_only=True)

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """Greedy answers, one for each prompt; mmframe.callbacks.predictions writes them."""
        from mmframe.engine import Engine  # not needed to train
        from mmframe.sampling import SamplingParams

        if not batch:  # rows without an answer to ask for
            return []
        made = Engine(self.net, self.processor).generate([prompt.sample for prompt in batch], SamplingParams())
        return [
            {
                "id": prompt.sample.key,
                "prompt": prompt.text,
                "answer": completion.text,
                "reference": prompt.reference,
                "finish_reason": completion.finish_reason,
                "tokens": len(completion.ids),
            }
            for prompt, completion in zip(batch, made, strict=True)
        ]

    def configure_optimizers(self) -> Any:
        named = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        group_of, groups = dict(self.freezing_report.group_of), dict(self.groups)
        for key, loss in self.auxiliary.items():
            for name, parameter in loss.named_parameters(f"auxiliary.{key}"):
                named[name], group_of[name] = parameter, f"auxiliary/{key}"
                groups[f"auxiliary/{key}"] = TrainableGroup([], loss.lr)
        spread = spreads_optimizer(self.trainer.strategy)
        return self.optim.configure(named, group_of, groups, self._max_steps(), spread)

    def _max_steps(self) -> int:
        """Optimiser steps of the run: trainer.max_steps, or max_epochs over the rows of our data; -1: not known.

        Not trainer.estimated_stepping_batches: it makes the loaders early and so drops their saved state on resume.
        """
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, MultimodalData) or trainer.max_epochs in (None, -1):
            return trainer.max_steps
        batches, limit = data.train_batches(), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
        return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["source"] = self.source
        checkpoint["adapter"] = None if self.adapter is None else self.adapter.spec

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.source = checkpoint.get("source")

    def save_weights(self, path: str | Path, run: Optional[dict[str, Any]] = None) -> None:
        """Writes the hand-over of the stage: the model's weights, what it is made of, and of which run it comes.

        A tokenizer that was read from files is written beside it, so that the folder can be moved. Of a sharded model
        every rank must call this: the tensors are put together one by one, and the first rank writes them.
        """
        if is_sharded(self.net) and not self.trainer.is_global_zero:
            deque(whole(self.net.state_dict().items()), maxlen=0)
            return
        trained = [asdict(row) for row in self.freezing_report.rows]
        model = copy.deepcopy(dict(self.hparams))
        tokenizer = model["processor"]["init_args"]["tokenizer"]["init_args"]
        if "path" in tokenizer:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.processor.tokenizer.save(Path(path).parent)
            tokenizer["path"] = "."
        metadata = {"model": model, "freezing": trained, "run": run or {}}
        net = self.net
        if self.adapter is not None:
            net = self._copy()
            self.adapter.merge(net)
            metadata["adapter"] = self.adapter.spec
        if self.auxiliary:
            metadata["auxiliary"] = {name: loss.spec for name, loss in self.auxiliary.items()}
        if self.source is not None:
            metadata["source"] = self.source
        save_weights(net, path, metadata=metadata)

    def _copy(self) -> MultimodalLM:
        """The net with its adapter, to be merged while training goes on: whole, where ours is sharded."""
        assert self.adapter is not None
        if not is_sharded(self.net):
            # a copy of the modules alone: it shares every tensor that merging does not replace
            tensors = [*self.net.parameters(), *self.net.buffers()]
            return copy.deepcopy(self.net, {id(tensor): tensor for tensor in tensors})
        from mmframe.loading import empty_model  # here: it imports much that training does not need

        net = empty_model(dict(self.hparams))
        with torch.device("meta"):
            self.adapter.install(net)
        state = {name: tensor.cpu() for name, tensor in whole(self.net.state_dict().items())}
        net.load_state_dict(state, assign=True)
        return net
