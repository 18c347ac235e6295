"""Records of JSON and JSONL files: reading and checking them, and the pictures they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmframe.data.pictures import Picture, open_picture
from mmframe.errors import BadRecord, UserError
from mmframe.processing import ChatProcessor

_ROLES = {"system": "system", "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
"""Who speaks, as data sets call it and as `ChatProcessor` does."""


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
    """Reads a JSONL file, or a JSON file that holds a list of records, at once.

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
    source = f"{path.parent.name}/{path.stem}"
    with path.open(encoding="utf-8") as lines:
        is_list = lines.read(64).lstrip("\ufeff \t\r\n").startswith("[")
        lines.seek(0)
        if is_list:
            whole = parse_json(lines.read(), str(path))
            records = [_chat(data, f"{path} record {n}", source, n, folder) for n, data in enumerate(whole, 1)]
        else:
            records = [
                _chat(parse_json(line, f"{path} line {n}"), f"{path} line {n}", source, n, folder)
                for n, line in enumerate(lines, 1)
                if line.strip()
            ]
    if not records:
        raise UserError(f"data: {path} holds no records")
    return records


def _chat(data: Any, where: str, source: str, number: int, folder: Path) -> Record:
    if isinstance(data, dict) and data.get("conversations") is None and data.get("questions") is None:
        raise UserError(f'data: {where} must have either "conversations" or "questions"')
    return parse_record(data, where, source, number, folder)


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: as str, or as bytes in UTF-8.
        where: file and record, for messages.

    Raises:
        BadRecord: it is not JSON, or not Unicode: half of a surrogate pair, which no tokenizer takes.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        at = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise BadRecord("not JSON", f"data: {where} is not JSON ({at})") from error
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRecord("not Unicode", f"data: {where} has half of a surrogate pair: {error}") from error
    return value


def parse_record(data: Any, where: str, source: str, number: int, pictures: Path | Sequence[Picture]) -> Record:
    """A record from its plain data: {"id", "image": path or list of paths, ...} and one of these keys.

    "conversations": [{"from": who, "value": text}, ...], who is system, human (or user) or gpt (or assistant);
    "questions": [[question, answer], ...]; "caption": text; "text": text, with pictures it is a caption. Where there
    are several, the first of these is taken, but conversations and questions exclude one another. Other keys are
    ignored. What `ChatProcessor` checks anyway is left to it: that turns alternate, that placeholders and pictures are
    as many.

    Args:
        data: what the JSON says.
        where: file and record, for messages.
        source: the beginning of its key.
        number: in its key where the record has no "id".
        pictures: what paths are relative to; or the pictures themselves, where they come with the record.

    Raises:
        BadRecord: it is not such a record.
    """
    if not isinstance(data, dict):
        raise BadRecord("not a record", f"data: {where} is not a record but a {type(data).__name__}")
    images = _images(data, where, pictures) if isinstance(pictures, Path) else tuple(pictures)
    key = f"{source}:{data.get('id', number)}"
    turns, questions, caption, text = (data.get(name) for name in ("conversations", "questions", "caption", "text"))
    if turns is not None and questions is not None:
        raise BadRecord("not a record", f'data: {where} must have either "conversations" or "questions", not both')
    if turns is not None:
        return Record(key, images, conversation=_turns(turns, where))
    if questions is not None:
        return Record(key, images, questions=_questions(questions, where))
    if caption is None and images:
        caption = text
    if caption is not None:
        if not images:
            raise BadRecord("picture missing", f"data: {where} has a caption, but no picture")
        return Record(key, images, caption=_some_text(caption, "caption", where))
    if text is not None:
        return Record(key, (), text=_some_text(text, "text", where))
    raise BadRecord(
        "not a record", f'data: {where} must have one of "conversations", "questions", "caption" and "text"'
    )


def _images(data: dict, where: str, folder: Path) -> tuple[Picture, ...]:
    named = data.get("image") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise BadRecord("not a record", f'data: {where}: "image" must be a path or a list of paths, got {named!r}')
    return tuple(folder / name for name in named)


def _turns(turns: Any, where: str) -> tuple[dict[str, str], ...]:
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
        raise BadRecord(
            "not a record", f'data: {where}: "conversations" must be a list of {{"from": who, "value": text}}'
        )
    for turn in turns:
        if turn["from"] not in _ROLES:
            raise BadRecord(
                "unknown role", f"data: {where}: a turn is from {turn['from']!r}; known are {', '.join(_ROLES)}"
            )
    told = tuple({"from": _ROLES[turn["from"]], "value": turn["value"]} for turn in turns)
    if not any(turn["from"] == "human" for turn in told):
        raise BadRecord("no question", f"data: {where}: the conversation has no turn of the user")
    return told


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


def _questions(questions: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(questions, list) or not all(isinstance(q, list) and len(q) == 2 for q in questions):
        raise BadRecord("not a record", f'data: {where}: "questions" must be a list of [question, answer]')
    if not questions:
        raise BadRecord("no question", f'data: {where}: "questions" is empty')
    return tuple((str(question), str(answer)) for question, answer in questions)


def _some_text(text: Any, key: str, where: str) -> str:
    if not isinstance(text, str):
        raise BadRecord("not a record", f'data: {where}: "{key}" must be a text, got a {type(text).__name__}')
    if not text.strip():
        raise BadRecord(f"no {key}", f'data: {where}: "{key}" is empty')
    return text


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
