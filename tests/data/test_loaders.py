"""P2: a training loader that a killed run could not take up exactly is refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from mmframe.batch import Batch
from mmframe.errors import UserError
from tests.helpers import batch, tiny_module

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
    batches = [batch("tii", "ttt") for _ in range(2)]
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
        fit(loader([batch("tii")]))
