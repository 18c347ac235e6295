"""Meta files of InternVL and Mono-InternVL: one JSON file that lists the data sets of a mixture."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.sources.jsonl import JsonlRecords
from mmframe.data.files import is_url, locate
from mmframe.data.records import Record
from mmframe.data.source import Source
from mmframe.errors import UserError
from mmframe.registry import register


@register("source")
class MetaFile(Source):
    """The data sets that a meta file of InternVL lists, as they are.

    {"name": {"root": folder of the pictures, "annotation": JSONL file, "repeat_time": 1, "data_augment": false,
    "max_dynamic_patch": 6, "length": 1000}, ...}. Each is a source of its own: `repeat_time` is its `repeat` (0 leaves
    it out), `max_dynamic_patch` its `max_tiles`, `data_augment` its `jpeg_noise`. `length` is only compared with what
    the file holds. Relative paths are taken from the working directory, as the reference does, else from the meta
    file's folder. What is given here holds for all: `repeat` multiplies theirs, the others hold where they say
    nothing.

    Args:
        path: The meta file.
    """

    toy_args = {"path": "meta.json"}

    def __init__(self, path: str, **mix: Any) -> None:
        super().__init__(**mix)
        self.path = path
        self._parts: dict[str, Source] | None = None

    def parts(self) -> dict[str, Source]:
        if self._parts is None:
            parts = {name: self._part(name, entry) for name, entry in self._entries().items()}
            self._parts = {name: part for name, part in parts.items() if part is not None}
            if not self._parts:
                raise UserError(f"data: {self.path} lists no data set")
        return self._parts

    def open(self) -> None:
        for part in self.parts().values():
            part.open()

    def files(self) -> Iterator[tuple[str, int]]:
        for part in self.parts().values():
            yield from part.files()

    def __len__(self) -> int:
        raise AssertionError("a meta file has no records of its own; its parts() have")

    def record(self, index: int) -> Record:
        raise AssertionError("a meta file has no records of its own; its parts() have")

    def _entries(self) -> dict[str, Any]:
        file = Path(locate(self.path))
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"data: {file} does not exist") from error
        except (OSError, ValueError) as error:
            raise UserError(f"data: cannot read the meta file {file}: {error}") from error
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise UserError(
                f'data: {file} is no meta file: {{"name": {{"root": folder, "annotation": file, ...}}, ...}}; a file '
                "of records is for JsonlRecords"
            )
        return entries

    def _part(self, name: str, entry: dict[str, Any]) -> JsonlRecords | None:
        where = f"data: {self.path}: {name!r}"
        if not isinstance(entry.get("annotation"), str) or not isinstance(entry.get("root"), str):
            missing = next(key for key in ("annotation", "root") if not isinstance(entry.get(key), str))
            raise UserError(f"{where}: {missing!r} must be a path, got {entry.get(missing)!r}")
        times, tiles = entry.get("repeat_time", 1), entry.get("max_dynamic_patch")
        if not isinstance(times, int | float) or times < 0:
            raise UserError(f"{where}: 'repeat_time' must be a number, 0 or more, got {times!r}")
        if tiles is not None and not isinstance(tiles, int):
            raise UserError(f"{where}: 'max_dynamic_patch' must be a whole number, got {tiles!r}")
        if times == 0:
            print(f"{where} has repeat_time 0 and is left out")
            return None
        part = JsonlRecords(
            self._place(entry["annotation"]),
            self._place(entry["root"]),
            repeat=self.repeat * times,
            max_tiles=self.max_tiles if tiles is None else tiles,
            prompts=self.prompts,
            jpeg_noise=bool(entry.get("data_augment", self.jpeg_noise)),
        )
        part.said = entry["length"] if isinstance(entry.get("length"), int) else None
        return part

    def _place(self, path: str) -> str:
        place = locate(path)
        if is_url(place) or os.path.exists(place):
            return place
        beside = os.path.join(os.path.dirname(locate(self.path)), path)
        return beside if os.path.exists(beside) else place
