"""The rows that `mmframe generate` answers. A bad row is kept with what is wrong with it: nothing is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.errors import UserError
from mmframe.processing import PLACEHOLDER


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        id: as given, else the number of the line.
        prompt: what the user says last.
        turns: {"from", "value"}, the user's last.
        images: pictures of all turns, in order.
        error: what is wrong with the row, or "".
    """

    id: Any
    prompt: str = ""
    turns: tuple[dict[str, str], ...] = ()
    images: tuple[Path, ...] = ()
    error: str = ""


def read_questions(path: Path, system: str | None = None) -> list[Question]:
    """Reads a JSONL file.

    A line is {"id", "image": path, list of paths or nothing, "prompt": text}, or has "conversations":
    [{"from": "human" | "gpt" | "system", "value": text}, ...] in place of the prompt; the answer that ends a
    conversation is left out. Paths are relative to the file.

    Args:
        path: the file.
        system: system message of the rows that bring none.

    Raises:
        UserError: the file is missing or holds no rows.
    """
    if not path.is_file():
        raise UserError(f"generate: --data {path} does not exist")
    questions = []
    for count, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            questions.append(_question(line, count, path.parent, system))
    if not questions:
        raise UserError(f"generate: --data {path} holds no rows")
    return questions


def _question(line: bytes, count: int, folder: Path, system: str | None) -> Question:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        return Question(count, error=f"line {count} is not JSON ({error})")
    if not isinstance(row, dict):
        return Question(count, error=f"line {count} is no JSON object")
    key = row.get("id", count)
    try:
        images = _images(row.get("image"), folder)
        turns = _turns(row, len(images))
    except UserError as error:
        return Question(key, error=f"line {count}: {error}")
    if system is not None and turns[0]["from"] != "system":
        turns = [{"from": "system", "value": system}, *turns]
    return Question(key, row.get("prompt", turns[-1]["value"]), tuple(turns), images)


def _images(given: Any, folder: Path) -> tuple[Path, ...]:
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError('"image" must be a path or a list of paths')
    return tuple(folder / name for name in names)


def _turns(row: dict[str, Any], num_images: int) -> list[dict[str, str]]:
    prompt, talk = row.get("prompt"), row.get("conversations")
    if (prompt is None) == (talk is None):
        raise UserError('needs either "prompt" or "conversations"')
    if talk is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError('"prompt" is empty or no text')
        count = 0 if PLACEHOLDER in prompt else num_images  # pictures without a place stand in front
        return [{"from": "human", "value": f"{PLACEHOLDER}\n" * count + prompt}]
    whole = isinstance(talk, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
        for turn in talk
    )
    if not whole:
        raise UserError('"conversations" must be a list of {"from": "human" or "gpt", "value": text}')
    turns = list(talk)
    if turns and turns[-1]["from"] == "gpt":
        turns.pop()
    if not turns or turns[-1]["from"] != "human" or not turns[-1]["value"].strip():
        raise UserError('"conversations" does not end with a question of the user ("from": "human")')
    return turns
