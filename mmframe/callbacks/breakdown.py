"""What the batches held and how well it was predicted: by kind of token, kind of sample and source."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmframe.batch import Batch
from mmframe.kinds import TokenKind

MOST_SOURCES = 32
"""More names than that are counted together: a log is read by people."""
OTHERS = "others"
ALL, TEXT_ONLY, WITH_IMAGE = "all", "text_only", "image"


class Breakdown(Callback):
    """Logs, every `log_every_n_steps`, of all steps since the line before and of all ranks:

    tokens/text, tokens/image, ...  tokens of each kind that occurred; tokens/supervised: those that were learnt
    loss/all, loss/text_only, loss/image   sum(w ce) / sum(w) over the supervised tokens: all, those of documents
                                           without and with a picture
    loss/source/NAME                       the same by source, where data tell sources (a mixture's name, or what the
                                           sample's key begins with)

    The sums are exact, however the steps were split over micro-batches and ranks. They stay on the device until they
    are logged; a step costs one sum over its supervised tokens. After a kill the first line holds what rank 0 saw since
    the line before the checkpoint, and of the other ranks what came after it.
    """

    def __init__(self) -> None:
        self.names: list[str] = [ALL, TEXT_ONLY, WITH_IMAGE]
        self.tokens = torch.zeros(len(TokenKind) + 1, dtype=torch.int64)
        self.sums: Tensor | None = None  # [names, 2]: sum of w ce, sum of w
        self._rows: dict[str, int] = {}
        self._logged = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._logged = trainer.global_step  # else a run that goes on would log in the middle of its first step
        if not trainer.is_global_zero:  # a checkpoint holds what rank 0 has seen
            self.tokens.zero_()
            self.sums = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not isinstance(batch, Batch):
            return
        self._count(batch, getattr(getattr(pl_module, "objective", None), "per_token", None))
        step = trainer.global_step
        if step == self._logged or step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._logged = step
        values = self.values(self._of_all_ranks(trainer.world_size))
        if values:
            pl_module.log_dict(values, batch_size=1)
        self.tokens.zero_()
        self.sums = None

    def _count(self, batch: Batch, per_token: tuple[Tensor, Tensor] | None) -> None:
        self.tokens[:-1] += batch.kinds.long().bincount(minlength=len(TokenKind))  # kinds stay on the host
        self.tokens[-1] += batch.supervised.numel()
        if per_token is None or not batch.supervised.numel():
            return
        loss_S, weight_S = per_token
        rows_D = torch.tensor([self._row(name) for name in batch.doc_sources])  # of each document
        groups_T2 = torch.stack([rows_D, 1 + batch.doc_images.long()], 1).repeat_interleave(batch.doc_lengths, 0)
        if loss_S.is_cuda:
            groups_T2 = groups_T2.pin_memory().to(loss_S.device, non_blocking=True)
        groups_S2 = groups_T2[batch.supervised]
        both_S2 = torch.stack([loss_S * weight_S, weight_S], 1).double()
        sums = both_S2.new_zeros(len(self.names), 2)
        sums[0] = both_S2.sum(0)
        for column in groups_S2.unbind(1):
            sums.index_add_(0, column, both_S2 * (column > 0)[:, None])  # row 0 holds all of them already
        if self.sums is not None:
            sums[: len(self.sums)] += self.sums.to(sums.device)
        self.sums = sums

    def _row(self, source: str) -> int:
        """Row of a source in the sums; 0 where it is not known."""
        if not source:
            return 0
        if source not in self._rows:
            name = f"source/{source if len(self._rows) < MOST_SOURCES else OTHERS}"
            if name not in self.names:
                self.names.append(name)
            self._rows[source] = self.names.index(name)
        return self._rows[source]

    def _of_all_ranks(self, world_size: int) -> dict[str, list[float]]:
        mine = {f"tokens/{name}": [float(n)] for name, n in zip(self._kinds(), self.tokens.tolist(), strict=True)}
        for name, pair in zip(self.names, [] if self.sums is None else self.sums.tolist(), strict=False):
            mine[f"loss/{name}"] = pair
        if world_size == 1:
            return mine
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, mine)  # ranks may have met other sources
        total: dict[str, list[float]] = {}
        for part in gathered:
            for name, numbers in part.items():
                total[name] = [a + b for a, b in zip(total.get(name, [0.0] * len(numbers)), numbers, strict=True)]
        return total

    @staticmethod
    def _kinds() -> list[str]:
        return [*(kind.name.lower() for kind in TokenKind), "supervised"]

    @staticmethod
    def values(total: dict[str, list[float]]) -> dict[str, float]:
        """What is logged: of kinds and groups that did not occur, nothing."""
        found = {}
        for name, (first, *weight) in total.items():
            if weight and weight[0] > 0:
                found[name] = first / weight[0]
            elif not weight and first:
                found[name] = first
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "rows": dict(self._rows),
            "tokens": self.tokens.tolist(),
            "sums": [] if self.sums is None else self.sums.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.names, self._rows = list(state_dict["names"]), dict(state_dict["rows"])
        self.tokens = torch.tensor(state_dict["tokens"])
        self.sums = torch.tensor(state_dict["sums"], dtype=torch.float64) if state_dict["sums"] else None
