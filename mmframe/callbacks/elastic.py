"""A run that goes on with another number of ranks: the same global batches, in the same order."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from mmframe.data.base import MultimodalData
from mmframe.errors import UserError

KEY = "global_batch"
_COUNTED = {"Throughput": ("tokens", "image_tokens", "supervised", "samples"), "Flops": ("tokens",)}
"""Callbacks that count what one rank saw, and multiply by the ranks."""


@dataclass(frozen=True)
class GlobalBatch:
    """How the rows of one optimiser step are dealt out.

    Attributes:
        world_size: Ranks.
        batch_size: Rows of a micro-batch on one rank.
        accumulate: Micro-batches of a step.
    """

    world_size: int
    batch_size: int
    accumulate: int

    @property
    def rows(self) -> int:
        return self.world_size * self.batch_size * self.accumulate

    def __str__(self) -> str:
        return f"{self.world_size} ranks x batch_size {self.batch_size} x accumulate_grad_batches {self.accumulate}"


class Elastic(Callback):
    """Notes the global batch in every checkpoint; where the ranks or their batches are others when a run goes on, sets
    trainer.accumulate_grad_batches so that the rows of a step stay the same.

    Rows are ordered without regard to ranks, and the loss is a mean over the global batch, so the run is the same but
    for the order of sums. Rows that fill up the last step of an epoch, where rows do not divide by ranks, may differ.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        data = _data(trainer)
        if data is not None:
            checkpoint[KEY] = asdict(_global_batch(trainer, data))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        data = _data(trainer)
        if data is None or KEY not in checkpoint or trainer.state.fn != "fit":
            return
        old, now = GlobalBatch(**checkpoint[KEY]), _global_batch(trainer, data)
        if old == now:
            return
        same_ranks = (old.world_size, old.batch_size) == (now.world_size, now.batch_size)
        accumulate, rest = divmod(old.rows, now.world_size * now.batch_size)
        if rest or not accumulate or same_ranks:
            raise UserError(
                f"resume: a step of the checkpoint is {old.rows} rows ({old}), and {now} makes {now.rows}; choose "
                f"ranks and data.batch_size whose product divides {old.rows}, or start from its weights alone "
                "(model.init_from)"
            )
        trainer.accumulate_grad_batches = accumulate
        now = _global_batch(trainer, data)
        rescale(checkpoint, old, now, len(data.train_rows or ()))
        if trainer.is_global_zero:
            print(f"resume: {old} becomes {now}: the same {old.rows} rows a step", file=sys.stderr, flush=True)


def rescale(checkpoint: dict[str, Any], old: GlobalBatch, now: GlobalBatch, rows: int) -> None:
    """Rewrites what a checkpoint says of micro-batches, in place. Steps, and all that follows them, stay.

    Args:
        checkpoint: Of the Trainer, taken after an optimiser step.
        old: How its rows were dealt out.
        now: How they will be.
        rows: Of an epoch.
    """
    fit = checkpoint["loops"]["fit_loop"]
    progress = fit["epoch_loop.batch_progress"]
    done, total = progress["current"]["ready"], progress["total"]["ready"]
    before, after = (math.ceil(math.ceil(rows / g.world_size) / g.batch_size) for g in (old, now))
    in_epoch = after if done >= before else done // old.accumulate * now.accumulate
    in_all = (total - done) // before * after + in_epoch
    for count, new in ((progress["current"], in_epoch), (progress["total"], in_all)):
        # a checkpoint of a batch's end comes before the batch is counted as completed: that difference stays
        lag = {name: count["ready"] - count[name] for name in ("started", "processed", "completed")}
        count |= {"ready": new, **{name: new - behind for name, behind in lag.items()}}
    place = {"rows": done * old.batch_size * old.world_size}
    for loader in _loader_states(fit):
        loader["elastic"] = place | {"epoch": next(_epochs(loader), 0)}
    for name, keys in _COUNTED.items():
        state = checkpoint.get("callbacks", {}).get(name, {})
        state |= {key: state[key] * old.world_size // now.world_size for key in keys if key in state}


def _data(trainer: Any) -> MultimodalData | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, MultimodalData) else None


def _global_batch(trainer: pl.Trainer, data: MultimodalData) -> GlobalBatch:
    return GlobalBatch(trainer.world_size, data.batch_size, trainer.accumulate_grad_batches)


def _loader_states(value: Any) -> Iterator[dict[str, Any]]:
    """States of our loaders, wherever Lightning has put them."""
    if isinstance(value, dict):
        if "facts" in value:
            yield value
            return
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _loader_states(item)


def _epochs(value: Any) -> Iterator[int]:
    """The epoch in the state of a sampler's iterator, wherever the loader has put it."""
    if isinstance(value, dict):
        if {"epoch", "place", "next_epoch"} <= value.keys():
            yield max(0, value["epoch"])
            return
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _epochs(item)
