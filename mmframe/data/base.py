"""MultimodalData: rows from a source of samples, in an order that a killed run takes up again exactly."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from mmframe.batch import Batch, Sample
from mmframe.contracts import PatchEmbedder
from mmframe.data.loader_watch import Desk, Watched
from mmframe.data.prompts import Prompt, prompts_of
from mmframe.errors import UserError
from mmframe.processing import ChatProcessor


class Rows(Protocol):
    """Rows of an epoch. `sample` is a pure function: the same epoch and index give the same tensors anywhere."""

    def __len__(self) -> int: ...

    def sample(self, epoch: int, index: int) -> Sample: ...


class PlannedRows(Rows, Protocol):
    """What rows may have besides."""

    def prepare(self, epoch: int) -> None:
        """Is called in the training process before the first row of an epoch is asked for."""

    def fingerprint(self) -> dict[str, str]:
        """What the rows are made of, by name: a run is continued with the same data or not at all."""
        ...

    def tokens(self, epoch: int, index: int) -> int:
        """Tokens of a row, known without decoding its pictures: budgets are counted with it."""
        ...


class MultimodalData(L.LightningDataModule):
    """Base of the data components: makes sized, stateful loaders over the rows that a subclass builds.

    Rows that are a `PlannedRows` are planned before each epoch, and known again by their fingerprint.

    The tokenizer and the patch embedder are the model's own, taken from the trainer at set-up (or from `connect`), so
    text cannot be tokenised in one way and learnt in another.

    Args:
        batch_size: Rows of a batch, for each device.
        val_batch_size: The same in validation; None takes batch_size.
        seed: Of the order and of everything drawn.
        num_workers: Loader processes; 0 loads in the training process.
    """

    def __init__(
        self, batch_size: int = 8, val_batch_size: int | None = None, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        if batch_size < 1 or (val_batch_size is not None and val_batch_size < 1):
            raise UserError(f"data: batch_size={batch_size}, val_batch_size={val_batch_size} must be at least 1")
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.seed, self.num_workers = seed, num_workers
        self.processor: ChatProcessor | None = None
        self.train_rows: Rows | None = None
        self.val_rows: Rows | None = None
        self.allow_other_data = False
        self.timeout = 0.0
        """Seconds that loader processes may take for a batch; 0: no limit."""

    @abstractmethod
    def build(self, processor: ChatProcessor, embedder: PatchEmbedder) -> tuple[Rows, Rows | None]:
        """Rows for training and for validation (None if there are none)."""

    def connect(self, processor: ChatProcessor, embedder: PatchEmbedder) -> MultimodalData:
        """Builds the rows for this processor and patch embedder; returns itself. For use without a trainer."""
        self.processor = processor
        self.train_rows, self.val_rows = self.build(processor, embedder)
        return self

    def setup(self, stage: str) -> None:
        if self.train_rows is None:
            assert self.trainer is not None
            module: Any = self.trainer.lightning_module
            self.connect(module.processor, module.net.patch_embedder)

    def fingerprint(self) -> dict[str, str]:
        """What the training rows are made of, by name; {} where they follow from the arguments alone (drawn data)."""
        rows = self.train_rows
        return rows.fingerprint() if hasattr(rows, "fingerprint") else {}  # type: ignore[union-attr]

    def train_batches(self) -> int:
        """Batches of an epoch on this rank, known without making the loader."""
        assert self.train_rows is not None, "setup() or connect() comes first"
        ranks = self.trainer.world_size if self.trainer else 1
        return math.ceil(math.ceil(len(self.train_rows) / ranks) / self.batch_size)

    def train_dataloader(self) -> StatefulDataLoader:
        assert self.train_rows is not None, "setup() or connect() comes first"
        return self._loader(self.train_rows, self.batch_size)

    def val_dataloader(self) -> StatefulDataLoader | list:
        return [] if self.val_rows is None else self._loader(self.val_rows, self.val_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Benchmarks, see TaskData.

        Raises:
            UserError: other data has none.
        """
        raise UserError(
            f"data: {type(self).__name__} has no tests; name benchmarks: --data=TaskData --data.tasks=A,B "
            "--data.folder=DIR (`mmframe evaluate tasks` lists them)"
        )

    def predict_dataloader(self) -> DataLoader:
        """Batches of mmframe.data.prompts.Prompt: the questions of the validation rows.

        Raises:
            UserError: there are no validation rows.
        """
        if self.val_rows is None:
            raise UserError(f"data: {type(self).__name__} has no validation rows to answer; set data.val")
        assert self.processor is not None
        return DataLoader(
            _RowDataset(self.val_rows),
            batch_size=self.val_batch_size,
            sampler=self._sampler(self.val_rows),
            collate_fn=partial(_collate_prompts, self.processor),
            num_workers=self.num_workers,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, _Failure):
            raise UserError(batch.message)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Tiles that came as uint8 are normalised here, on the device."""
        if not isinstance(batch, Batch) or batch.tiles.dtype != torch.uint8:
            return batch
        assert self.processor is not None and self.trainer is not None
        tiles = self.processor.normalize(batch.tiles, batch.image_tiles)
        return replace(batch, tiles=self.trainer.precision_plugin.convert_input(tiles))

    def _sampler(self, rows: Rows) -> EpochSampler:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return EpochSampler(len(rows), rank, world_size, begin=getattr(rows, "prepare", None))

    def _loader(self, rows: Rows, batch_size: int) -> StatefulDataLoader:
        with warnings.catch_warnings():  # torchdata calls a deprecated function of torch and cannot help it
            warnings.filterwarnings("ignore", message=".*set_vital.*")
            loader = _Loader(
                _RowDataset(rows, self.num_workers),
                batch_size=batch_size,
                sampler=self._sampler(rows),
                collate_fn=_collate,
                num_workers=self.num_workers,
                timeout=self.timeout if self.num_workers else 0,
            )
        loader.allow_other_data = self.allow_other_data
        return loader


_WAYS = "use the same data settings, or start from its weights alone (model.init_from)"


class _Loader(StatefulDataLoader):
    """A stateful loader that refuses a state which it cannot continue exactly."""

    allow_other_data = False

    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        return Watched(super().__iter__(), dataset.desk, dataset.rows, self.timeout)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"facts": self._facts(), "data": self._data()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the state was taken.

        Raises:
            UserError: the data or the settings are others; names which, then and now.
        """
        saved, now = state_dict.get("data", {}), self._data()
        for name in {**saved, **now} if saved and not self.allow_other_data else ():
            if saved.get(name) != now.get(name):
                raise UserError(
                    f"resume: the data is not that of the checkpoint: {name} was {saved.get(name, 'not there')}, it is "
                    f"now {now.get(name, 'not there')}; {_WAYS}, or let it go on at the same place of the new data "
                    "(data.allow_other_data=true)"
                )
        saved, facts = state_dict.get("facts", {}), self._facts()
        elsewhere = state_dict.get("elastic")  # put in by mmframe.callbacks.elastic: the ranks are others
        for name, value in facts.items():
            if elsewhere and name != "rows":
                continue
            if name in saved and saved[name] != value and not (name == "rows" and self.allow_other_data):
                raise UserError(
                    f"resume: the checkpoint was written with data {name}={saved[name]}, this run has {value}; {_WAYS}"
                )
        if elsewhere:
            super().load_state_dict({})
            self.sampler.go_on(elsewhere["epoch"], elsewhere["rows"])  # type: ignore[union-attr]
            return
        super().load_state_dict(state_dict)

    def _facts(self) -> dict[str, int]:
        sampler = self.sampler
        assert isinstance(sampler, EpochSampler) and self.batch_size is not None
        return {
            "rows": sampler.num_rows,
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "world_size": sampler.num_replicas,
        }

    def _data(self) -> dict[str, str]:
        rows = self.dataset.rows  # type: ignore[attr-defined]
        return rows.fingerprint() if hasattr(rows, "fingerprint") else {}


