"""Pictures of a result's examples, small and inside the page: found again through the task, else by their names."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmframe.errors import UserError

if TYPE_CHECKING:  # pictures need torch, answers do not
    from mmframe.data.pictures import Picture
    from mmframe.evaluate.record import Result

QUALITY = 85


@dataclass
class Thumbnails:
    """Small pictures, each once.

    Args:
        limit: How many at most.
        side: The longest side, pixels.

    Attributes:
        pictures: (data URI, width, height of the original).
    """

    limit: int
    side: int
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)

    def add(self, picture: Picture) -> tuple[int, str]:
        """Place of a picture, and ""; or -1 and why it is not there."""
        if picture in self._known:
            return self._known[picture], ""
        if len(self.pictures) >= self.limit:
            return -1, f"not in this page: it holds the first {self.limit:,} pictures (--limit)"
        from mmframe.data.pictures import open_picture

        try:
            image = open_picture(picture)
        except UserError as error:
            return -1, str(error)
        size = image.size
        image.thumbnail((self.side, self.side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        self._known[picture] = len(self.pictures)
        self.pictures.append((uri, *size))
        return len(self.pictures) - 1, ""


def example_pictures(
    result: Result, wanted: Iterable[str], task: str | None = None, data: Path | None = None
) -> tuple[dict[str, Sequence[Picture]], str]:
    """Pictures of examples by id, and "" ; or {} and why the task cannot give them.

    Args:
        result: Says which task, and the data that were read.
        wanted: Ids.
        task: Name or file of the task; None: the record's.
        data: Folder of its files; None: the record's.
    """
    from mmframe import tasks

    told = task or result.extra.get("task_file") or result.task
    place = data or result.extra.get("data")
    try:
        loaded = tasks.load_task(str(told), Path(place) if place else None)  # pyright: ignore[reportAttributeAccessIssue]
        if loaded.data_fingerprint != result.data_fingerprint:
            raise UserError(
                f"the task's files are not those that were asked (data fingerprint {loaded.data_fingerprint}, then "
                f"{result.data_fingerprint})"
            )
        missing = set(wanted)
        found: dict[str, Sequence[Picture]] = {}
        for example in loaded:
            if example.id in missing:
                found[str(example.id)] = example.images
                missing.remove(example.id)
                if not missing:
                    break
    except UserError as error:
        return {}, str(error)
    return found, ""


def shown_pictures(
    names: Sequence[str], found: Mapping[str, Sequence[Picture]], key: str, why: str, thumbnails: Thumbnails
) -> list[dict[str, Any]]:
    """What the page shows for the pictures of one example: {"name", "picture": its place or -1, "why"}.

    Args:
        names: Of answers.jsonl.
        found: Of `example_pictures`.
        key: Id of the example.
        why: The task cannot be loaded; then a name that is a file here is opened.
        thumbnails: Get the pictures.
    """
    shown = []
    known = found.get(key, ())
    for number, name in enumerate(names):
        picture: Picture | None = known[number] if number < len(known) else None
        if picture is None and why and Path(name).is_file():
            picture = Path(name)
        place, reason = (-1, why or "the task has no such example") if picture is None else thumbnails.add(picture)
        shown.append({"name": Path(name).name if "/" in name else name, "picture": place, "why": reason})
    return shown
