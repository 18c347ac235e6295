"""The rows of a mixture: a planned row's records are read, encoded and put side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmframe.batch import Sample
from mmframe.data.encoding import JPEG_QUALITY, Encoder
from mmframe.data.epoch_plan import EpochPlan
from mmframe.data.lengths_table import Lengths
from mmframe.data.quarantine import Bad
from mmframe.data.source import BadRecord, Source
from mmframe.errors import UserError
from mmframe.images import TileBuffer
from mmframe.processing.row import Row, packed


@dataclass(frozen=True)
class Part:
    """One source in a mixture.

    Attributes:
        name: in the recipe.
        source: opened.
        max_tiles: image budget of a record.
        prompts: asked where a record is a caption.
        lengths: of its records, with the first prompt.
        extra: int64, tokens that each prompt adds to that.
    """

    name: str
    source: Source
    max_tiles: int
    prompts: tuple[str, ...]
    lengths: Lengths
    extra: np.ndarray


class MixtureRows:
    """Rows of every epoch; `sample` is a pure function of its arguments and the data."""

    def __init__(self, parts: Sequence[Part], plan: EpochPlan, encoder: Encoder) -> None:
        self.parts, self.plan, self.encoder = parts, plan, encoder
        self._count = len(plan)

    def __len__(self) -> int:
        return self._count

    def prepare(self, epoch: int) -> None:
        """Plans an epoch, so that loader processes find the plan."""
        self.plan.rows(epoch)

    def fingerprint(self) -> dict[str, str]:
        """What the rows are made of: by these a resumed run knows its data again."""
        told = {
            f"source {part.name}": f"{len(part.source):,} records in {sum(1 for _ in part.source.files()):,} files "
            f"of {sum(size for _, size in part.source.files()):,} bytes"
            for part in self.parts
        }
        lengths = {f"lengths {part.name}": part.lengths.digest for part in self.parts}
        return {**told, **lengths, "plan": self.plan.digest}

    def tokens(self, epoch: int, index: int) -> int:
        """Planned tokens of a row, known without reading it."""
        return sum(self.plan.visits(epoch, index).tokens)

    def describe(self, epoch: int, index: int) -> str:
        """The records of a row, for messages."""
        visits = self.plan.visits(epoch, index)
        told = [f"{self.parts[p].name} {r}" for p, r in zip(visits.part[:6], visits.record[:6], strict=True)]
        return f"records {', '.join(told)}{', ...' if len(visits.record) > 6 else ''}"

    def sample(self, epoch: int, index: int) -> Sample:
        """A row. Records that cannot be decoded are missing from it, and listed in its `left_out`.

        Raises:
            UserError: a record has another length than was measured.
        """
        visits = self.plan.visits(epoch, index)
        low, high = JPEG_QUALITY
        planned = sum(int(self.parts[p].lengths.tiles[r]) for p, r in zip(visits.part, visits.record, strict=True))
        buffer = TileBuffer(planned, self.encoder.embedder.image_size, self.encoder.processor.thumbnail)
        found: list[Row] = []
        bad: list[Bad] = []
        for number, record, prompt, tokens, noise in zip(*vars(visits).values(), strict=True):
            part = self.parts[number]
            quality = int(low + noise * (high + 1 - low)) if part.source.jpeg_noise else None
            try:
                one = self.encoder.encode(
                    part.source.record(record), part.max_tiles, buffer, part.prompts[prompt], quality
                )
            except BadRecord as error:
                bad.append(Bad(part.name, record, error.reason, str(error)))
                continue
            if len(one.ids) != tokens:
                raise UserError(
                    f"sample {one.key!r} of {part.name} has {len(one.ids)} tokens, {tokens} were measured: the data "
                    "has changed since; measure again with `mmframe data plan RECIPE --fresh`"
                )
            one.source = part.name
            found.append(one)
        tiles = buffer.tiles() if buffer.used else torch.zeros(0, 3, 1, 1)
        return replace(packed(found, tiles), left_out=tuple(bad), num_records=len(visits.record))