class EpochSampler(DistributedSampler):
    """Yields (epoch, index) for this rank's share of an epoch, and remembers where it is.

    Rank r of w takes every w-th index, so the rows of a global batch do not depend on the number of ranks. A last
    incomplete round is filled up from the start of the epoch.

    It counts epochs itself and carries the count in its state: Lightning tells a sampler the epoch only after a
    resumed run has fetched its first batch. It derives from DistributedSampler lest Lightning puts one in its place.
    """

    def __init__(
        self, num_rows: int, rank: int = 0, world_size: int = 1, begin: Callable[[int], None] | None = None
    ) -> None:
        super().__init__(range(num_rows), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.num_rows, self.next_epoch = num_rows, 0
        self.begin = begin or (lambda epoch: None)
        self.start: tuple[int, int] | None = None

    def go_on(self, epoch: int, rows: int) -> None:
        """The next iterator begins in the midst of an epoch, after so many rows of all ranks."""
        self.start = epoch, min(rows // self.num_replicas, len(self))
        self.next_epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        pass  # see the class: our own count is the right one

    def __len__(self) -> int:
        return -(-self.num_rows // self.num_replicas)

    def __iter__(self) -> _EpochIterator:  # type: ignore[override]
        return _EpochIterator(self)


class _EpochIterator(Iterator):
    """One epoch of an EpochSampler; its state makes a resumed loader go on at the very next row."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler, self.place = sampler, 0
        self.epoch = -1  # not begun: loaders make iterators that they never use, and those must not count

    def __next__(self) -> tuple[int, int]:
        if self.epoch < 0:
            self.epoch = self.sampler.next_epoch
            if self.sampler.start is not None:
                (self.epoch, self.place), self.sampler.start = self.sampler.start, None
            self.sampler.next_epoch += 1
            self.sampler.begin(self.epoch)
        if self.place >= len(self.sampler):
            raise StopIteration
        index = self.place * self.sampler.num_replicas + self.sampler.rank
        self.place += 1
        return self.epoch, index % self.sampler.num_rows

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "place": self.place, "next_epoch": self.sampler.next_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.place = state["epoch"], state["place"]
        self.sampler.next_epoch = state["next_epoch"]
        if self.epoch >= 0:
            self.sampler.begin(self.epoch)


class _RowDataset(Dataset):
    """Map-style view of rows, indexed by (epoch, index)."""

    def __init__(self, rows: Rows, workers: int = 0) -> None:
        self.rows = rows
        self.desk = Desk(workers)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Sample | _Failure:
        if get_worker_info() is None:
            return self.rows.sample(*place)
        self.desk.take(*place)
        try:
            return self.rows.sample(*place)
        except UserError as error:  # a worker would wrap it in a traceback of many lines; the main process raises it
            return _Failure(str(error))
        finally:
            self.desk.leave()


class _Failure:
    """A user's mistake found in a loader process, on its way to the main process."""

    def __init__(self, message: str) -> None:
        self.message = message


def _collate(samples: list[Sample | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    try:
        return Batch.collate(samples)  # type: ignore[arg-type]
    except UserError as error:
        if get_worker_info() is None:
            raise
        return _Failure(str(error))


def _collate_prompts(processor: ChatProcessor, samples: list[Sample | _Failure]) -> list[Prompt] | _Failure:
    prompts: list[Prompt] = []
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
        if sample.tiles.dtype == torch.uint8:
            sample = replace(sample, tiles=processor.normalize(sample.tiles, sample.image_tiles))
        prompts += prompts_of(sample, processor.tokenizer)
    return prompts
