"""lmms-eval's chat messages and visuals become turns and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmframe.errors import UserError
from mmframe.images import open_image, to_rgb
from mmframe.processing.chat import Turn
from mmframe.processing.row import PLACEHOLDER

WHO = {"system": "system", "user": "human", "assistant": "gpt"}


def user_message(visuals: Sequence[Any], text: str) -> dict[str, Any]:
    """Pictures in front of a text, as lmms-eval writes a chat message."""
    content = [{"type": "image", "url": visual} for visual in visuals]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def read_messages(
    messages: Sequence[Mapping[str, Any]], system: str | None, where: str
) -> tuple[list[Turn], list[Image.Image]]:
    """Turns for `processor.encode_prompt`, and their pictures in order.

    Pictures that open a message stand on lines of their own, as in training; later ones stand where they are. A text
    that holds as many <image> as its message has pictures says itself where they stand.

    Args:
        messages: {"role", "content": a text, or a list of {"type": "text", "text"} and {"type": "image", "url"}}.
        system: System message in place of the task's own; None keeps that.
        where: Task and document, for errors.

    Raises:
        UserError: a role that is not known, video or audio, a picture that the user did not send or that cannot be
            read, or as many <image> in a text as do not fit its pictures.
    """
    turns: list[Turn] = []
    images: list[Image.Image] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in WHO:
            raise UserError(f"{where}: a message of role {role!r}; it can be {', '.join(WHO)}")
        pieces = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [_picture(piece["url"], where) for piece in pieces if _kind(piece, where) == "image"]
        if pictures and role != "user":
            raise UserError(f"{where}: a picture in a message of role {role!r}; only the user can send pictures")
        turns.append({"from": WHO[role], "value": _text(pieces, len(pictures), where)})
        images += pictures
    if system is not None:
        turns = [{"from": "system", "value": system}, *(turn for turn in turns if turn["from"] != "system")]
    return turns, images


def _kind(piece: Mapping[str, Any], where: str) -> str:
    kind = piece["type"]
    if kind not in ("text", "image"):
        raise UserError(f"{where}: the task sends {kind}; models of mmframe read texts and pictures")
    return kind


def _text(pieces: Sequence[Mapping[str, Any]], pictures: int, where: str) -> str:
    texts = [piece["text"] for piece in pieces if piece["type"] == "text"]
    named = sum(text.count(PLACEHOLDER) for text in texts)
    if named == pictures or not pictures:
        return "".join(texts)
    if named:
        raise UserError(f"{where}: {named} {PLACEHOLDER} in the text but {pictures} pictures; make the counts equal")
    value = ""
    for piece in pieces:
        opens = not value.replace(f"{PLACEHOLDER}\n", "")
        value += piece["text"] if piece["type"] == "text" else PLACEHOLDER + "\n" * opens
    return value


def _picture(visual: Any, where: str) -> Image.Image:
    if isinstance(visual, Image.Image):
        return to_rgb(ImageOps.exif_transpose(visual))
    if isinstance(visual, Mapping) and isinstance(visual.get("bytes"), bytes):  # as `datasets` gives it undecoded
        visual = visual["bytes"]
    if not isinstance(visual, (str, Path, bytes)):
        raise UserError(f"{where}: the task sends {type(visual).__name__}; models of mmframe read texts and pictures")
    try:
        return open_image(visual)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
