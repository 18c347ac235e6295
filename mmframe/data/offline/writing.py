"""How the items of a source become shards, and its texts a JSONL file."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from mmframe.data.demo_sources import on_white
from mmframe.data.fetch import Unavailable
from mmframe.data.offline.shards import ShardWriter
from mmframe.data.offline.source import Item
from mmframe.data.split import SPLITS, split_of

MOST_QUESTIONS = 24
"""A picture with more stands in several records, each short enough for a row of training."""

_SUFFIX = {"PNG": "png", "JPEG": "jpg"}


def write_pictures(out: Path, items: Iterable[Item]) -> dict[str, Any]:
    """Writes `SPLIT-*.tar`.

    Of items whose pictures look the same to the last pixel the first stays, so no picture is in two splits. Those with
    more pixels than mmframe reads are left out, too.

    Returns:
        {"records": {split: number}, "pictures": number, "answers": captions and answers, "same_picture": items left
        out, "too_large": items left out}

    Raises:
        Unavailable: there are no items, or one is no picture: the package is another one than it was.
    """
    keys: set[str] = set()
    looks: set[bytes] = set()
    left_out = {"same_picture": 0, "too_large": 0}
    answers = 0
    with ExitStack() as stack:
        shards = {split: stack.enter_context(ShardWriter(out / split)) for split in SPLITS}
        for item in items:
            assert re.fullmatch(r"[A-Za-z0-9_-]+", item.key) and item.key not in keys, item.key
            keys.add(item.key)
            try:
                data, suffix, look = stored(item.picture)
            except (Image.DecompressionBombWarning, Image.DecompressionBombError):
                left_out["too_large"] += 1
                continue
            except (OSError, ValueError, SyntaxError) as error:
                raise Unavailable(f"{item.key} is not a picture ({error}); the package's layout has changed") from error
            if look in looks:
                left_out["same_picture"] += 1
                continue
            looks.add(look)
            answers += len(item.said.get("questions", [None]))
            split = item.split or split_of(item.picture)
            for key, said in _records(item):
                shards[split].add(key, data, suffix, {"id": key, **said})
        records = {split: writer.samples for split, writer in shards.items()}
    if not keys:
        raise Unavailable("the packages hold none of the expected pictures; their layout has changed")
    return {"records": records, "pictures": len(looks), "answers": answers, **left_out}


def _records(item: Item) -> Iterator[tuple[str, dict[str, Any]]]:
    questions = item.said.get("questions", [])
    if len(questions) <= MOST_QUESTIONS:
        yield item.key, item.said
        return
    for start in range(0, len(questions), MOST_QUESTIONS):
        yield f"{item.key}--{start}", {"questions": questions[start : start + MOST_QUESTIONS]}


def stored(picture: bytes) -> tuple[bytes, str, bytes]:
    """How a picture is kept.

    Opaque PNG and JPEG files are kept as they are. Others are put on white, as a page shows them: readers drop the
    alpha channel (the released models were trained so), and what lies below it is often black or noise.

    Returns:
        The bytes of the file, its suffix, and a hash of what it looks like.

    Raises:
        DecompressionBombWarning, DecompressionBombError: it has more pixels than Pillow reads without a warning, which
            are as many as `mmframe.images.MAX_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        rgb = on_white(picture)
    look = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).digest()
    with Image.open(io.BytesIO(picture)) as image:
        suffix = _SUFFIX.get(image.format or "")
        opaque = not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    if suffix and opaque:
        return picture, suffix, look
    png = io.BytesIO()
    rgb.save(png, "PNG")
    return png.getvalue(), "png", look


def write_texts(out: Path, texts: Iterable[str]) -> dict[str, Any]:
    """Writes `train.jsonl`, {"text": ...} in each line.

    Returns:
        {"records": {"train": number}, "characters": number}

    Raises:
        Unavailable: there are no texts: the package is another one than it was.
    """
    count = characters = 0
    with (out / "train.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
            characters += len(text)
    if not count:
        raise Unavailable("the package holds none of the expected texts; its layout has changed")
    return {"records": {"train": count}, "characters": characters}
