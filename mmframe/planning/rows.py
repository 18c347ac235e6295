"""The rows of a stage: read from its data, or made up from its budgets where the data is not here yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mmframe.batch import IGNORE, Batch, Sample
from mmframe.cli.data_job import component, geometry
from mmframe.contracts import PatchEmbedder
from mmframe.errors import UserError
from mmframe.images import count_tiles

READ = 64
"""Rows that are read where the data is looked at."""
BYTES_A_PIXEL = 0.25
"""Of a JPEG of quality 85: an assumption, for the data volume alone."""


@dataclass(frozen=True)
class Assumptions:
    """What a record is like, where the data is not looked at.

    Args:
        text: Text tokens of a record, its boundaries included.
        supervised: Share of them that is learnt.
        picture: Width and height of its one picture, pixels; None: it fills the image budget of the stage.
        tiles: Tiles of its picture with the thumbnail, in place of `picture`.
        measure: Look at the data.
    """

    text: int = 64
    supervised: float = 0.5
    picture: tuple[int, int] | None = None
    tiles: int | None = None
    measure: bool = False


@dataclass(frozen=True)
class StageRows:
    """Rows as they will be, and what they are like on average.

    Attributes:
        samples: Rows to make micro-batches of.
        batch_size: Rows of a micro-batch in the recipe.
        records, tiles, tokens, image_tokens, supervised: Of a row, mean.
        picture_bytes: Of a row, on the disk.
        of_epoch: Rows of an epoch; None where the data was not looked at.
        known_from: In a few words.
    """

    samples: Sequence[Sample]
    batch_size: int
    records: float
    tiles: float
    tokens: float
    image_tokens: float
    supervised: float
    picture_bytes: float
    of_epoch: int | None
    known_from: str

    def batch(self, rows: int) -> Batch:
        """A micro-batch of so many rows."""
        return Batch.collate([self.samples[n % len(self.samples)] for n in range(rows)])


def stage_rows(config: dict[str, Any], assumed: Assumptions) -> StageRows:
    """Rows of a resolved stage.

    Raises:
        UserError: mistakes in the data's arguments; data that is to be measured and is not here.
    """
    data, embedder = component(config["data"]), geometry(config["model"]["patch_embedder"])
    if assumed.measure:
        return _measured(data, component(config["model"]["processor"]), embedder)
    return _made_up(data, embedder, assumed)


def _measured(data: Any, processor: Any, embedder: PatchEmbedder) -> StageRows:
    data.connect(processor, embedder)
    rows = data.train_rows
    if hasattr(rows, "prepare"):
        rows.prepare(0)
    count = min(READ, len(rows))
    samples = [rows.sample(0, n * len(rows) // count) for n in range(count)]
    return _facts(samples, data, embedder, len(rows), f"{count} of {len(rows):,} rows of the data")


def _facts(samples: list[Sample], data: Any, embedder: PatchEmbedder, epoch: int | None, source: str) -> StageRows:
    def mean(value: Any) -> float:
        return float(np.mean([value(sample) for sample in samples]))

    return StageRows(
        samples=samples,
        batch_size=data.batch_size,
        records=mean(lambda s: s.num_records),
        tiles=mean(lambda s: s.tiles.shape[0]),
        tokens=mean(len),
        image_tokens=mean(lambda s: int((s.blocks >= 0).sum())),
        supervised=mean(lambda s: int((s.labels != IGNORE).sum())),
        picture_bytes=mean(lambda s: sum(_cells(n) for n in s.image_tiles)) * embedder.image_size**2 * BYTES_A_PIXEL,
        of_epoch=epoch,
        known_from=source,
    )


def _cells(tiles: int) -> int:
    """Tiles of a picture without its thumbnail."""
    return tiles - 1 if tiles > 1 else tiles


def _made_up(data: Any, embedder: PatchEmbedder, assumed: Assumptions) -> StageRows:
    """Records alike: one picture and some text; packed where the data packs."""
    side = embedder.image_size
    tokens = embedder.tile_tokens(side, side)
    shape = getattr(data, "row_shape", None)
    limit = shape.tokens if shape else getattr(data, "max_tokens", None) or 2**31
    most = getattr(data, "max_tiles", 1)
    if assumed.tiles is not None:
        tiles, source = assumed.tiles, f"{assumed.tiles} tiles"
    elif assumed.picture is not None:
        tiles, source = count_tiles(*assumed.picture, side, most), "a picture of {} x {} px".format(*assumed.picture)
    else:
        tiles, source = (most + 1 if most > 1 else most), f"the whole image budget ({_budget(most)})"
    fitting = (limit - assumed.text) // max(1, tokens.shape[1])
    if fitting < min(1, tiles):
        raise UserError(
            f"plan: a tile of {tokens.shape[1]} tokens and {assumed.text} of text do not fit a row of {limit:,} "
            "tokens; say less text (--text-tokens) or raise data.max_tokens"
        )
    if tiles > fitting:
        tiles, source = fitting, f"{source}, cut to the {fitting} tiles that a row of {limit:,} tokens holds"
    record = _record(tokens, tiles, side, assumed)
    packed = limit // max(1, len(record)) if shape is not None and shape.packing else 1
    row = record if packed == 1 else Sample.packed([record] * packed)
    facts = _facts([row], data, embedder, None, f"assumed: {source} and {assumed.text} text tokens a record")
    if assumed.picture is None or assumed.tiles is not None:
        return facts
    width, height = assumed.picture
    return replace(facts, picture_bytes=packed * width * height * BYTES_A_PIXEL)


def _budget(most: int) -> str:
    return f"{most} tiles and the thumbnail" if most > 1 else "1 tile"


def _record(tile: np.ndarray, tiles: int, side: int, assumed: Assumptions) -> Sample:
    kinds, tile_row, tile_column = (np.concatenate([np.tile(c, tiles), np.full(assumed.text, n)])
                                    for c, n in zip(tile, (0, -1, -1), strict=True))  # fmt: skip
    slots, learnt = tiles * tile.shape[1], round(assumed.supervised * assumed.text)
    index = np.concatenate([np.repeat(np.arange(tiles), tile.shape[1]), np.full(assumed.text, -1)])
    labels = np.full(len(kinds), IGNORE)
    labels[len(kinds) - learnt :] = 0
    return Sample.from_ids(
        torch.zeros(len(kinds), dtype=torch.int64),
        kinds=torch.from_numpy(kinds),
        labels=torch.from_numpy(labels),
        blocks=torch.where(torch.arange(len(kinds)) < slots, 0, -1),
        tile_index=torch.from_numpy(index),
        tile_row=torch.from_numpy(tile_row),
        tile_column=torch.from_numpy(tile_column),
        tiles=torch.empty(tiles, 3, side, side, device="meta"),
        image_tiles=(tiles,) if tiles else (),
        key="planned",
    )
