"""Held-out records with pictures: which ones, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from mmframe.data.guess import guessed_source
from mmframe.data.records import Record


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
