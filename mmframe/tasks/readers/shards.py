"""Tar shards of WebDataset's layout, KEY.json beside KEY.png: what `mmframe data offline` makes."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from mmframe.data.files import PICTURES
from mmframe.data.pictures import FilePart
from mmframe.data.tar import members
from mmframe.tasks.readers.base import Files, Row, Rows, broken


def read_shards(files: Files, file: str | list[str]) -> Rows:
    """Rows of tar shards: what KEY.json says, with the columns `key` and `image`.

    Args:
        files: Finds them.
        file: Path, pattern or list of them.
    """
    found = files.find(file, (".tar",))
    rows: dict[str, Row] = {}
    places: list[str] = []
    for path in found:
        for member in members(str(path)):
            name = PurePosixPath(member.name)
            key = name.with_suffix("").as_posix()
            part = FilePart(str(path), member.offset, member.size, member.name)
            if key not in rows:
                rows[key] = {"file": path.stem, "key": key}
                places.append(f"{path} sample {key}")
            if name.suffix == ".json":
                try:
                    rows[key] |= json.loads(part.read())
                except (ValueError, TypeError) as error:
                    raise broken(path, f"{member.name} is no JSON object ({error})") from error
            elif name.suffix.lower() in PICTURES:
                rows[key]["image"] = part
    return Rows(list(rows.values()), places, found)
