"""JSONL records: reading and checking them, and the pictures they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from mmframe.errors import UserError
from mmframe.processing import ChatProcessor


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file: pictures, and a conversation or independent questions about them.

    Attributes:
        key: the record's id, with the file's name in front.
        images: paths of the pictures.
        conversation: turns {"from", "value"}, or None.
        questions: (question, answer) pairs, or empty.
    """

    key: str
    images: tuple[Path, ...]
    conversation: tuple[dict[str, str], ...] | None
    questions: tuple[tuple[str, str], ...]


def read_records(path: Path, hint: str = "") -> list[Record]:
    """Reads a JSONL file.

    A line is {"id", "image": path or list of paths, ...} with either "conversations": [{"from": "human" | "gpt",
    "value": text}, ...] or "questions": [[question, answer], ...]. Paths of pictures are relative to the file.

    Args:
        path: the file.
        hint: what to add to the message when it does not exist.

    Raises:
        UserError: the file is missing or empty, or a line is not such a record; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"data: {path} does not exist{hint}")
    with path.open(encoding="utf-8") as lines:
        records = [_record(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise UserError(f"data: {path} holds no records")
    return records


def _record(line: str, path: Path, number: int) -> Record:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"data: {path} line {number} is not JSON ({error})") from error
    turns, questions = data.get("conversations"), data.get("questions")
    if (turns is None) == (questions is None):
        raise UserError(f'data: {path} line {number} must have either "conversations" or "questions"')
    if questions is not None and not all(isinstance(q, list) and len(q) == 2 for q in questions):
        raise UserError(f'data: {path} line {number}: "questions" must be a list of [question, answer]')
    named = data.get("image", [])
    named = [named] if isinstance(named, str) else named
    return Record(
        key=f"{path.parent.name}/{path.stem}:{data.get('id', number)}",
        images=tuple(path.parent / name for name in named),
        conversation=None if turns is None else tuple(turns),
        questions=tuple((str(q), str(a)) for q, a in questions or ()),
    )


class TileStore:
    """Decodes pictures to uint8 tiles and keeps them in memory up to a limit.

    Args:
        processor: cuts the pictures.
        tile: side of a tile, pixels.
        max_bytes: once the kept tiles reach it, further pictures are decoded each time.
    """

    def __init__(self, processor: ChatProcessor, tile: int, max_bytes: int) -> None:
        self.processor, self.tile, self.max_bytes = processor, tile, max_bytes
        self._kept: dict[tuple[Path, int], Tensor] = {}
        self._bytes = 0

    def load(self, paths: Sequence[Path], max_tiles: int, key: str) -> list[Tensor]:
        """Tiles of each picture, uint8 [n, 3, tile, tile]; the pictures of a sample share `max_tiles` evenly.

        Raises:
            UserError: a picture is missing or broken; the message names it and the sample.
        """
        share = max(1, max_tiles // max(1, len(paths)))
        return [self._load(path, share, key) for path in paths]

    def _load(self, path: Path, max_tiles: int, key: str) -> Tensor:
        kept = self._kept.get((path, max_tiles))
        if kept is not None:
            return kept
        try:
            with Image.open(path) as image:
                tiles = self.processor.cut(image, self.tile, max_tiles)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise UserError(f"sample {key!r}: cannot read the picture {path} ({error})") from error
        if self._bytes + tiles.nbytes <= self.max_bytes:
            self._kept[path, max_tiles] = tiles
            self._bytes += tiles.nbytes
        return tiles
