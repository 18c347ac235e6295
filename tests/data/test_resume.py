"""P1 on the data's side: a run that was cut off sees exactly the batches that an uninterrupted one sees."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.data import ConversationData, MultimodalData, ToyData
from mmframe.errors import UserError
from tests.data.support import embedder, processor, write_set


class Recorder(pl.LightningModule):
    """Learns nothing; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.processor, self.net = processor(), SimpleNamespace(patch_embedder=embedder())
        self.seen: list[tuple] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((batch.keys, batch.ids.tolist(), float(batch.tiles.sum())))
        return self.weight * batch.num_tokens / 1000

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


class SaveAt(pl.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def run(data: MultimodalData, steps: int, save: SaveAt | None = None, resume: Path | None = None, **more: Any) -> list:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[save] if save else [], **more,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 8, 10, 16], ids=["mid", "epoch-end", "epoch-2", "epoch-2-end"])
def test_a_resumed_run_sees_what_the_uninterrupted_one_sees(tmp_path: Path, workers: int, stop: int) -> None:
    path = str(write_set(tmp_path))

    def data() -> ConversationData:
        return ConversationData(
            train=path, batch_size=3, questions_per_image=2, balance="answer", num_workers=workers, cache_mb=1
        )

    assert len(data().connect(processor(), embedder()).train_dataloader()) == 8  # the parameters rely on it
    whole = run(data(), 20, SaveAt(stop, tmp_path / "x.ckpt"))
    assert len(whole) == 20 and whole[:8] != whole[8:16]
    # Lightning's own current_epoch is one too high after a checkpoint of an epoch's last batch; the order is not its.
    assert run(data(), 20, resume=tmp_path / "x.ckpt") == whole[stop:]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_may_be_resumed_and_accumulation_does_not_matter(tmp_path: Path) -> None:
    def data() -> ToyData:
        return ToyData(size=10, val_size=0, batch_size=2)

    options = {"accumulate_grad_batches": 2}
    whole = run(data(), 8, SaveAt(2, tmp_path / "a.ckpt"), **options)
    second = run(data(), 8, SaveAt(5, tmp_path / "b.ckpt"), resume=tmp_path / "a.ckpt", **options)
    third = run(data(), 8, resume=tmp_path / "b.ckpt", **options)
    assert second == whole[-len(second) :] and third == whole[-len(third) :]
    assert len(whole) > len(second) > len(third) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size=2, this run has 4"),
        ({"num_workers": 1}, "num_workers=0, this run has 1"),
        ({"size": 9}, "rows=10, this run has 9"),
    ],
)
def test_other_data_cannot_be_resumed(tmp_path: Path, change: dict[str, int], message: str) -> None:
    settings = {"size": 10, "val_size": 0, "batch_size": 2}
    run(ToyData(**settings), 3, SaveAt(2, tmp_path / "x.ckpt"))
    with pytest.raises(UserError, match=message):
        run(ToyData(**(settings | change)), 4, resume=tmp_path / "x.ckpt")
