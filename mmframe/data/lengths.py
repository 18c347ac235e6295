"""How long a row will be, counted from its text and the headers of its pictures: nothing is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmframe.contracts import PatchEmbedder
from mmframe.data.pictures import Picture, picture_size
from mmframe.data.records import Record
from mmframe.errors import UserError
from mmframe.images import count_tiles
from mmframe.processing import ChatProcessor
from mmframe.processing.row import Tally


def longest_row(
    record: Record, processor: ChatProcessor, embedder: PatchEmbedder, max_tiles: int, per_row: int | None = None
) -> int:
    """Tokens of the longest row that a record can give.

    Args:
        record: A conversation, or questions of which several share a row.
        processor: Of the model.
        embedder: Of the model.
        max_tiles: Most tiles of a row's pictures, as `TileStore.load` shares them.
        per_row: Most questions of a row; None: all.

    Raises:
        UserError: a picture is missing or has no readable header; names it and the sample.
    """
    share = max(1, max_tiles // max(1, len(record.images)))
    counts = [
        count_tiles(*_size(path, record.key), embedder.image_size, share, processor.thumbnail) for path in record.images
    ]
    if record.conversation is not None:
        return processor.row(record.conversation, counts, embedder, max_tiles, record.key, Tally).tokens
    row = processor.encode_branches(record.questions, counts, embedder, max_tiles, record.key)
    branches = Counter(row.branches.tolist())
    trunk = branches.pop(0)
    return trunk + sum(sorted(branches.values(), reverse=True)[:per_row])


def _size(path: Picture, key: str) -> tuple[int, int]:
    """(width, height) of a picture, from its header; a UserError names the sample too."""
    try:
        return picture_size(path)
    except UserError as error:
        there = not isinstance(path, Path) or path.exists()
        lost = "" if there else "; pictures lie relative to the file that names them, or to data.image_folder"
        raise UserError(f"sample {key!r}: {error}{lost}") from error


def fitting(file: str, records: Sequence[Record], lengths: Sequence[int], limit: int, too_long: str) -> list[Record]:
    """The records whose rows fit. Nothing is truncated: what does not fit is an error, or left out and counted.

    Args:
        file: Where they come from.
        records: To choose from.
        lengths: Tokens of the longest row of each.
        limit: Most tokens of a row.
        too_long: error or skip.

    Raises:
        UserError: with `error`, if a record is too long; names the first with its length. If none is left.
    """
    longer = [i for i, length in enumerate(lengths) if length > limit]
    if not longer:
        return list(records)
    told = f"data: {file}: {len(longer)} of {len(records)} records are longer than max_tokens={limit}"
    if too_long == "error":
        first = longer[0]
        raise UserError(
            f"{told}, first sample {records[first].key!r} with {lengths[first]}; raise data.max_tokens, lower "
            "data.max_tiles, or leave them out with data.too_long=skip"
        )
    longest = max(longer, key=lambda i: lengths[i])
    told += f"; the longest, sample {records[longest].key!r}, has {lengths[longest]}"
    if len(longer) == len(records):
        raise UserError(f"{told}; none is left: raise data.max_tokens or lower data.max_tiles")
    print(f"{told}; they are left out (too_long: skip)")
    return [record for record, length in zip(records, lengths, strict=True) if length <= limit]
