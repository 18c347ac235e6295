"""ConversationData: conversations and questions about images, from JSONL files."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmframe.batch import Sample
from mmframe.contracts import PatchEmbedder
from mmframe.data.base import MultimodalData, Rows
from mmframe.data.files import how_to_get
from mmframe.data.lengths import fitting, longest_row
from mmframe.data.order import permutation
from mmframe.data.records import Record, TileStore, read_records
from mmframe.data.rows import SourcePlan
from mmframe.errors import UserError
from mmframe.paths import data_path
from mmframe.processing import ChatProcessor
from mmframe.registry import register


@register("data")
class ConversationData(MultimodalData):
    """Conversations and questions about images, from one or several JSONL files (or JSON lists).

    A record is one line, {"id", "image": path or list, "conversations": [{"from": "human", "value": "<image>\\n..."},
    {"from": "gpt", "value": "..."}]}, or has "questions": [[question, answer], ...] in place of "conversations":
    independent questions about the same image, several of which share one row. Records without an image are text.
    The order is a pure function of (seed, epoch, index).

    Args:
        train: JSONL files; `demo:easy_vqa/train.jsonl` names a file of the demo data.
        val: JSONL files for validation; all of their rows, in order.
        weights: Passes over each training file in an epoch (1 = each row once); null is 1 for all.
        batch_size: Rows of a batch, for each device.
        val_batch_size: The same in validation; null takes batch_size.
        max_tiles: Most tiles of a row's images, thumbnails not counted; 1 resizes each image to one tile.
        questions_per_image: Most questions that share an image in a row; null puts all of them there.
        balance: none; answer = every answer equally often; question = the answers of each wording equally often.
        exclude_answers: Questions with these answers are left out, in training and validation.
        seed: Of the order and of everything drawn.
        num_workers: Loader processes; 0 loads in the training process.
        cache_mb: Decoded images are kept in memory up to this size, for each process.
        missing: What to do about a training file that is not there: error, or skip it and say so (at least one must be
            there).
        image_folder: What paths of pictures are relative to; null: the folder of their file.
        max_tokens: Most tokens of a row; null for no limit. The longest row of every record is then counted before
            training starts, from text and picture headers; nothing is truncated.
        too_long: What to do about a longer record: error, or skip it and say how many were.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        weights: list[float] | None = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        max_tiles: int = 1,
        questions_per_image: int | None = None,
        balance: Literal["none", "answer", "question"] = "none",
        exclude_answers: list[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_mb: int = 256,
        missing: Literal["error", "skip"] = "error",
        image_folder: str | None = None,
        max_tokens: int | None = None,
        too_long: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(batch_size, val_batch_size, seed, num_workers)
        self.train_files = [train] if isinstance(train, str) else list(train)
        self.val_files = [val] if isinstance(val, str) else list(val or [])
        self.weights = [1.0] * len(self.train_files) if weights is None else list(weights)
        if len(self.weights) != len(self.train_files) or min(self.weights, default=0) <= 0:
            raise UserError(f"data: weights={weights} must be {len(self.train_files)} positive numbers, one a file")
        if missing == "skip":
            self._skip_missing()
        if max_tiles < 1:
            raise UserError(f"data: max_tiles={max_tiles} must be at least 1")
        self.max_tiles, self.questions_per_image, self.balance = max_tiles, questions_per_image, balance
        self.exclude_answers, self.cache_mb = frozenset(exclude_answers or ()), cache_mb
        self.image_folder = None if image_folder is None else data_path(image_folder)
        self.max_tokens, self.too_long = max_tokens, too_long

    def _skip_missing(self) -> None:
        there = [data_path(file).is_file() for file in self.train_files]
        if not any(there):
            raise UserError(f"data: none of {', '.join(self.train_files)} is there; run: python -m mmframe.data.demo")
        for file, is_there in zip(self.train_files, there, strict=True):
            if not is_there:
                print(f"data: {file} is not there, going on without it")
        self.weights = [weight for weight, is_there in zip(self.weights, there, strict=True) if is_there]
        self.train_files = [file for file, is_there in zip(self.train_files, there, strict=True) if is_there]

    def build(self, processor: ChatProcessor, embedder: PatchEmbedder) -> tuple[Rows, Rows | None]:
        store = TileStore(processor, embedder.image_size, self.cache_mb * 2**20)

        def rows(files: list[str], weights: Sequence[float], training: bool) -> Rows:
            sources = [self._fitting(file, self._read(file), processor, embedder) for file in files]
            balance = self.balance if training else "none"
            plans = [
                SourcePlan(records, self.questions_per_image, balance, self.seed, stream, shuffle=training)
                for stream, records in enumerate(sources)
            ]
            shuffle_seed = self.seed if training else None
            return ConversationRows(sources, plans, weights, processor, embedder, store, self.max_tiles, shuffle_seed)

        validation = rows(self.val_files, [1.0] * len(self.val_files), False) if self.val_files else None
        return rows(self.train_files, self.weights, True), validation

    def fingerprint(self) -> dict[str, str]:
        """Content of the training files; the pictures that they name are not read."""
        digests = {file: hashlib.sha256(data_path(file).read_bytes()).hexdigest()[:16] for file in self.train_files}
        return {f"file {file}": digest for file, digest in digests.items()}

    def _read(self, file: str) -> list[Record]:
        records = read_records(data_path(file), how_to_get(file), self.image_folder)
        if not self.exclude_answers:
            return records
        kept = [
            replace(r, questions=tuple((q, a) for q, a in r.questions if a not in self.exclude_answers))
            for r in records
        ]
        return [r for r in kept if r.questions or r.conversation is not None]

    def _fitting(
        self, file: str, records: list[Record], processor: ChatProcessor, embedder: PatchEmbedder
    ) -> list[Record]:
        if self.max_tokens is None:
            return records
        lengths = [longest_row(r, processor, embedder, self.max_tiles, self.questions_per_image) for r in records]
        return fitting(file, records, lengths, self.max_tokens, self.too_long)


class ConversationRows:
    """The rows of an epoch over several sources, mixed.

    An epoch takes round(weight * rows) rows of each source, going on in the source where the last epoch stopped: a
    weight of 0.1 has seen everything once after ten epochs.

    Args:
        sources: the records of each source.
        plans: how each source is cut into rows.
        weights: passes over each source in an epoch.
        seed: of the mix; None keeps the rows in order.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Record]],
        plans: Sequence[SourcePlan],
        weights: Sequence[float],
        processor: ChatProcessor,
        embedder: PatchEmbedder,
        store: TileStore,
        max_tiles: int,
        seed: int | None,
    ) -> None:
        self.sources, self.plans, self.seed = sources, plans, seed
        self.processor, self.embedder, self.store, self.max_tiles = processor, embedder, store, max_tiles
        self.counts = [max(1, round(w * plan.num_rows)) for w, plan in zip(weights, plans, strict=True)]
        self._mixed: tuple[int, Sequence[int]] = (-1, [])

    def __len__(self) -> int:
        return sum(self.counts)

    def sample(self, epoch: int, index: int) -> Sample:
        """The row at a place of an epoch."""
        source, record, questions = self.locate(epoch, index)
        images = self.store.load(record.images, self.max_tiles, record.key)
        if record.conversation is not None:
            return self.processor.encode(record.conversation, images, self.embedder, self.max_tiles, record.key)
        asked = [record.questions[q] for q in questions]
        return self.processor.encode_branches(asked, images, self.embedder, self.max_tiles, record.key)

    def tokens(self, epoch: int, index: int) -> int:
        """Tokens of the row at a place of an epoch; of its pictures only the headers are read."""
        _, record, questions = self.locate(epoch, index)
        asked = replace(record, questions=tuple(record.questions[q] for q in questions))
        return longest_row(asked, self.processor, self.embedder, self.max_tiles)

    def locate(self, epoch: int, index: int) -> tuple[int, Record, tuple[int, ...]]:
        """(source, record, questions) at a place of an epoch."""
        place = int(self._mix(epoch)[index])
        for source, count in enumerate(self.counts):
            if place < count:
                passed, row = divmod(epoch * count + place, self.plans[source].num_rows)
                record, questions = self.plans[source].row(passed, row)
                return source, self.sources[source][record], questions
            place -= count
        raise IndexError(index)

    def _mix(self, epoch: int) -> Sequence[int]:
        if self.seed is None:
            return range(len(self))
        if self._mixed[0] != epoch:
            self._mixed = (epoch, permutation(len(self), self.seed, epoch, 3))  # type: ignore[assignment]
        return self._mixed[1]
