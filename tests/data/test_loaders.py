"""P2: a loader that a killed run could not take up exactly is refused; what a step draws is the same after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from components.adapters.lora import LoRA
from components.freezing.additions import LoRAParameters
from components.routers.modality import SharedRouter
from mmframe.batch import Batch
from mmframe.errors import UserError
from mmframe.module import MultimodalModule
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import batch, tiny_embedder, tiny_llama, tiny_module

pytestmark = pytest.mark.filterwarnings("ignore")


class Stream(IterableDataset):
    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(self.batches)


def fit(loader: Any) -> pl.Trainer:
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(tiny_module(), loader)
    return trainer


def test_a_loader_that_keeps_its_place_and_has_a_length_trains() -> None:
    batches = [batch("tiiTT", "ttTT") for _ in range(2)]
    assert fit(StatefulDataLoader(batches, batch_size=None)).global_step == 2
    assert fit(StatefulDataLoader(SizedStream(batches), batch_size=None)).global_step == 2


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda batches: DataLoader(batches, batch_size=None), "is a DataLoader, which does not remember its place"),
        (lambda batches: StatefulDataLoader(Stream(batches), batch_size=None), "has no length: Lightning fetches one"),
    ],
)
def test_others_are_refused(loader: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(loader([batch("tiiTT")]))


def lora_module() -> MultimodalModule:
    return MultimodalModule(
        backbone=tiny_llama(),
        patch_embedder=tiny_embedder(),
        router=SharedRouter(),
        freezing=LoRAParameters(lr=1e-2),
        processor=ChatProcessor(ByteTokenizer()),
        adapter=LoRA(rank=2, dropout=0.5),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path: Path, accumulate: int) -> None:
    start = lora_module().state_dict()

    def run(steps: int, resume: Path | None = None) -> dict[str, Tensor]:
        module = lora_module()
        module.load_state_dict(start)
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False,
                             accumulate_grad_batches=accumulate)  # fmt: skip
        torch.manual_seed(steps)  # another state of the generators in each process
        trainer.fit(module, StatefulDataLoader([batch("tiiTT", "ttTT")] * 12, batch_size=None), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    run(2)
    resumed, whole = run(5, tmp_path / "2.ckpt"), run(5)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
