"""A fixed part of a task: the same examples in every run, on every machine, for any number of ranks."""

from __future__ import annotations

import hashlib

from mmframe.tasks.task import Example, Task

_GROUPED_BY = ("group", "image", "set_id")
"""Keys of a reference that metrics score together: all rotations of a question, both questions of a picture..."""


def subset(task: Task, limit: int | None) -> list[int]:
    """Indices of at most `limit` examples, in the official order; None takes all.

    They are those whose ids have the smallest hashes, so they do not depend on the order of the files, and a larger
    limit takes the same ones and more. Examples that a metric scores together are taken together or not at all; only
    if the first such group is larger than the limit it is taken nevertheless.
    """
    if limit is None or limit >= len(task):
        return list(range(len(task)))
    units: dict[str, list[int]] = {}
    for index in range(len(task)):
        units.setdefault(_unit(task[index]), []).append(index)
    chosen: list[int] = []
    for unit in sorted(units, key=rank):
        if chosen and len(chosen) + len(units[unit]) > limit:
            break
        chosen += units[unit]
    return sorted(chosen)


def rank(text: str) -> bytes:
    """Place of an id in the order of hashes."""
    return hashlib.sha256(text.encode()).digest()


def _unit(example: Example) -> str:
    key = next((key for key in _GROUPED_BY if example.reference.get(key) is not None), None)
    if key is None:
        return f"id {example.id}"
    parts = [example.reference.get(name) for name in ("category", "subcategory", key)]
    return f"{key} {parts}"
