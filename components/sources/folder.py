"""A folder of pictures, with their captions in text files beside them or in one table."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from components.sources.jsonl import JsonlRecords
from mmframe.data.csv_ranges import csv_header, csv_ranges, csv_rows
from mmframe.data.files import PICTURES, locate, reading
from mmframe.data.index import Arrays, Built, Index, index_of
from mmframe.data.json_ranges import record_ranges
from mmframe.data.records import Record, parse_record
from mmframe.data.source import Source
from mmframe.errors import BadRecord, UserError
from mmframe.registry import register

TABLES = tuple(f"{name}.{suffix}" for name in ("metadata", "captions") for suffix in ("jsonl", "csv", "tsv"))


@register("source")
class ImageFolder(Source):
    """A folder of pictures, also in folders inside it, with captions: `a.jpg` and `a.txt`, or one table for all.

    The table is metadata.jsonl or captions.jsonl ({"file_name": "a.jpg", "text": "..."}, or any record of
    JsonlRecords), or a .csv or .tsv file whose first row names the columns, `file_name` and `text` among them. With a
    table its rows are the records, in its order; else the pictures, sorted by path. Names that begin with a dot are
    left alone.

    Args:
        folder: The folder.
        captions: Name of the table in the folder; null: the first there is of metadata.jsonl, metadata.csv,
            metadata.tsv, captions.jsonl, captions.csv, captions.tsv; else a .txt file beside each picture.
    """

    toy_args = {"folder": "pictures"}
    guessed_by = ("/",)

    def __init__(self, folder: str, captions: str | None = None, **mix: Any) -> None:
        super().__init__(**mix)
        self.folder, self.captions = Path(locate(folder)), captions
        self._table: _Table | None = None
        self._listing: Index | None = None

    def open(self) -> None:
        if self._table is not None or self._listing is not None:
            return
        if not self.folder.is_dir():
            raise UserError(f"data: the folder {self.folder} does not exist")
        names = TABLES if self.captions is None else (self.captions,)
        table = next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        if table is not None or self.captions is not None:
            self._table = _Table(str(table or self.folder / names[0]))
            self._table.open()
        else:
            self._listing = _listed(self.folder)

    def __len__(self) -> int:
        return len(self._table) if self._table is not None else len(self._pictures["size"])

    def files(self) -> Iterator[tuple[str, int]]:
        if self._table is not None:
            yield from self._table.files()
            return
        for number, (size, text_size) in enumerate(
            zip(self._pictures["size"].tolist(), self._pictures["text_size"].tolist(), strict=True)
        ):
            yield self._name(number), size
            if text_size >= 0:
                yield _text_of(self._name(number)), text_size

    def record(self, index: int) -> Record:
        if self._table is not None:
            return self._table.record(index)
        name = self._name(index)
        picture = self.folder / name
        if self._pictures["text_size"][index] < 0:
            raise BadRecord("no caption", f"data: there is no {_text_of(picture.name)} beside {picture}")
        text = self.folder / _text_of(name)
        try:
            said = text.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadRecord("no caption", f"data: cannot read {text}: {error}") from error
        return parse_record({"caption": said, "id": name}, str(text), self.folder.name, 0, [picture])

    @property
    def _pictures(self) -> Arrays:
        assert self._listing is not None, "open() comes first"
        return self._listing

    def _name(self, number: int) -> str:
        ends = self._pictures["name_end"]
        return os.fsdecode(self._pictures["name"][int(ends[number - 1]) if number else 0 : int(ends[number])].tobytes())


class _Table(JsonlRecords):
    """Rows of a table; pictures are named by "file_name"."""

    def index_kind(self) -> str:
        return "table 1"

    def index_file(self, file: str) -> Built:
        return record_ranges(file) if file.endswith(".jsonl") else csv_ranges(file)

    def open(self) -> None:
        super().open()
        file, _, _ = self.rows.find(0)
        self.header = [] if file.endswith(".jsonl") else csv_header(file)
        if self.header and not ("file_name" in self.header and {"text", "caption"} & set(self.header)):
            raise UserError(f"data: {file} needs the columns file_name and text, it has {', '.join(self.header)}")

    def parse(self, row: bytes, where: str) -> Any:
        data = self._cells(row, where) if self.header else super().parse(row, where)
        if isinstance(data, dict) and "file_name" in data:
            data = {"id": data["file_name"], **data, "image": data.get("image") or data["file_name"]}
        return data

    def _cells(self, row: bytes, where: str) -> dict[str, str]:
        try:
            cells = next(csv_rows(row.decode().splitlines(keepends=True), where.rpartition(" record ")[0]))
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadRecord("not CSV", f"data: {where} cannot be read: {error}") from error
        if len(cells) != len(self.header):
            raise BadRecord("not CSV", f"data: {where} has {len(cells)} columns, the first row {len(self.header)}")
        return dict(zip(self.header, cells, strict=True))


def _listed(folder: Path) -> Index:
    """The pictures of a folder, sorted by path: "name_end" in "name", "size" and "text_size" (bytes; -1: no text)."""
    with reading(str(folder)):
        found = sorted(_walk(str(folder)))
    sizes = {name: size for name, size, _ in found}
    pictures = [name for name, _, _ in found if os.path.splitext(name)[1].lower() in PICTURES]
    if not pictures:
        raise UserError(f"data: {folder} holds no pictures ({', '.join(PICTURES)})")

    def arrays() -> Arrays:
        names = [os.fsencode(name) for name in pictures]
        return {
            "size": np.array([sizes[name] for name in pictures], np.int64),
            "text_size": np.array([sizes.get(_text_of(name), -1) for name in pictures], np.int64),
            "name": np.frombuffer(b"".join(names), np.uint8),
            "name_end": np.cumsum([len(name) for name in names], dtype=np.int64),
        }

    content = [str(folder), *(f"{name}\t{size}\t{changed}" for name, size, changed in found)]
    return index_of("\n".join(content), "folder 1", arrays)


def _walk(root: str, inside: str = "") -> Iterator[tuple[str, int, int]]:
    """(path in the folder, size, time in ns) of each file."""
    with os.scandir(os.path.join(root, inside)) as entries:
        for entry in entries:
            name = os.path.join(inside, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(root, name)
            elif os.path.splitext(name)[1].lower() in (*PICTURES, ".txt"):
                known = entry.stat()
                yield name, known.st_size, known.st_mtime_ns


def _text_of(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"
