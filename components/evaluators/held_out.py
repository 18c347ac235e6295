"""Held-out records with pictures: which ones, and in how many tiles."""

from __future__ import annotations

from collections.abc import Iterator

from mmframe.data.files import expand
from mmframe.data.guess import guessed_source
from mmframe.data.records import Record
from mmframe.errors import UserError
from mmframe.loading import LoadedModel


def spread(path: str, count: int, what: str) -> Iterator[Record]:
    """At most `count` records of a source, evenly spread over it: always the same, and not only its first pages.

    Args:
        path: Of the source; its kind is known by its name, see `guessed_source`.
        count: Records.
        what: Who asks, for messages.
    """
    source = guessed_source(path, what)
    source.open()
    chosen = min(count, len(source))
    for number in range(chosen):
        yield source.record(number * len(source) // chosen)


def files_of(path: str) -> list[str]:
    """The files of a source: what its path or pattern stands for, or all that a folder holds.

    Raises:
        UserError: a file is missing.
    """
    return expand(path, suffixes=("",))


def tiles_of(model: LoadedModel, given: int | None, what: str) -> int:
    """The image budget that was asked for, or the one that the model was trained with.

    Raises:
        UserError: neither is known.
    """
    tiles = given or model.trained_tiles or model.max_tiles
    if tiles is None:
        raise UserError(f"{what}: max_tiles is null, and the model does not say how many it was trained with")
    return tiles
