"""Records of JSON and JSONL files: reading and checking them, and the pictures they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmframe.data.pictures import Picture, open_picture
from mmframe.errors import UserError
from mmframe.processing import ChatProcessor


@dataclass(frozen=True)
class Record:
    """One record: pictures, and one of: a conversation, independent questions about them, a caption, plain text.

    Attributes:
        key: the record's id, with the file's name in front.
        images: the pictures: paths, or parts of larger files.
        conversation: turns {"from", "value"}, or None.
        questions: (question, answer) pairs, or empty.
        caption: what the picture shows, without a prompt; or None.
        text: text without pictures, of which every token is learnt; or None.
    """

    key: str
    images: tuple[Picture, ...]
    conversation: tuple[dict[str, str], ...] | None = None
    questions: tuple[tuple[str, str], ...] = ()
    caption: str | None = None
    text: str | None = None


def read_records(path: Path, hint: str = "", image_folder: Path | None = None) -> list[Record]:
    """Reads a JSONL file, or a JSON file that holds a list of records.

    A record is {"id", "image": path or list of paths, ...} with either "conversations": [{"from": "human" | "gpt",
    "value": text}, ...] or "questions": [[question, answer], ...]. Without "image" it is text; other keys are ignored.

    Args:
        path: the file.
        hint: what to add to the message when it does not exist.
        image_folder: what paths of pictures are relative to; None: the file's own folder.

    Raises:
        UserError: the file is missing or empty, or a line is not such a record; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"data: {path} does not exist{hint}")
    folder = path.parent if image_folder is None else image_folder
    with path.open(encoding="utf-8") as lines:
        is_list = lines.read(64).lstrip("\ufeff \t\r\n").startswith("[")
        lines.seek(0)
        if is_list:
            found = enumerate(_json(lines.read(), str(path)), 1)
            records = [_record(data, path, f"{path} record {n}", n, folder) for n, data in found]
        else:
            records = [
                _record(_json(line, f"{path} line {n}"), path, f"{path} line {n}", n, folder)
                for n, line in enumerate(lines, 1)
                if line.strip()
            ]
    if not records:
        raise UserError(f"data: {path} holds no records")
    return records


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text.lstrip("\ufeff"))
    except json.JSONDecodeError as error:
        raise UserError(f"data: {where} is not JSON ({error})") from error


def _record(data: Any, path: Path, where: str, number: int, folder: Path) -> Record:
    if not isinstance(data, dict):
        raise UserError(f"data: {where} is not a record but a {type(data).__name__}")
    turns, questions = data.get("conversations"), data.get("questions")
    if (turns is None) == (questions is None):
        raise UserError(f'data: {where} must have either "conversations" or "questions"')
    if questions is not None and not all(isinstance(q, list) and len(q) == 2 for q in questions):
        raise UserError(f'data: {where}: "questions" must be a list of [question, answer]')
    if turns is not None and not (isinstance(turns, list) and all(_is_turn(turn) for turn in turns)):
        raise UserError(f'data: {where}: "conversations" must be a list of {{"from": who, "value": text}}')
    named = data.get("image") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f'data: {where}: "image" must be a path or a list of paths, got {named!r}')
    return Record(
        key=f"{path.parent.name}/{path.stem}:{data.get('id', number)}",
        images=tuple(folder / name for name in named),
        conversation=None if turns is None else tuple(turns),
        questions=tuple((str(q), str(a)) for q, a in questions or ()),
    )


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


class TileStore:
    """Decodes pictures to uint8 tiles and keeps them in memory up to a limit.

    Args:
        processor: cuts the pictures.
        tile: side of a tile, pixels.
        max_bytes: once the kept tiles reach it, further pictures are decoded each time.
    """

    def __init__(self, processor: ChatProcessor, tile: int, max_bytes: int) -> None:
        self.processor, self.tile, self.max_bytes = processor, tile, max_bytes
        self._kept: dict[tuple[Picture, int], Tensor] = {}
        self._bytes = 0

    def load(self, paths: Sequence[Picture], max_tiles: int, key: str) -> list[Tensor]:
        """Tiles of each picture, uint8 [n, 3, tile, tile]; the pictures of a sample share `max_tiles` evenly.

        Raises:
            UserError: a picture is missing, broken or too large; the message names it and the sample.
        """
        share = max(1, max_tiles // max(1, len(paths)))
        return [self._load(path, share, key) for path in paths]

    def _load(self, path: Picture, max_tiles: int, key: str) -> Tensor:
        kept = self._kept.get((path, max_tiles))
        if kept is not None:
            return kept
        try:
            image = open_picture(path)
        except UserError as error:
            raise UserError(f"sample {key!r}: {error}") from error
        tiles = self.processor.cut(image, self.tile, max_tiles)
        if self._bytes + tiles.nbytes <= self.max_bytes:
            self._kept[path, max_tiles] = tiles
            self._bytes += tiles.nbytes
        return tiles
